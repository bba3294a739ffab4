"""Outcomes: what they mean for money, for another try and for the caller, and how upstream texts are told apart."""

from __future__ import annotations

from typing import Any, get_args

import pytest

from app.errors import CODES
from app.prodia.faults import (
    DEFAULT,
    MONEY,
    RETRY,
    Fault,
    Moderation,
    Outcome,
    clean,
    field_at_fault,
    is_validation,
    parse_money,
    public_error,
)

OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)


def test_every_outcome_has_a_policy_and_only_unknown_ones_stay_charged() -> None:
    assert set(MONEY) == set(OUTCOMES)
    assert {outcome for outcome in OUTCOMES if MONEY[outcome] != "refund"} == {"error", "lost", "malformed"}


def test_nothing_that_may_have_been_billed_is_sent_again() -> None:
    assert set(RETRY) == {"unsent", "busy", "unavailable"}
    assert all(MONEY[outcome] == "refund" for outcome in RETRY)


def test_settings_change_single_rows_of_the_money_table() -> None:
    assert parse_money("") == MONEY
    assert parse_money(" failed=charge , error = refund,") == MONEY | {"failed": "charge", "error": "refund"}
    assert parse_money({"moderated": "charge"}) == MONEY | {"moderated": "charge"}
    assert MONEY["failed"] == "refund"


@pytest.mark.parametrize(
    "overrides",
    ["oops=refund", "failed=free", "failed", "=refund", "failed=charge,failed=refund", "FAILED=charge", "failed:charge",
     {"oops": "refund"}, {"failed": ""}],
)  # fmt: skip
def test_a_money_table_with_a_mistake_is_refused(overrides: Any) -> None:
    with pytest.raises(ValueError, match=r"unknown|twice"):
        parse_money(overrides)


@pytest.mark.parametrize(
    ("fault", "code", "retry_after"),
    [
        (Fault("unsent", cause="ClientConnectorError"), "upstream_unavailable", 1),
        (Fault("invalid", status=400, field="steps", message="too many"), "upstream_failed", None),
        (Fault("moderated", status=400), "content_moderated", None),
        (Fault("failed", status=400, message="no face found"), "upstream_failed", None),
        (Fault("refused", status=402), "upstream_failed", None),
        (Fault("misconfigured", status=401), "upstream_misconfigured", None),
        (Fault("busy", status=429, retry_after=2.2), "upstream_busy", 3),
        (Fault("busy", status=429, retry_after=3600.0), "upstream_busy", 60),
        (Fault("unavailable", status=503, retry_after=0.0), "upstream_busy", 1),
        (Fault("error", status=500), "upstream_failed", None),
        (Fault("lost", timed_out=True), "upstream_timeout", None),
        (Fault("lost"), "upstream_failed", None),
        (Fault("malformed", status=200), "upstream_invalid", None),
    ],
)
def test_a_caller_is_told_by_the_error_table(fault: Fault, code: str, retry_after: int | None) -> None:
    error = public_error(fault, "unknown")
    assert (error.code, error.kind, error.charged) == (code, CODES[code], "unknown")
    assert error.retry_after == retry_after
    assert error.detail == fault.detail
    assert error.field == fault.field
    assert error.extra == ({"upstream_message": fault.message} if fault.message else {})


def test_a_fault_prints_without_what_the_upstream_said() -> None:
    fault = Fault("failed", status=400, message="cannot draw 'a secret prompt'")
    assert "secret" not in f"{fault} {fault!r} {fault.detail}"


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("at '/config/steps': maximum: got 1,000, want 4", "steps"),
        ("jsonschema validation failed with 'https://x/y#'\n- at '/config/steps': minimum: got 0, want 1", "steps"),
        ("at '/config/images/3': minLength: got 1, want 3", "images"),
        ("at '/config/images': maxItems: got 9, want 8", "images"),
        ("at '/config/seed': got string, want integer", "seed"),
        ("at '/config/aspect_ratio': value must be one of '1:1', '16:9'", "aspect_ratio"),
        ("at '/config': missing property 'prompt'", "prompt"),
        ("at '/config': missing properties 'prompt', 'seed'", "prompt"),
        ("at '/config': additional properties 'foo' not allowed", "foo"),
        ("at '/config/width': multipleOf: got 100, want 16", "width"),
        ("at '/type': value must be 'x'", "type"),
        ("at '': missing property 'type'", "type"),
        ("missing property 'prompt'", "prompt"),
        ("steps: maximum: got 1,000, want 4", "steps"),
        ("config.steps maximum: got 1,000, want 4", "steps"),
        ("/config/steps: maximum: got 1,000, want 4", "steps"),
        ("invalid job: 'steps' maximum: got 1,000, want 4", "steps"),
        ("at '/config/safety_tolerance': maximum: got 7, want 6", "safety_tolerance"),
        ("validation failed: maximum: got 1,000, want 4", None),
        ("error: maximum: got 1,000, want 4", None),
        ("maximum: got 1,000, want 4", None),
        ("got null, want object", None),
    ],
)
def test_a_validation_text_names_its_field(text: str, field: str | None) -> None:
    assert is_validation(text)
    assert field_at_fault(text) == field


@pytest.mark.parametrize(
    "text", ["", "no face found", "Content Moderated", "got lost on the way", "value is too high", "maximum reached"]
)
def test_other_texts_are_not_validation(text: str) -> None:
    assert not is_validation(text)


@pytest.mark.parametrize(
    "text",
    [
        "Request Moderated",
        "Content Moderated",
        "the image failed moderation",
        "blocked by moderator",
        "NSFW content detected",
        "prompt was flagged",
        "rejected by the safety system",
        "Safety checker triggered",
        "violates our content policy",
    ],
)
def test_moderation_is_recognised(text: str) -> None:
    assert DEFAULT.matches(text)


@pytest.mark.parametrize(
    "text",
    [
        "safety",
        "safety_tolerance is out of range",
        "bad safety_tolerance",
        "moderate load",
        "unflagged",
        "no face found",
    ],
)
def test_what_only_sounds_like_moderation_is_not(text: str) -> None:
    assert not DEFAULT.matches(text)


def test_a_moderation_pattern_that_is_no_expression_is_refused() -> None:
    with pytest.raises(ValueError, match="not a regular expression"):
        Moderation(("(",))


def test_cleaned_text_is_one_bounded_printable_line() -> None:
    assert clean(" a\tb\r\n\x00c\u202ed\ud800 ") == "a b cd"
    assert clean("a\x07bc", ["abc"]) == "[redacted]"
    assert clean("abc", [""]) == "abc"
    assert len(clean("x" * 100_000)) == 4_000
