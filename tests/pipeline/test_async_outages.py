"""Calls that wait for a queued job while a Redis role is away: what they are told of the money is true."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from app.domain.ids import as_uuid
from tests.faults.proxy import CALM, DOWN, Proxy, Weather, weathered
from tests.fleet import Fleet, fleet, wait_until
from tests.pipeline.calls import Answer, Policies, call, generate, new_key
from tests.pipeline.queued import ASYNC, end, slow
from tests.surfaces.jobs import GENERATE, body, post

FAST = ("--time-scale", "0.01", "--picture", "small")


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Fleet, Proxy, Proxy]]:
    """A replica, and what lies between it and its ledger and its cache."""
    with (
        fleet(tmp_path_factory.mktemp("outages"), Policies({"acme": ""}).text, replicas=0, sandbox=FAST) as found,
        weathered(found.redis_url) as ledger,
        weathered(found.redis_url) as cache,
    ):
        found.start(REDIS_URL=ledger.at, CACHE_REDIS_URL=cache.at)
        yield found, ledger, cache


def test_a_ledger_that_is_away_for_a_moment_delays_the_answer(running: tuple[Fleet, Proxy, Proxy]) -> None:
    """A client that is told `charged: no` of a job that lives asks again, and pays twice."""
    found, ledger, _ = running
    with _waiting(found, "wait=20", seed=20) as asked:
        ledger.set(DOWN)
        time.sleep(0.5)  # a waiting call looks every quarter of a second
        ledger.set(CALM)
    assert (asked.result().status, asked.result().source) == (200, "upstream")


def test_a_ledger_that_is_away_until_the_wait_is_over_leaves_the_caller_with_its_job(
    running: tuple[Fleet, Proxy, Proxy],
) -> None:
    found, ledger, _ = running
    with _waiting(found, "wait=2", seed=2) as asked:
        ledger.set(DOWN)
        try:
            answer = asked.result()
        finally:
            ledger.set(CALM)
    assert (answer.status, answer.json["state"], answer.json["charged"]) == (202, "queued", "unknown")
    assert answer.headers["location"] == f"/v1/jobs/{answer.json['id']}"
    token = new_key(found, "acme")[1]
    wait_until(lambda: generate(found.urls[0], token, ASYNC, seed=1).status == 202, 20)


def test_a_job_that_was_queued_without_a_reply_is_named_and_not_said_to_cost_nothing(
    running: tuple[Fleet, Proxy, Proxy],
) -> None:
    """Another replica may send it before it is taken out again."""
    found, ledger, _ = running
    other, (_, token) = found.start(), new_key(found, "acme")
    generate(found.urls[0], token, seed=40)
    ledger.set(Weather(drop_reply=1.0, only=b'"queue":{"job"'))
    name = ASYNC | {"Idempotency-Key": "unheard"}
    answer = generate(found.urls[0], token, name, seed=41)
    ledger.set(DOWN)
    try:
        assert answer.refusal == (503, "ledger_unavailable", "unknown")
        assert "retry-after" not in answer.headers
        repeat = generate(other.url, token, name, seed=41)
        assert (repeat.status, repeat.json["id"]) == (202, answer.json["job"])
        assert end(other.url, token, answer.json["job"])["charged"] == "yes"
    finally:
        ledger.set(CALM)
        other.stop()


def test_in_prodias_words_too_a_job_is_named_that_may_be_queued(running: tuple[Fleet, Proxy, Proxy]) -> None:
    """With the id that its reads take, and with a status that no client sends again."""
    found, ledger, _ = running
    other, (_, token) = found.start(), new_key(found, "acme")
    generate(found.urls[0], token, seed=50)
    ledger.set(Weather(drop_reply=1.0, only=b'"queue":{"job"'))
    answer = post(found.urls[0], token, body(GENERATE, seed=51), target="/v2/job/async")
    ledger.set(DOWN)
    try:
        gateway = answer.document["gateway"]
        assert (answer.status, gateway["code"], gateway["charged"]) == (400, "ledger_unavailable", "unknown")
        assert answer.document["id"] == as_uuid(gateway["job"])
        assert end(other.url, token, gateway["job"])["charged"] == "yes"
        state = call(other.url, f"/v2/job/async/{answer.document['id']}/job.state.current", token)
        assert state.body == b"processed"
    finally:
        ledger.set(CALM)
        other.stop()


def test_in_prodias_words_too_a_job_is_there_though_the_ledger_went_away_since(
    running: tuple[Fleet, Proxy, Proxy],
) -> None:
    found, ledger, _ = running
    token = new_key(found, "acme")[1]
    wait_until(lambda: generate(found.urls[0], token, seed=60).status == 200, 20)
    ledger.set(Weather(drop_reply=1.0, only=b"ticket\r\n$4\r\necho\r\n"))  # the look at a job that was just queued
    try:
        answer = post(found.urls[0], token, body(GENERATE, seed=61), target="/v2/job/async")
    finally:
        ledger.set(CALM)
    told = answer.document
    assert (answer.status, told["state"]["current"], told["gateway"]["charged"]) == (201, "processing", "unknown")
    assert told["id"] == as_uuid(told["gateway"]["id"])
    wait_until(lambda: generate(found.urls[0], token, seed=60).status == 200, 20)
    assert end(found.urls[0], token, told["gateway"]["id"])["charged"] == "yes"


@contextmanager
def _waiting(found: Fleet, wish: str, *, seed: int) -> Iterator[Future[Answer]]:
    """A call that waits, while its job is at the upstream."""
    before, token = found.stats()["received"], new_key(found, "acme")[1]
    slow(found, 3)
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(generate, found.urls[0], token, {"Prefer": wish}, seed=seed)
        wait_until(lambda: found.stats()["received"] == before + 1, 10)
        yield asked


def test_a_picture_that_could_not_be_kept_is_told_of_with_what_it_cost(running: tuple[Fleet, Proxy, Proxy]) -> None:
    """Not a 404 that cost nothing."""
    found, _, cache = running
    token, url = new_key(found, "acme")[1], found.urls[0]
    cache.set(DOWN)
    try:
        assert generate(url, token, {"Prefer": "wait=30"}, seed=30).refusal == (410, "idempotency_gone", "yes")
        told = end(url, token, generate(url, token, ASYNC, seed=31).json["id"])
    finally:
        cache.set(CALM)
    assert (told["state"], told["charged"], told["image"], told["image_unavailable"]) == (
        "succeeded",
        "yes",
        None,
        True,
    )
