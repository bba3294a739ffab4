"""Advice: each rule where it belongs and nowhere else, at most three at once, and never a word of the prompt."""

from __future__ import annotations

import tomllib
from dataclasses import replace
from importlib import resources
from typing import Any

import pytest

from app.domain import policy
from app.domain.advice import advise
from app.domain.guidance import load
from app.domain.job import Choice, Job
from app.domain.tenant import SafetyRule, Tenant
from tests.unit.asks import CATALOG, caller, request, tenant

GUIDANCE = load()
OPEN = tenant({"generate": SafetyRule(ceiling=6)}, without=("dev",))
LONG = "the picture shows a quiet harbour where boats lie " * 9
TWO = "make the sky stormy and add a boat"


def job(operation: str, by: Tenant = OPEN, **fields: Any) -> Job:
    return policy.apply(caller(by), request(operation, **fields))


def codes(operation: str, by: Tenant = OPEN, **fields: Any) -> list[str]:
    return [sentence.partition(":")[0] for sentence in advise(job(operation, by, **fields), CATALOG, GUIDANCE)]


QUIET: dict[str, Any] = {"prompt": "a lighthouse at dawn above a wide sea with many ships", "aspect_ratio": "3:2"}
GIVEN: list[tuple[str, dict[str, Any], str]] = [
    ("edit", {"prompt": "inpaint the mask with grass"}, "masks_elsewhere"),
    ("generate", QUIET | {"user": "u"}, "safety_for_end_users"),
    ("generate", QUIET | {"user": "u", "safety_tolerance": 2}, "safety_for_end_users"),
    ("edit", {"prompt": TWO}, "prefer_max"),
    ("edit", {"prompt": TWO, "variant": "dev"}, "prefer_max"),
    ("edit", {"prompt": LONG}, "describe_the_change"),
    ("edit", {"prompt": "change the background to a beach"}, "anchor_what_stays"),
    ("edit", {"prompt": "turn this into winter"}, "anchor_what_stays"),
    (
        "generate",
        QUIET | {"prompt": "a photorealistic portrait of a man with a dog"},
        "photorealism_elsewhere",
    ),
    ("generate", {"prompt": "a lighthouse", "aspect_ratio": "3:2"}, "upsample_short_prompts"),
    ("generate", {"prompt": QUIET["prompt"]}, "choose_aspect_ratio"),
]
SILENT: list[tuple[str, dict[str, Any], str]] = [
    ("generate", QUIET | {"prompt": "a ball of masks, a mask and a masked man in a large hall"}, "masks_elsewhere"),
    ("generate", QUIET, "safety_for_end_users"),
    ("generate", QUIET | {"user": "u", "safety_tolerance": 1}, "safety_for_end_users"),
    ("edit", {"user": "u"}, "safety_for_end_users"),
    ("edit", {"prompt": TWO, "variant": "max"}, "prefer_max"),
    ("edit", {"prompt": "make the sky stormy"}, "prefer_max"),
    ("edit", {"prompt": "word " * 79}, "describe_the_change"),
    ("generate", {"prompt": LONG}, "describe_the_change"),
    ("edit", {"prompt": "change the background to a beach, keep the man unchanged"}, "anchor_what_stays"),
    ("edit", {"prompt": "make the hat red"}, "anchor_what_stays"),
    ("edit", {"prompt": "a photorealistic hat"}, "photorealism_elsewhere"),
    ("generate", {"prompt": "a lighthouse", "prompt_upsampling": False}, "upsample_short_prompts"),
    ("generate", {"prompt": "one two three four five six seven eight nine"}, "upsample_short_prompts"),
    ("edit", {"prompt": "make it red"}, "upsample_short_prompts"),
    ("generate", {"aspect_ratio": "1:1"}, "choose_aspect_ratio"),
    ("edit", {}, "choose_aspect_ratio"),
]


@pytest.mark.parametrize(("operation", "fields", "code"), GIVEN)
def test_advice_is_given(operation: str, fields: dict[str, Any], code: str) -> None:
    assert code in codes(operation, **fields)


@pytest.mark.parametrize(("operation", "fields", "code"), SILENT)
def test_advice_is_not_given(operation: str, fields: dict[str, Any], code: str) -> None:
    assert code not in codes(operation, **fields)


def test_every_rule_is_tried_both_ways() -> None:
    known = {rule.code for rule in GUIDANCE.advice.rule}
    assert {code for _, _, code in GIVEN} == {code for _, _, code in SILENT} == known


def test_max_is_not_recommended_to_those_who_may_not_use_it_or_left_the_choice_to_auto() -> None:
    assert "prefer_max" not in codes("edit", tenant(variants={"edit": ("pro",)}), prompt=TWO)
    asked = job("edit", prompt=TWO)
    left = replace(asked, request=replace(asked.request, chosen=Choice("pro", "because")))
    assert not any(sentence.startswith("prefer_max") for sentence in advise(left, CATALOG, GUIDANCE))


def test_a_ceiling_that_makes_it_true_makes_the_advice_needless() -> None:
    held = tenant({"generate": SafetyRule(ceiling=1)})
    assert "safety_for_end_users" not in codes("generate", held, **QUIET, user="u")


def test_three_at_most_the_same_each_time_and_without_the_prompt() -> None:
    fields: dict[str, Any] = {"prompt": "photorealistic zebra", "user": "u"}
    first = advise(job("generate", **fields), CATALOG, GUIDANCE)
    assert first == advise(job("generate", **fields), CATALOG, GUIDANCE)
    assert len(first) == 3 < len([code for code in ("safety", "photo", "upsample", "ratio") if code])
    assert "zebra" not in " ".join(first)
    assert codes("generate", **QUIET) == []


BUILT_IN = resources.files("app.domain").joinpath("guidance.toml").read_text("utf-8")


def test_every_name_in_the_rules_is_one_of_the_catalogue() -> None:
    data = tomllib.loads(BUILT_IN)
    variants = {name for _, name in CATALOG.enabled}
    fields = {name for entry in CATALOG.enabled.values() for name in entry.parameters} | {"user"}
    rules = [*data["auto"]["rule"], *data["advice"]["rule"]]
    assert set(data["auto"]["order"]) == variants
    assert {rule["better"] for rule in rules if "better" in rule} <= variants
    assert {name for rule in rules for key in ("given", "absent") for name in rule.get(key, [])} <= fields


@pytest.mark.parametrize(
    ("old", "new", "field"),
    [
        ("most = 3", "most = 0", "advice.most"),
        ("most = 3", 'most = 3\nleast = "1"', "advice.least"),
        ('code = "prefer_max"', 'code = "masks_elsewhere"', "advice"),
        ('code = "prefer_max"', 'code = "Prefer max"', "advice.rule.2.code"),
        ("min_words = 80", "min_wrods = 80", "advice.rule.3.min_wrods"),
        ("min_words = 80", 'min_words = "many"', "advice.rule.3.min_words"),
        ('variant = "pro"\n', 'variant = "prime"\n', "auto"),
        ('order = ["max", "pro", "dev"]', 'order = ["max", "pro", "dev", "pro"]', "auto"),
        ('because = "pro is enough for this prompt"', 'because = "x"\nmin_words = 3', "auto"),
        ('because = "a style preset was given"', "because = 'a \"preset\"'", "auto.rule.0.because"),
        ('given = ["style_preset"]', 'absent = ["style_preset"]', "auto"),
        ("keeps = [", "kepes = [", "changes.keeps"),
    ],
)
def test_a_mistake_in_the_file_is_refused_by_its_field(old: str, new: str, field: str) -> None:
    assert BUILT_IN.count(old) == 1
    with pytest.raises(ValueError, match=field.replace(".", r"\.")):
        load(BUILT_IN.replace(old, new))
