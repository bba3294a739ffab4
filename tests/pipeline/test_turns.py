"""A limited upstream is shared fairly by tenants over all replicas, and left alone while it is busy or broken."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.fleet import Fleet, fleet, get_json, wait_until
from tests.pipeline.calls import Answer, Policies, edit, generate, jobs, new_key, picture, together

WIDTH = 4
PRO = "inference.flux-kontext.pro.txt2img.v2"
MAX_CAP = """
[[job]]
type = "inference.flux-kontext.max.txt2img.v2"
variant = "max"
operation = "generate"
price_usd = "0.08"
typical_seconds = 7
concurrency = 2
[job.parameters]
prompt = { kind = "string", required = true, min_length = 3, max_length = 4096 }
aspect_ratio = { kind = "ratio", default = "1:1" }
prompt_upsampling = { kind = "boolean", default = false }
safety_tolerance = { kind = "integer", role = "safety", minimum = 0, maximum = 6, default = 4 }
seed = { kind = "integer", role = "seed", minimum = 0, maximum = 9007199254740991 }
"""


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """Two replicas, four slots, jobs of about 0.12 s."""
    folder = tmp_path_factory.mktemp("turns")
    (folder / "catalog.toml").write_text(MAX_CAP)
    blocks = {"one": "weight: 1", "three": "weight: 3", "lonely": "", "busy": "", "wrong": "", "spare": ""}
    narrow: dict[str, Any] = {
        "GATEWAY_UPSTREAM_CONCURRENCY": str(WIDTH),
        "GATEWAY_CATALOG_FILE": str(folder / "catalog.toml"),
    }
    speed = ("--time-scale", "0.02", "--picture", "small")
    with fleet(folder, Policies(blocks).text, replicas=2, sandbox=speed, **narrow) as found:
        yield found


@pytest.fixture(autouse=True)
def _fresh(request: pytest.FixtureRequest) -> Iterator[None]:
    """Each test finds an upstream at rest, without faults, and gates that remember nothing."""
    yield
    if "shared" in request.fixturenames:
        found: Fleet = request.getfixturevalue("shared")
        found.faults([])
        wait_until(lambda: found.stats()["in_progress"] == 0, 20)
        client = found.redis
        client.delete("kg:{up}:gates")
        client.close()
        get_json(found.upstream + "/sandbox/reset", data={}, method="POST")


def backlog(running: Fleet, token: str, count: int, **fields: Any) -> list[partial[Answer]]:
    urls = [replica.url for replica in running.replicas]
    return [partial(generate, urls[number % len(urls)], token, **fields) for number in range(count)]


def test_the_fleet_never_has_more_jobs_at_the_upstream_than_the_setting_says(shared: Fleet) -> None:
    _, token = new_key(shared, "lonely")
    answers = together(backlog(shared, token, 40))
    assert {answer.status for answer in answers} == {200}
    assert shared.stats()["peak_in_progress"] == WIDTH  # and an idle share is lent: one tenant has all of it


def test_tenants_with_deep_backlogs_share_by_weight(shared: Fleet) -> None:
    light, heavy = new_key(shared, "one")[1], new_key(shared, "three")[1]
    work = [
        call
        for pair in zip(
            backlog(shared, light, 48, prompt="light"), backlog(shared, heavy, 48, prompt="heavy"), strict=True
        )
        for call in pair
    ]
    with ThreadPoolExecutor(len(work)) as pool:
        futures = [pool.submit(one) for one in work]
        wait_until(lambda: shared.stats()["completed"] >= 48, 30)
        first = [row["config"]["prompt"]["sha256"] for row in jobs(shared)][:48]
        assert {future.result().status for future in futures} == {200}
    counts = Counter(first)
    (many, few) = (count for _, count in counts.most_common(2))
    assert 2.0 < many / few < 4.5, counts
    assert shared.stats()["peak_in_progress"] <= WIDTH


def test_a_latecomer_does_not_wait_for_the_whole_backlog_of_another(shared: Fleet) -> None:
    deep, late = new_key(shared, "busy")[1], new_key(shared, "spare")[1]
    with ThreadPoolExecutor(60) as pool:
        futures = [pool.submit(one) for one in backlog(shared, deep, 56)]
        wait_until(lambda: shared.stats()["received"] >= WIDTH, 10)
        began = time.monotonic()
        assert generate(shared.replicas[1].url, late).status == 200
        waited = time.monotonic() - began
        left = sum(not future.done() for future in futures)
        assert {future.result().status for future in futures} == {200}
    assert left > 20, (left, waited)


def test_a_types_own_concurrency_holds_over_the_fleet(shared: Fleet) -> None:
    _, token = new_key(shared, "lonely")
    peaks: list[int] = []
    with ThreadPoolExecutor(40) as pool:
        futures = [pool.submit(one) for one in backlog(shared, token, 16, variant="max")]
        while not all(future.done() for future in futures):
            peaks.append(shared.stats()["in_progress"])
            time.sleep(0.01)
    assert {future.result().status for future in futures} == {200}
    assert shared.stats()["peak_in_progress"] == 2, max(peaks)
    mixed = together([*backlog(shared, token, 12, variant="max"), *backlog(shared, token, 12)])
    assert {answer.status for answer in mixed} == {200}
    assert shared.stats()["peak_in_progress"] == WIDTH


def test_a_429_pauses_its_type_on_both_replicas_and_no_other(shared: Fleet) -> None:
    _, token = new_key(shared, "lonely")
    first, second = (replica.url for replica in shared.replicas)
    shared.faults([{"kind": "busy", "job_type": PRO, "count": 1, "options": {"retry_after": 2}}])
    with ThreadPoolExecutor() as pool:
        began = time.monotonic()
        told = pool.submit(generate, first, token, seed=91)
        wait_until(lambda: shared.stats()["by_fault"].get("busy") == 1, 10)
        other = pool.submit(generate, second, token, seed=92)
        free = generate(second, token, variant="max")
        assert time.monotonic() - began < 1.5
        assert (free.status, told.done(), other.done()) == (200, False, False)
        assert [told.result().status, other.result().status] == [200, 200]
    assert time.monotonic() - began > 1.8
    after = [row["at"] for row in jobs(shared) if row["type"] == PRO]
    assert len(after) == 3
    assert min(after[1:]) - after[0] > 1.8
    assert (
        sum(replica.total("kontext_gateway_upstream_retries_total", reason="busy") for replica in shared.replicas) == 1
    )


def breaker(running: Fleet, job_type: str = PRO) -> set[tuple[str, ...]]:
    """The breaker's state as each replica shows it."""
    states = ("closed", "open", "half_open")
    name = "kontext_gateway_upstream_breaker_state"
    return {tuple(s for s in states if replica.total(name, job_type=job_type, state=s)) for replica in running.replicas}


def test_a_broken_upstream_opens_the_breaker_one_probe_tries_it_and_it_closes(shared: Fleet) -> None:
    _, token = new_key(shared, "lonely")
    urls = [replica.url for replica in shared.replicas]
    assert breaker(shared) == {("closed",)}
    shared.faults([{"kind": "error", "job_type": PRO, "options": {"status": 500}}])
    for number in range(10):
        answer = generate(urls[number % 2], token)
        assert (answer.status, answer.code) == (502, "upstream_failed")
    assert breaker(shared) == {("open",)}
    before = shared.stats()["received"]
    began = time.monotonic()
    for url in urls:
        answer = generate(url, token)
        assert answer.refusal == (503, "upstream_unavailable", "no")
        assert 1 <= int(answer.headers["retry-after"]) <= 5
    assert time.monotonic() - began < 1
    assert shared.stats()["received"] == before
    assert generate(urls[0], token, variant="max").status == 200
    shared.faults([{"kind": "slow", "job_type": PRO, "count": 1, "options": {"after_seconds": 1}}])
    wait_until(lambda: breaker(shared) == {("half_open",)}, 8)
    before = shared.stats()["received"]
    answers = together(backlog(shared, token, 12))
    assert Counter(answer.code for answer in answers) == {"ok": 1, "upstream_unavailable": 11}
    assert shared.stats()["received"] == before + 1
    assert breaker(shared) == {("closed",)}
    assert {answer.status for answer in together(backlog(shared, token, 8))} == {200}


def test_a_tenants_own_mistakes_never_open_it(shared: Fleet) -> None:
    _, token = new_key(shared, "wrong")
    for kind in ("failed", "moderated_prompt", "moderated_output"):
        shared.faults([{"kind": kind, "options": {"after_seconds": 0}}])
        statuses = {answer.status for answer in together(backlog(shared, token, 15))}
        assert statuses == {502} if kind == "failed" else {422}
    assert breaker(shared) == {("closed",)}
    shared.faults([])
    assert generate(shared.replicas[0].url, token).status == 200
    assert edit(shared.replicas[1].url, token, {"image": picture()}).status == 200


def test_a_killed_replicas_slots_come_back_within_its_lease(shared: Fleet) -> None:
    _, token = new_key(shared, "lonely")
    third = shared.start()
    shared.faults([{"kind": "hang", "count": WIDTH, "options": {"after_seconds": 0, "seconds": 40}}])
    with ThreadPoolExecutor() as pool:
        lost = [pool.submit(_or_gone, third.url, token) for _ in range(WIDTH)]
        wait_until(lambda: shared.stats()["in_progress"] == WIDTH, 10)
        third.kill()
        began = time.monotonic()
        shared.replicas.remove(third)
        answer = generate(shared.replicas[0].url, token)
        waited = time.monotonic() - began
        assert [future.result() for future in lost] == [None] * WIDTH
    assert answer.status == 200
    assert waited < 11.5
    assert waited > 5  # until then they might still have been in use


def _or_gone(url: str, token: str) -> Answer | None:
    try:
        return generate(url, token)
    except OSError:
        return None
    except Exception as error:
        assert type(error).__name__ in ("RemoteDisconnected", "BadStatusLine", "IncompleteRead")  # noqa: PT017
        return None


def test_an_upstream_that_did_not_answer_is_asked_again(tmp_path: Path) -> None:
    narrow = {"GATEWAY_UPSTREAM_DEADLINE": "2s", "GATEWAY_REDIS_TIMEOUT": "1s"}
    with fleet(
        tmp_path, Policies({"one": ""}).text, sandbox=("--time-scale", "0", "--picture", "small"), **narrow
    ) as own:
        _, token = new_key(own, "one")
        own.faults([{"kind": "hang", "options": {"after_seconds": 0, "seconds": 3}}])
        answers = together(backlog(own, token, 6))
        assert {answer.refusal for answer in answers} == {(504, "upstream_timeout", "unknown")}
        own.faults([])
        assert generate(own.replicas[0].url, token).status == 200
