"""A picture that was made is not paid for again: by whom it may be had, for how long, and what is never served."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from tests.fleet import Fleet, fleet, wait_until
from tests.pipeline.calls import Answer, Policies, call, edit, generate, new_key, picture, rows
from tests.redis_server import RedisServer

NO_CACHE = {"Cache-Control": "no-cache"}
NO_STORE = {"Cache-Control": "no-store"}
ONLY = {"Cache-Control": "only-if-cached"}


def sources(*answers: Answer) -> list[str]:
    assert [answer.status for answer in answers] == [200] * len(answers), [answer.body for answer in answers]
    return [answer.source for answer in answers]


def total(running: Fleet, name: str, **labels: str) -> float:
    return sum(replica.total(f"kontext_gateway_{name}", **labels) for replica in running.replicas)


def test_a_hit_on_another_replica_is_the_same_picture_costs_nothing_and_counts_as_saved(
    running: Fleet, urls: tuple[str, str]
) -> None:
    _, token = new_key(running, "cached")
    first = generate(urls[0], token, seed=1, variant="max")
    before = running.stats()["received"]
    second = generate(urls[1], token, {"Accept": "application/json"}, seed=1, variant="max")
    assert second.json["source"] == "cache"
    assert second.json["cost"] == {"micro_usd": 0, "usd": "0.000000", "saved_micro_usd": 80_000}
    assert second.json["image"]["id"] == first.headers["gateway-image-id"]
    third = generate(urls[0], token, seed=1, variant="max")
    assert (third.body, third.headers["etag"]) == (first.body, first.headers["etag"])
    assert (first.headers["gateway-cost-usd"], third.headers["gateway-cost-usd"]) == ("0.080000", "0.000000")
    assert third.headers["gateway-job-id"] == first.headers["gateway-job-id"]
    assert running.stats()["received"] == before
    # A request is counted once its answer is out.
    wait_until(lambda: total(running, "images_total", tenant="cached", source="cache") == 2, 5)
    assert total(running, "cost_dollars_total", tenant="cached") == pytest.approx(0.08)
    assert total(running, "cost_saved_dollars_total", tenant="cached") == pytest.approx(0.16)
    assert total(running, "cache_requests_total", tenant="cached", result="hit") == 2


def test_an_edit_is_found_by_its_uploads_bytes(running: Fleet, urls: tuple[str, str]) -> None:
    _, token = new_key(running, "plain")
    one, two = {"image": picture((9, 9, 9))}, {"image": picture((9, 9, 10))}
    assert sources(
        edit(urls[0], token, one, seed="1"), edit(urls[1], token, one, seed="1"),
        edit(urls[1], token, two, seed="1"), edit(urls[1], token, one, seed="2"), edit(urls[0], token, two, seed="1"),
    ) == ["upstream", "cache", "upstream", "upstream", "cache"]  # fmt: skip


def test_a_request_without_a_seed_is_made_anew_and_can_be_had_again_by_the_seed_it_was_told(
    running: Fleet, urls: tuple[str, str]
) -> None:
    _, token = new_key(running, "plain")
    first, second = generate(urls[0], token, prompt="no seed"), generate(urls[0], token, prompt="no seed")
    assert first.headers["gateway-seed"] != second.headers["gateway-seed"]
    again = generate(urls[1], token, prompt="no seed", seed=int(first.headers["gateway-seed"]))
    assert sources(first, second, again) == ["upstream", "upstream", "cache"]
    assert again.body == first.body


def test_a_hit_needs_no_budget(running: Fleet, urls: tuple[str, str]) -> None:
    _, token = new_key(running, "poor")
    assert sources(generate(urls[0], token, seed=1)) == ["upstream"]
    assert generate(urls[0], token, seed=2).refusal == (402, "budget_exhausted", "no")
    assert sources(generate(urls[1], token, seed=1)) == ["cache"]


def test_no_cache_makes_a_new_picture_and_keeps_it(running: Fleet, urls: tuple[str, str]) -> None:
    _, token = new_key(running, "plain")
    answers = [generate(urls[0], token, headers, seed=31) for headers in ({}, NO_CACHE, {})]
    assert sources(*answers) == ["upstream", "upstream", "cache"]
    assert (
        answers[2].headers["gateway-job-id"]
        == answers[1].headers["gateway-job-id"]
        != answers[0].headers["gateway-job-id"]
    )


def test_no_store_reads_nothing_and_leaves_nothing(running: Fleet, urls: tuple[str, str]) -> None:
    _, token = new_key(running, "plain")
    answers = [generate(urls[0], token, NO_STORE, seed=32) for _ in range(2)]
    assert sources(*answers, generate(urls[1], token, seed=32)) == ["upstream"] * 3


def test_only_if_cached_never_sends_anything(running: Fleet, urls: tuple[str, str]) -> None:
    _, token = new_key(running, "plain")
    before, began = running.stats()["received"], time.monotonic()
    assert generate(urls[0], token, ONLY, seed=33).refusal == (504, "not_cached", "no")
    assert generate(urls[0], token, ONLY).refusal == (504, "not_cached", "no")
    assert time.monotonic() - began < 2
    assert running.stats()["received"] == before
    generate(urls[0], token, seed=33)
    assert sources(generate(urls[1], token, ONLY, seed=33)) == ["cache"]


def test_scope_off_serves_nothing_twice(running: Fleet, urls: tuple[str, str]) -> None:
    _, token = new_key(running, "uncached")
    answers = [generate(urls[0], token, seed=1) for _ in range(2)]
    assert sources(*answers) == ["upstream", "upstream"]
    assert generate(urls[0], token, ONLY, seed=1).code == "not_cached"
    # It was made for this caller, who may still claim it.
    assert call(urls[1], f"/v1/images/{answers[1].headers['gateway-image-id']}", token).body == answers[1].body


def test_a_result_is_forgotten_after_its_time(running: Fleet, urls: tuple[str, str]) -> None:
    _, token = new_key(running, "brief")
    assert sources(generate(urls[0], token, seed=1), generate(urls[0], token, seed=1)) == ["upstream", "cache"]
    time.sleep(1.2)
    assert sources(generate(urls[0], token, seed=1)) == ["upstream"]


def test_a_pool_is_shared_by_its_name_and_with_nobody_else(running: Fleet, urls: tuple[str, str]) -> None:
    names = ("pool-one", "pool-two", "pool-other", "plain", "cached")
    tokens = {name: new_key(running, name)[1] for name in names}
    answers = {name: generate(urls[0], token, seed=77) for name, token in tokens.items()}
    assert sources(*answers.values()) == ["upstream", "cache", "upstream", "upstream", "upstream"]
    assert total(running, "cost_dollars_total", tenant="pool-two") == 0
    image = answers["pool-one"].headers["gateway-image-id"]
    readable = {name: call(urls[1], f"/v1/images/{image}", token).status for name, token in tokens.items()}
    assert readable == {"pool-one": 200, "pool-two": 200, "pool-other": 404, "plain": 404, "cached": 404}


def test_no_tenant_is_ever_given_anothers_picture(running: Fleet, urls: tuple[str, str]) -> None:
    _, mine = new_key(running, "plain")
    _, others = new_key(running, "open")
    made = generate(urls[0], mine, seed=78, prompt="only mine")
    assert sources(made, generate(urls[0], others, seed=78, prompt="only mine")) == ["upstream", "upstream"]
    assert call(urls[0], f"/v1/images/{made.headers['gateway-image-id']}", others).refusal == (404, "not_found", "no")


@pytest.mark.parametrize("place", [0.0, 0.05, 0.3, 0.999])
def test_a_damaged_value_is_a_miss_and_never_served(running: Fleet, urls: tuple[str, str], place: float) -> None:
    _, token = new_key(running, "plain")
    seed = 1_000 + int(place * 1_000)
    first = generate(urls[0], token, seed=seed)
    client = running.redis
    name = f"kg:{{t:plain}}:result:{first.headers['gateway-image-id'][4:44]}"
    value: Any = client.get(name)
    at = int(place * (len(value) - 1))
    client.set(name, value[:at] + bytes((value[at] ^ 0x10,)) + value[at + 1 :])
    assert call(urls[0], f"/v1/images/{first.headers['gateway-image-id']}", token).status == 404
    again = generate(urls[1], token, seed=seed)
    assert sources(again) == ["upstream"]
    client.set(name, value[: len(value) // 2])
    assert sources(generate(urls[1], token, seed=seed)) == ["upstream"]
    assert sources(generate(urls[0], token, seed=seed)) == ["cache"]
    client.close()


def test_without_its_cache_the_gateway_goes_on_and_pays(tmp_path: Path) -> None:
    fast = ("--time-scale", "0.01", "--picture", "small")
    with (
        RedisServer(tmp_path / "cache") as cache,
        fleet(tmp_path, Policies({"acme": ""}).text, sandbox=fast, CACHE_REDIS_URL=cache.url) as running,
    ):
        url, (_, token) = running.replicas[0].url, new_key(running, "acme")
        assert sources(generate(url, token, seed=1), generate(url, token, seed=1)) == ["upstream", "cache"]
        ledger, kept = running.redis, cache.client()
        assert not [*ledger.scan_iter("*result*")]
        assert len([*kept.scan_iter("*result*")]) == 1
        kept.close()
        cache.kill()
        # A repeat is still answered: it was asked for a moment ago, and stays in the process for a few seconds.
        assert sources(generate(url, token, seed=1)) == ["cache"]
        answers = [generate(url, token, seed=2), generate(url, token, seed=2), generate(url, token)]
        assert sources(*answers) == ["upstream"] * 3
        assert running.bill()["jobs"] == 4
        assert sum(int(row["delta"]) for row in rows(running, "acme")) == 160_000
        assert generate(url, token, ONLY, seed=2).code == "not_cached"
        assert running.replicas[0].total("kontext_gateway_redis_errors_total") > 0
        ledger.close()
