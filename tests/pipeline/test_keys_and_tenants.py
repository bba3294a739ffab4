"""Keys and tenants while the gateway runs: a change holds at the next request everywhere, and Redis keeps no secret."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import pytest

from app.domain import tokens
from app.domain.tenant import KeyPolicy, Limits, parse_budget
from tests.fleet import Fleet, wait_until
from tests.pipeline.calls import Answer, Policies, call, generate, keyring, new_key, rows

REFUSED = (401, "unauthenticated", "no")


def on_all(urls: tuple[str, str], ask: Callable[[str], Answer]) -> list[tuple[int, str]]:
    """Status and code on each replica, one after the other."""
    return [(answer.status, answer.code) for answer in map(ask, urls)]


def me(token: str) -> Callable[[str], Answer]:
    return lambda url: call(url, "/v1/me", token)


def test_a_revoked_key_is_refused_by_every_process_at_the_next_request(running: Fleet, urls: tuple[str, str]) -> None:
    for _ in range(3):
        key_id, token = new_key(running, "keys")
        assert on_all(urls, me(token)) == [(200, "ok")] * 2
        keyring(running, lambda ring, key_id=key_id: ring.revoke("keys", key_id))  # type: ignore[misc]
        assert on_all(urls, me(token)) == [(401, "unauthenticated")] * 2
        assert generate(urls[1], token).refusal == REFUSED


def test_a_revoked_keys_signed_links_end_with_it(running: Fleet, urls: tuple[str, str]) -> None:
    key_id, token = new_key(running, "keys")
    link = generate(urls[0], token, {"Accept": "application/json"}, seed=5).json["image"]["url"]
    _, other = new_key(running, "keys")
    again = generate(urls[0], other, {"Accept": "application/json"}, seed=5).json["image"]["url"]

    def open_link(url: str, path: str) -> int:
        import urllib.error
        import urllib.request

        try:
            with urllib.request.urlopen(url + path, timeout=10) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            error.close()
            return error.code

    assert [open_link(url, link) for url in urls] == [200, 200]
    keyring(running, lambda ring: ring.revoke("keys", key_id))
    assert [open_link(url, link) for url in urls] == [404, 404]
    assert [open_link(url, again) for url in urls] == [200, 200]
    assert open_link(urls[0], link.replace("t=keys", "t=plain")) == 404


def test_a_suspended_tenant_is_refused_by_every_process_at_the_next_request(
    running: Fleet, urls: tuple[str, str], policies: Policies
) -> None:
    _, token = new_key(running, "suspended")
    for _ in range(5):
        policies.set("suspended", "suspended: true")
        assert on_all(urls, me(token)) == [(403, "forbidden")] * 2
        policies.set("suspended", "suspended: false")
        assert on_all(urls, me(token)) == [(200, "ok")] * 2


def test_a_refusal_by_rate_is_counted_for_its_tenant_and_a_key_that_is_not_valid_for_nobody(
    running: Fleet, urls: tuple[str, str]
) -> None:
    """Also in the log; keys that are unknown, revoked, or of a tenant that is not configured name nobody."""
    key_id, token = new_key(running, "hasty")
    revoked_id, revoked = new_key(running, "keys")
    keyring(running, lambda ring: ring.revoke("keys", revoked_id))
    _, foreign = new_key(running, "nobody")
    replica = running.replicas[0]
    before = replica.total("kontext_gateway_rejections_total")
    strangers = [call(urls[0], "/v1/me", stranger) for stranger in (tokens.mint(), revoked, foreign, "kgw_live_short")]
    assert [answer.code for answer in strangers] == [
        "unauthenticated",
        "unauthenticated",
        "forbidden",
        "unauthenticated",
    ]
    assert replica.total("kontext_gateway_rejections_total") == before
    answers = [call(urls[0], "/v1/me", token), call(urls[0], "/v1/me", token), generate(urls[0], token)]
    assert [answer.code for answer in answers] == ["ok", "rate_limited", "rate_limited"]
    assert answers[2].headers["ratelimit"].startswith('"requests";r=0;')
    assert replica.total("kontext_gateway_rejections_total", tenant="hasty", reason="rate_limited") == 2
    assert replica.total("kontext_gateway_rejections_total") == before + 2
    lines = {line.get("request_id"): line for line in map(json.loads, replica.log.read_text().splitlines())}
    told = [lines[answer.headers["x-request-id"]] for answer in (*answers, *strangers)]
    assert [(line.get("tenant"), line.get("key_id")) for line in told] == [("hasty", key_id)] * 3 + [(None, None)] * 4


def test_a_changed_policy_holds_at_the_next_request(running: Fleet, urls: tuple[str, str], policies: Policies) -> None:
    _, token = new_key(running, "changing")
    for ceiling in (3, 0, 2, 1):
        policies.set("changing", f"safety: {{generate: {{ceiling: {ceiling}}}}}")
        for url in urls:
            answer = generate(url, token, {"Cache-Control": "no-store"}, safety_tolerance=6)
            assert answer.headers["gateway-safety"] == f"applied={ceiling}, ceiling={ceiling}, requested=6"
    policies.set("changing", "safety: {generate: {ceiling: 1}, mode: reject}")
    assert on_all(urls, lambda url: generate(url, token, safety_tolerance=6)) == [(403, "safety_ceiling")] * 2
    policies.set("changing", "variants: {generate: [max]}")
    assert on_all(urls, lambda url: generate(url, token)) == [(403, "forbidden")] * 2
    policies.set("changing", "limits: {requests: {rate: 1/1h}}")
    assert [generate(url, token).code for url in (*urls, *urls)] == ["ok", *["rate_limited"] * 3]


def test_a_removed_tenants_keys_open_nothing_until_it_is_back(
    running: Fleet, urls: tuple[str, str], policies: Policies
) -> None:
    _, token = new_key(running, "changing")
    block = policies.blocks.pop("changing")
    running.tenants(policies.text)
    assert on_all(urls, me(token)) == [(403, "forbidden")] * 2
    policies.set("changing", block)
    policies.set("changing", "")
    assert on_all(urls, me(token)) == [(200, "ok")] * 2


def test_a_bad_file_leaves_the_old_one_in_force_and_says_so(
    running: Fleet, urls: tuple[str, str], policies: Policies
) -> None:
    _, token = new_key(running, "changing")
    metric = "kontext_gateway_config_last_reload_successful"
    policies.set("changing", "safety: {generate: {ceiling: 1}}")
    assert on_all(urls, me(token)) == [(200, "ok")] * 2
    for wrong in (
        "safety: {generate: {ceiling: 7}}",
        "suspended: yes",
        "nonsense: 1",
        "limits: {budgets: [{usd: 5.00, per: day}]}",
    ):
        policies.set("changing", wrong)
        for replica in running.replicas:
            assert generate(replica.url, token, safety_tolerance=6).headers["gateway-safety"].startswith("applied=1,")
            assert replica.total(metric) == 0
    running.tenants("version: 1\ntenants:\n  chan")
    assert [generate(url, token).status for url in urls] == [200, 200]
    policies.set("changing", "safety: {generate: {ceiling: 2}}")
    for replica in running.replicas:
        assert generate(replica.url, token, safety_tolerance=6).headers["gateway-safety"].startswith("applied=2,")
        assert replica.total(metric) == 1


def test_a_file_that_is_gone_leaves_the_old_one_in_force_and_says_so(
    running: Fleet, urls: tuple[str, str], policies: Policies
) -> None:
    _, token = new_key(running, "plain")
    file = running.folder / "tenants.yaml"
    file.rename(running.folder / "tenants.gone")
    assert on_all(urls, me(token)) == [(200, "ok")] * 2
    assert [replica.total("kontext_gateway_config_last_reload_successful") for replica in running.replicas] == [0, 0]
    (running.folder / "tenants.gone").rename(file)
    assert on_all(urls, me(token)) == [(200, "ok")] * 2
    assert [replica.total("kontext_gateway_config_last_reload_successful") for replica in running.replicas] == [1, 1]


def key_spend(url: str, token: str) -> int:
    (level,) = (cap for cap in call(url, "/v1/me", token).json["limits"] if cap["level"] == "key")
    return int(level["spent_micro_usd"])


def test_rotation_keeps_the_spend_and_both_tokens_work_until_the_overlap_ends(
    running: Fleet, urls: tuple[str, str]
) -> None:
    key_id, old = new_key(running, "keys", policy=KeyPolicy(Limits(budgets=(parse_budget("0.12/day"),))))
    store = {"Cache-Control": "no-store"}
    assert generate(urls[0], old, store).status == 200
    new: str = keyring(running, lambda ring: ring.rotate("keys", key_id, overlap=2))
    rotated = time.time()
    assert new != old
    assert [generate(urls[1], old, store).code, generate(urls[0], new, store).code] == ["ok", "ok"]
    assert key_spend(urls[0], new) == key_spend(urls[1], old) == 120_000
    assert generate(urls[0], new, store).refusal == (402, "budget_exhausted", "no")
    wait_until(lambda: call(urls[0], "/v1/me", old).status == 401, 4)
    assert 0.9 < time.time() - rotated < 3.5
    assert on_all(urls, me(old)) == [(401, "unauthenticated")] * 2
    assert on_all(urls, me(new)) == [(200, "ok")] * 2


def test_a_rotation_without_overlap_ends_the_old_token_at_once(running: Fleet, urls: tuple[str, str]) -> None:
    key_id, old = new_key(running, "keys")
    assert on_all(urls, me(old)) == [(200, "ok")] * 2
    new: str = keyring(running, lambda ring: ring.rotate("keys", key_id, overlap=0))
    assert on_all(urls, me(old)) == [(401, "unauthenticated")] * 2
    assert on_all(urls, me(new)) == [(200, "ok")] * 2


def test_a_key_expires_by_itself(running: Fleet, urls: tuple[str, str]) -> None:
    _, token = new_key(running, "keys", expires=int(time.time()) + 2)
    assert on_all(urls, me(token)) == [(200, "ok")] * 2
    wait_until(lambda: call(urls[0], "/v1/me", token).status == 401, 4)
    assert on_all(urls, me(token)) == [(401, "unauthenticated")] * 2


def test_a_key_is_held_to_its_own_operations_and_variants(running: Fleet, urls: tuple[str, str]) -> None:
    _, token = new_key(running, "keys", policy=KeyPolicy(variants=("max",), operations=("generate",)))
    assert generate(urls[0], token).refusal == (403, "forbidden", "no")
    assert generate(urls[0], token, variant="max").status == 200
    assert call(urls[1], "/v1/me", token).json["variants"] == {"generate": ["max"], "edit": []}


@pytest.mark.parametrize("token", ["", "x", "kgw_live_" + "0" * 38, "Bearer", "sk-" + "a" * 40])
def test_what_is_no_key_is_refused(running: Fleet, urls: tuple[str, str], token: str) -> None:
    answer = call(urls[0], "/v1/me", token)
    assert answer.refusal == REFUSED
    assert answer.headers["www-authenticate"] == "Bearer"


def test_a_well_formed_key_that_nobody_made_is_refused(running: Fleet, urls: tuple[str, str]) -> None:
    from app.domain.tokens import mint

    assert on_all(urls, me(mint())) == [(401, "unauthenticated")] * 2


def test_redis_holds_no_key_no_prompt_and_no_users_name_in_a_key(running: Fleet, urls: tuple[str, str]) -> None:
    secret, user = "zanzibar-moonrise-campaign", "user-quetzalcoatl"
    key_id, first = new_key(running, "private")
    second: str = keyring(running, lambda ring: ring.rotate("private", key_id, overlap=60))
    for seed, headers in ((1, {}), (1, {}), (2, {"Cache-Control": "no-store"})):
        assert generate(urls[0], second, headers, prompt=secret, seed=seed, user=user, tags=["tag-one"]).status == 200
    running.faults([{"kind": "failed", "count": 1, "options": {"text": f"cannot draw {secret}"}}])
    assert generate(urls[1], first, prompt=secret + " again", user=user).status == 502
    running.faults([])
    client: Any = running.redis
    names = [name for name in client.scan_iter("*", count=1_000) if b"private" in name or b"token" in name]
    assert len(names) > 8
    hidden = [text.encode() for text in (secret, first, second, first[9:41], second[9:41])]
    for name in names:
        assert not any(text in name for text in [*hidden, user.encode()])
        assert not any(text in value for text in hidden for value in values(client, name)), name
    assert {row["user"] for row in rows(running, "private")} == {user}
    client.close()
    logs = "".join(replica.log.read_text() for replica in running.replicas)
    assert not any(text in logs for text in (secret, first, second, user))


def values(client: Any, name: bytes) -> list[bytes]:
    """Everything that is stored under a name, as bytes."""
    match client.type(name):
        case b"string":
            return [client.get(name) or b""]
        case b"hash":
            return [part for pair in client.hgetall(name).items() for part in pair]
        case b"set":
            return list(client.smembers(name))
        case b"zset":
            return list(client.zrange(name, 0, -1))
        case b"stream":
            return [part for _, row in client.xrange(name) for pair in row.items() for part in pair]
    raise AssertionError(client.type(name))
