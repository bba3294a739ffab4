"""`variant: auto` over HTTP: the reply says what was picked and why, the money is that variant's, and pictures are
shared with requests that name it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path
from typing import Any

import pytest

from app.domain.tenant import KeyPolicy, parse_limits
from tests.fleet import Fleet, fleet
from tests.pipeline.calls import Answer, Policies, call, edit, generate, jobs, new_key, picture

TWO = "make the sky stormy and add a boat"
TENANTS = {
    "free": "safety: {edit: {ceiling: 1}, allow_without_knob: [dev]}",
    "held": "safety: {edit: {ceiling: 1}, mode: reject}",
    "tight": 'limits: {budgets: [{usd: "0.13", per: day}]}, safety: {allow_without_knob: [dev]}',
    "users": 'limits: {budgets: [{usd: "50.00", per: day}], per_user: {budgets: [{usd: "0.05", per: day}]}}',
    "plain": "",
}
AS_JSON = {"Accept": "application/json"}


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    folder: Path = tmp_path_factory.mktemp("auto")
    fast = ("--time-scale", "0", "--picture", "small")
    with fleet(folder, Policies(dict(TENANTS)).text, replicas=1, sandbox=fast) as found:
        yield found


@pytest.fixture
def url(running: Fleet) -> str:
    return running.replicas[0].url


def auto(url: str, token: str, headers: dict[str, str] | None = None, **fields: Any) -> Answer:
    return edit(url, token, {"image": picture()}, headers, variant="auto", **fields)


def test_the_reply_says_what_was_picked_and_why(running: Fleet, url: str) -> None:
    token = new_key(running, "free")[1]
    answer = auto(url, token, AS_JSON, prompt=TWO)
    assert answer.json["auto"] == {"variant": "max", "because": "the prompt asks for 2 independent changes"}
    assert (answer.json["variant"], answer.json["cost"]["usd"]) == ("max", "0.080000")
    styled = auto(url, token, prompt=TWO, style_preset="anime")
    assert styled.headers["gateway-auto"] == 'dev; because="a style preset was given"'
    assert (styled.headers["gateway-variant"], styled.headers["gateway-cost-usd"]) == ("dev", "0.025000")
    plain = generate(url, token, {}, variant="auto")
    assert plain.headers["gateway-auto"] == 'pro; because="pro is enough for this prompt"'
    assert [job["type"].split(".")[2] for job in jobs(running)[-3:]] == ["max", "dev-kontext", "pro"]
    assert "gateway-auto" not in generate(url, token, {}).headers
    assert "auto" not in generate(url, token, AS_JSON).json


def test_the_json_body_may_say_auto_too(running: Fleet, url: str) -> None:
    token = new_key(running, "plain")[1]
    made = generate(url, token, AS_JSON, prompt="a boat", variant="auto")
    body = {"prompt": TWO, "variant": "auto", "image": {"image_id": made.json["image"]["id"]}}
    headers = {"Content-Type": "application/json", **AS_JSON}
    answer = call(url, "/v1/edit", token, body=json.dumps(body).encode(), headers=headers)
    assert (answer.status, answer.json["auto"]["variant"]) == (200, "max")


def test_a_request_by_name_and_one_by_auto_share_the_picture(running: Fleet, url: str) -> None:
    token = new_key(running, "free")[1]
    first = auto(url, token, prompt=TWO, seed=5)
    named = edit(url, token, {"image": picture()}, prompt=TWO, seed=5, variant="max")
    again = auto(url, token, AS_JSON, prompt=TWO, seed=5)
    assert (first.source, named.source, again.json["source"]) == ("upstream", "cache", "cache")
    assert first.headers["gateway-image-id"] == named.headers["gateway-image-id"] == again.json["image"]["id"]
    assert again.json["auto"]["variant"] == "max"


def test_a_ceiling_that_dev_cannot_hold_is_not_passed_by_auto(running: Fleet, url: str) -> None:
    token = new_key(running, "held")[1]
    before = running.stats()["received"]
    assert auto(url, token, style_preset="anime").refusal == (403, "safety_ceiling", "no")
    assert auto(url, token, safety_tolerance=2).refusal == (403, "safety_ceiling", "no")
    assert running.stats()["received"] == before
    assert auto(url, token, AS_JSON).json["safety"]["applied"] == 1


def test_fields_that_exclude_each_other_are_a_422_that_names_them(running: Fleet, url: str) -> None:
    token = new_key(running, "free")[1]
    answer = auto(url, token, style_preset="anime", aspect_ratio="1:1")
    assert answer.refusal == (422, "invalid_request", "no")
    assert answer.json["fields"] == {"style_preset": ["dev"], "aspect_ratio": ["pro", "max"]}
    assert generate(url, token, {}, variant="auto", steps=3).json["field"] == "steps"


def test_as_the_budget_goes_auto_falls_back_and_never_passes_the_cap(running: Fleet, url: str) -> None:
    """$0.13: max at 0.08, pro at 0.04, and then nothing is left, though the cache still gives."""
    token = new_key(running, "tight")[1]
    found = [auto(url, token, AS_JSON, prompt=TWO, seed=seed) for seed in (1, 2, 3)]
    assert [answer.json.get("variant") for answer in found] == ["max", "pro", None]
    told = "the prompt asks for 2 independent changes; what is left of the budget does not pay for max"
    assert found[1].json["auto"]["because"] == told
    assert found[2].refusal == (402, "budget_exhausted", "no")
    assert auto(url, token, AS_JSON, prompt=TWO, seed=1).json["source"] == "cache"
    (cap,) = call(url, "/v1/me", token).json["limits"]
    assert (cap["spent"], cap["reserved"]) == ("0.120000", "0.000000")


def test_the_budget_of_the_end_user_counts(running: Fleet, url: str) -> None:
    token = new_key(running, "users")[1]
    assert auto(url, token, AS_JSON, prompt=TWO, user="ada").json["variant"] == "pro"
    assert auto(url, token, AS_JSON, prompt=TWO, user="ada").code == "budget_exhausted"
    assert auto(url, token, AS_JSON, prompt=TWO, user="eve").json["variant"] == "pro"
    assert auto(url, token, prompt=TWO).json["field"] == "user"


def test_only_auto_costs_a_further_look_at_the_ledger(running: Fleet, url: str) -> None:
    """What the ledger is asked about a key's own budget: a request by name reads no counters, nor does one that leaves
    no choice."""
    policy = KeyPolicy(parse_limits(requests=None, images=(), concurrency=None, budgets=("5.00/day",)), None, None)
    key_id, token = new_key(running, "free", policy=policy)

    def reads(**fields: Any) -> int:
        with running.redis.monitor() as watched:
            assert edit(url, token, {"image": picture()}, **fields).status == 200
            running.redis.ping()
            seen = iter(watched.next_command, None)
            asked = list(takewhile(lambda one: one["command"] != "PING", seen))
        outside = [one["command"] for one in asked if one["client_type"] != "lua"]
        assert any(key_id in command for command in outside)
        return sum(command.startswith("HMGET") and f":{key_id}:" in command for command in outside)

    assert reads(variant="pro") == 0
    assert reads(variant="auto") == 1
    assert reads(variant="auto", style_preset="anime") == 0  # dev alone has the field


def test_advice_is_in_json_replies_alone_and_holds_nothing_of_the_prompt(running: Fleet, url: str) -> None:
    token = new_key(running, "plain")[1]
    answer = generate(url, token, AS_JSON, prompt="photorealistic zebra", user="u-17")
    assert [sentence.partition(":")[0] for sentence in answer.json["advice"]] == [
        "safety_for_end_users",
        "photorealism_elsewhere",
        "upsample_short_prompts",
    ]
    assert "zebra" not in json.dumps(answer.json)
    assert "u-17" not in json.dumps(answer.json)
    assert not any("advice" in name for name in generate(url, token, {}, prompt="photorealistic zebra").headers)
