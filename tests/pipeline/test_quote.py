"""A quote says what a call would be told and what it would cost, and spends nothing."""

from __future__ import annotations

import base64
import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.fleet import Fleet, wait_until
from tests.pipeline.calls import Answer, call, edit, generate, new_key, picture

JSON = {"Content-Type": "application/json"}
ADA = {"user": "ada"}


def quote(url: str, token: str, headers: dict[str, str] | None = None, **fields: Any) -> Answer:
    body = {"operation": "generate", "prompt": "a lighthouse at dawn"} | fields
    sent = json.dumps({name: value for name, value in body.items() if value is not None}).encode()
    return call(url, "/v1/quote", token, body=sent, headers=JSON | (headers or {}))


def told(answer: Answer) -> tuple[bool | None, bool, str]:
    """Whether it is cached, whether it is allowed, and the refusal's code."""
    assert answer.status == 200, answer.body
    found = answer.json
    assert found["allowed"] == ("error" not in found)
    return found["cached"], found["allowed"], found.get("error", {}).get("code", "")


def ledger(running: Fleet, tenant: str) -> dict[bytes, bytes | None]:
    """Everything in Redis that belongs to a tenant, but for its request rates."""
    client: Any = running.redis
    names = [name for name in client.scan_iter(f"kg:{{t:{tenant}}}:*", count=1_000) if b":rate:" not in name]
    found = {name: client.dump(name) for name in names}
    client.close()
    return found


def test_a_quote_says_price_policy_cache_and_what_is_left_and_spends_nothing(
    running: Fleet, urls: tuple[str, str]
) -> None:
    _, token = new_key(running, "quoted")
    assert generate(urls[0], token, seed=1, user="eve").status == 200
    before, received = ledger(running, "quoted"), running.stats()["received"]
    new = quote(urls[1], token, seed=2, safety_tolerance=1, **ADA)
    assert told(new) == (False, True, "")
    shown = new.json
    assert (shown["price"], shown["cost"]) == ({"micro_usd": 40_000, "usd": "0.040000"},) * 2
    assert (shown["object"], shown["operation"], shown["variant"]) == ("kontext.quote", "generate", "pro")
    assert shown["job_type"] == "inference.flux-kontext.pro.txt2img.v2"
    assert shown["safety"] == {"requested": 1, "applied": 1, "ceiling": 2, "action": "requested"}
    left = {(limit["level"], limit["kind"]): limit["remaining"] for limit in shown["limits"]}
    assert left == {("tenant", "budget"): "0.060000", ("user", "images"): 1}
    known = quote(urls[1], token, seed=1, user="eve")
    assert told(known) == (True, True, "")  # eve has no image left, and needs none
    assert known.json["cost"] == {"micro_usd": 0, "usd": "0.000000"}
    assert told(quote(urls[0], token, seed=3, user="eve")) == (False, False, "image_quota_exhausted")
    assert told(quote(urls[0], token, **ADA)) == (None, True, "")
    assert told(quote(urls[0], token, {"Cache-Control": "no-cache"}, seed=1, **ADA))[0] is False
    assert told(quote(urls[0], token, {"Cache-Control": "only-if-cached"}, seed=4, **ADA)) == (
        False,
        False,
        "not_cached",
    )
    assert ledger(running, "quoted") == before
    assert running.stats()["received"] == received


def test_what_policy_refuses_is_a_quote_with_the_error_inside(running: Fleet, urls: tuple[str, str]) -> None:
    _, token = new_key(running, "quoted")
    high = quote(urls[0], token, safety_tolerance=5, **ADA)
    assert told(high) == (None, False, "safety_ceiling")
    assert high.json["safety"] == {"requested": 5, "applied": None, "ceiling": 2, "action": "rejected"}
    real = generate(urls[0], token, safety_tolerance=5, **ADA).json
    same = {name: value for name, value in high.json["error"].items() if name != "request_id"}
    assert same == {name: value for name, value in real.items() if name != "request_id"}
    assert told(quote(urls[0], token, variant="max", **ADA)) == (None, False, "forbidden")
    dev = quote(urls[0], token, operation="edit", variant="dev", **ADA)
    assert (told(dev), dev.json["safety"]) == ((None, False, "forbidden"), None)


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"operation": None}, "operation"), ({"operation": "draw"}, "operation"),
        ({"operation": ["edit"]}, "operation"),
        ({"prompt": "x"}, "prompt"), ({"prompt": None}, "prompt"), ({"safety_tolerance": 7}, "safety_tolerance"),
        ({"variant": "ultra"}, "variant"), ({"image": {"b64": "AAAA"}}, "image"), ({"colour": "red"}, "colour"),
        ({"user": None}, "user"), ({"operation": "edit", "image": "no"}, "image"),
        ({"operation": "edit", "image": {"b64": "AAAA"}}, "image"),
    ],
)  # fmt: skip
def test_what_the_catalogue_refuses_is_refused_as_in_the_call(
    running: Fleet, urls: tuple[str, str], fields: dict[str, Any], field: str
) -> None:
    _, token = new_key(running, "quoted")
    answer = quote(urls[0], token, **{**ADA, **fields})
    assert answer.status in (415, 422)
    assert answer.json["field"] == field


def test_an_edit_is_quoted_with_and_without_its_image(running: Fleet, urls: tuple[str, str]) -> None:
    _, token = new_key(running, "plain")
    upload = picture((1, 2, 3))
    asked: dict[str, Any] = {"operation": "edit", "prompt": "make the sky stormy", "seed": 11}
    coded = {"image": {"b64": base64.b64encode(upload).decode()}}
    assert told(quote(urls[0], token, **asked)) == (None, True, "")
    assert told(quote(urls[0], token, **asked, **coded)) == (False, True, "")
    made = edit(urls[0], token, {"image": upload}, seed=11)
    assert made.status == 200
    assert told(quote(urls[1], token, **asked, **coded)) == (True, True, "")
    assert (
        told(quote(urls[1], token, **asked, image={"b64": base64.b64encode(picture((3, 2, 1))).decode()}))[0] is False
    )
    assert told(quote(urls[1], token, **asked, fit="strict", **coded))[0] is False
    boundary = "0123456789abcdef"
    part = f'--{boundary}\r\nContent-Disposition: form-data; name="%s"%s\r\n\r\n'
    form = "".join(part % (name, "") + f"{value}\r\n" for name, value in asked.items()).encode()
    form += (part % ("image", '; filename="x"')).encode() + upload + f"\r\n--{boundary}--\r\n".encode()
    kind = {"Content-Type": f"multipart/form-data; boundary={boundary}"}
    assert told(call(urls[0], "/v1/quote", token, body=form, headers=kind)) == (True, True, "")
    refused = call(urls[0], "/v1/quote", token, body=form.replace(b"\nedit\r", b"\ngenerate\r"), headers=kind)
    assert (refused.status, refused.json["field"]) == (422, "operation")
    wanted = {"image_id": made.headers["gateway-image-id"]}
    assert told(quote(urls[0], token, **asked, image=wanted))[0] is False
    _, other = new_key(running, "report-other")
    assert quote(urls[0], other, **asked, image=wanted).status == 404


def test_a_quote_is_refused_as_the_call_while_a_place_is_taken_and_when_the_budget_is_spent(
    running: Fleet, urls: tuple[str, str]
) -> None:
    _, token = new_key(running, "quoted")
    running.faults([{"kind": "slow", "count": 1, "options": {"after_seconds": 2}}])
    with ThreadPoolExecutor() as pool:
        held = pool.submit(generate, urls[0], token, seed=70, user="bob")
        wait_until(lambda: running.stats()["in_progress"] == 1, 10)
        busy = quote(urls[1], token, seed=71, **ADA)
        assert told(busy) == (False, False, "concurrency_limited")
        assert (busy.json["error"]["level"], busy.json["error"]["limit"]) == ("tenant", 1)
        assert held.result().status == 200
    running.faults([])
    spent = quote(urls[1], token, seed=72, **ADA)
    assert told(spent) == (False, False, "budget_exhausted")
    real = generate(urls[0], token, seed=72, **ADA)
    assert (real.status, spent.json["error"]["status"]) == (402, 402)
    assert {**spent.json["error"], "request_id": 0} == {**real.json, "request_id": 0}


def test_what_auto_would_pick_is_quoted_with_and_without_the_image(running: Fleet, urls: tuple[str, str]) -> None:
    _, token = new_key(running, "open")
    asked = {"operation": "edit", "variant": "auto", "prompt": "make the sky stormy and add a boat"}
    for more in ({}, {"image": {"b64": base64.b64encode(picture()).decode()}}):
        found = quote(urls[0], token, **asked, **more)
        assert told(found)[1] is True
        assert (found.json["variant"], found.json["price"]["micro_usd"]) == ("max", 80_000)
        assert found.json["auto"]["variant"] == "max"
        assert "2 independent changes" in found.json["auto"]["because"]
    assert quote(urls[0], new_key(running, "quoted")[1], **{**asked, "style_preset": "anime"}, **ADA).status == 403


def test_a_quote_costs_one_request_of_the_rate(running: Fleet, urls: tuple[str, str]) -> None:
    made = json.loads(
        running.command("keys", "create", "--tenant", "plain", "--name", "slow", "--rate", "2/1h", "--json")
    )
    answers = [quote(urls[0], made["token"], seed=1) for _ in range(3)]
    assert [answer.status for answer in answers] == [200, 200, 429]
