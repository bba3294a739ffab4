"""The AI SDK with `@ai-sdk/prodia`, unmodified: image model and language model, and what each asked how often."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.clients.stage import Stage, stage
from tests.fleet import TOKEN
from tests.pipeline.calls import jobs

SCRIPT = "ai-sdk-prodia.mjs"


@pytest.fixture(scope="module")
def on(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    with stage(tmp_path_factory.mktemp("ai-sdk-prodia"), GATEWAY_REDIS_TIMEOUT="5s") as running:
        yield running


def test_the_image_model_makes_pictures_and_is_told_seed_and_price(on: Stage) -> None:
    made = on.node(SCRIPT, STEPS="image,again,two")
    first, again, two = made["image"], made["again"], made["two"]
    assert first["kinds"] == ["image/png"]
    assert (first["metadata"][0]["seed"], first["metadata"][0]["dollars"]) == (1, 0.04)
    assert (again["digests"], again["metadata"][0]["dollars"]) == (first["digests"], 0)
    assert len(set(two["digests"])) == 2
    assert [each["dollars"] for each in two["metadata"]] == [0.04, 0.04]
    assert on.statuses("shop") == [200] * 4


def test_the_language_model_edits_and_is_told_that_a_key_was_left_out(on: Stage) -> None:
    """It sends `include_messages` to every type; Kontext's types have no such key, and the upstream is not sent it."""
    before = len(jobs(on.fleet))
    made = on.node(SCRIPT, STEPS="edit,wide,dev,stream")
    for name in ("edit", "wide", "dev"):
        step: Any = made[name]
        assert (step["kinds"], step["text"], step["finish"]) == (["image/jpeg"], "", "stop")
        assert step["headers"]["gateway-left-out"] == "include_messages"
        assert step["metadata"]["dollars"] == (0.025 if name == "dev" else 0.04)
    assert made["stream"]["kinds"] == ["image/jpeg"]
    sent = jobs(on.fleet)[before:]
    assert len(sent) == 4
    assert all("include_messages" not in job["config"] for job in sent)
    assert sent[1]["config"]["aspect_ratio"] == "16:9"


@pytest.mark.parametrize(
    ("step", "tenant", "status", "code"),
    [
        ("size", "shop", 400, "invalid_request"),
        ("unknown", "shop", 400, "invalid_request"),
        ("ceiling", "strict", 403, "safety_ceiling"),
        ("budget", "broke", 403, "budget_exhausted"),
        ("budget_edit", "broke", 403, "budget_exhausted"),
        ("lasting", "hourly", 403, "rate_limited"),
    ],
)
def test_a_refusal_is_a_call_error_that_is_not_retryable_and_is_asked_for_once(
    on: Stage, step: str, tenant: str, status: int, code: str
) -> None:
    before = len(on.requests(tenant))
    thrown = on.node(SCRIPT, STEPS=step)[step]
    assert (thrown["call"], thrown["status"], thrown["retryable"]) == (True, status, False)
    assert f'"code":"{code}"' in thrown["body"]
    assert on.statuses(tenant)[before:] == [status]


def test_a_wrong_key_is_a_call_error_too(on: Stage) -> None:
    thrown = on.node(SCRIPT, STEPS="stranger")["stranger"]
    assert (thrown["call"], thrown["status"], thrown["body"]) == (True, 401, "token is invalid\n")


def test_a_rate_that_ends_soon_is_waited_for_and_the_repeat_gets_its_picture(on: Stage) -> None:
    """The SDK waits for Retry-After; without repeats its error says what the limit is."""
    assert on.node(SCRIPT, STEPS="patient")["patient"]["kinds"] == ["image/png"]
    statuses = on.statuses("brisk")
    assert statuses.count(200) == 2
    assert 1 <= statuses.count(429) <= 2
    hasty = on.node(SCRIPT, STEPS="hasty")["hasty"]
    assert (hasty["call"], hasty["status"], hasty["retryable"]) == (True, 429, True)
    assert hasty["message"] == "This tenant may make 1 requests in 2 s."
    assert len(on.statuses("brisk")) == len(statuses) + 2


def test_what_may_have_been_charged_is_not_asked_for_again(on: Stage) -> None:
    """The SDK repeats every 5xx twice by itself: three pictures would be paid for, and none of them seen."""
    asked, sent = len(on.requests("shop")), on.fleet.stats()["received"]
    on.fleet.faults([{"kind": "malformed"}])
    thrown = on.node(SCRIPT, STEPS="once")["once"]
    on.fleet.faults([])
    assert (thrown["call"], thrown["status"], thrown["retryable"]) == (True, 400, False)
    assert on.statuses("shop")[asked:] == [400]
    assert on.fleet.stats()["received"] == sent + 1


def test_the_stand_in_answers_it_as_the_gateway_does(on: Stage) -> None:
    steps = "image,two,size,unknown,stranger"
    ours = on.node(SCRIPT, STEPS=steps)
    theirs = on.node(SCRIPT, STEPS=steps, GATEWAY_URL=on.fleet.upstream, KEY_SHOP=TOKEN)
    assert ours["image"]["digests"] == theirs["image"]["digests"]
    for name in ("image", "two"):
        assert ours[name]["kinds"] == theirs[name]["kinds"]
    for name in ("size", "unknown", "stranger"):
        for fact in ("error", "status", "retryable", "message"):
            assert ours[name][fact] == theirs[name][fact], name
