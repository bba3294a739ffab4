"""Jobs whose callers do not wait: queued, told of, cancelled, and bought like any other."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from http.client import HTTPConnection
from urllib.parse import urlsplit

import pytest

from app.surfaces.jobs import STREAMS
from tests.faults.checker import check, received, settle_down
from tests.fleet import Fleet, fleet, get_json, wait_until
from tests.pipeline.calls import Answer, Policies, call, edit, generate, keyring, new_key, picture, rows, together
from tests.pipeline.queued import ASYNC, cancel, end, events, look, queued, slow, until

TENANTS = {
    "plain": "",
    "one": "limits: {concurrency: 1}",
    "person": "limits: {per_user: {concurrency: 1}}",
    "poor": 'limits: {budgets: [{usd: "0.08", per: month}]}',
    "strict": "safety: {generate: {ceiling: 4}}",
    "other": "",
    "narrow": "",
    "erased": "",
    "stuck": "",
}


@pytest.fixture(scope="module")
def policies() -> Policies:
    return Policies(dict(TENANTS))


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, policies: Policies) -> Iterator[Fleet]:
    fast = ("--time-scale", "0.01", "--picture", "small")
    bounds = {"GATEWAY_QUEUE_TENANT_BYTES": "8000000", "GATEWAY_QUEUE_JOBS": "8", "GATEWAY_REDIS_TIMEOUT": "2s"}
    with fleet(tmp_path_factory.mktemp("async"), policies.text, replicas=2, sandbox=fast, **bounds) as found:
        policies.fleet = found
        yield found
        for tenant in TENANTS:
            settle_down(found, tenant)
            check(found, *TENANTS)


@pytest.fixture
def urls(running: Fleet) -> tuple[str, str]:
    running.faults([])
    return running.urls[0], running.urls[1]


def test_a_job_is_accepted_at_once_and_told_of_on_any_replica_until_its_picture_is_there(
    running: Fleet, urls: tuple[str, str]
) -> None:
    token = new_key(running, "plain")[1]
    answer = generate(urls[0], token, ASYNC | {"Accept": "application/json"}, user="ada", tags=["a"])
    assert answer.status == 202
    assert answer.headers["preference-applied"] == "respond-async"
    assert answer.headers["location"] == f"/v1/jobs/{answer.json['id']}"
    found = end(urls[1], token, answer.json["id"])
    assert (found["state"], found["charged"], found["cost"]["micro_usd"]) == ("succeeded", "yes", 40_000)
    result = found["result"]
    assert (result["id"], result["source"], result["image"]["id"]) == (found["id"], "upstream", found["image"]["id"])
    shown = call(urls[0], found["image"]["url"], token)
    assert shown.headers["etag"] == f'"{found["image"]["sha256"]}"'
    listed = call(urls[1], "/v1/jobs", token).json["data"]
    assert [(job["id"], job["state"], job["image"]["id"]) for job in listed] == [
        (found["id"], "succeeded", found["image"]["id"])
    ]
    row = rows(running, "plain")[-1]
    assert (row["job"], row["user"], row["tags"]) == (found["id"], "ada", "a")


def test_a_caller_that_waits_gets_the_picture_or_after_its_time_the_job(running: Fleet, urls: tuple[str, str]) -> None:
    token = new_key(running, "plain")[1]
    whole = generate(urls[0], token, {"Prefer": "wait=30"})
    assert (whole.status, whole.headers["content-type"], whole.source) == (200, "image/jpeg", "upstream")
    assert "idempotency-replayed" not in whole.headers
    slow(running, 2)
    began = time.monotonic()
    cut = generate(urls[0], token, {"Prefer": "respond-async, wait=1"})
    assert (cut.status, cut.headers["preference-applied"]) == (202, "respond-async, wait=1")
    assert time.monotonic() - began < 1.9
    assert end(urls[0], token, cut.json["id"])["state"] == "succeeded"
    refused = generate(urls[0], token, {"Prefer": "wait=30"}, prompt="x")
    assert (refused.status, refused.code) == (422, "invalid_request")


def test_a_failure_is_told_to_the_one_who_waits_and_to_the_one_who_asks_later(
    running: Fleet, urls: tuple[str, str]
) -> None:
    token = new_key(running, "plain")[1]
    running.faults([{"kind": "moderated_prompt", "count": 2}])
    assert generate(urls[0], token, {"Prefer": "wait=30"}).refusal == (422, "content_moderated", "no")
    found = end(urls[1], token, queued(urls[0], token))
    assert (found["state"], found["charged"], found["error"]["code"]) == ("failed", "no", "content_moderated")


def test_jobs_that_the_upstream_has_no_room_for_wait_until_it_has(running: Fleet, urls: tuple[str, str]) -> None:
    token = new_key(running, "plain")[1]
    running.faults([{"kind": "busy", "count": 16}])
    made = [queued(urls[at % 2], token) for at in range(4)]
    found = [end(urls[0], token, job, seconds=60) for job in made]
    assert [(job["state"], job["charged"]) for job in found] == [("succeeded", "yes")] * 4
    assert sum(row["job"] in made for row in rows(running, "plain")) == 4


def test_a_job_is_cancelled_while_it_waits_and_its_money_comes_back(running: Fleet, urls: tuple[str, str]) -> None:
    token, before = new_key(running, "one")[1], received(running)
    slow(running, 1.5)
    first, second, third = (queued(urls[0], token) for _ in range(3))
    until(urls[1], token, first, "running")
    assert [look(urls[1], token, job)["position"] for job in (second, third)] == [1, 2]
    assert look(urls[1], token, third)["expected_wait_seconds"] > 0
    gone = cancel(urls[1], token, second)
    assert (gone.status, gone.json["state"], gone.json["charged"]) == (200, "cancelled", "no")
    assert cancel(urls[0], token, second).json["state"] == "cancelled"
    late = cancel(urls[0], token, first)
    assert (late.refusal, late.json["state"]) == ((409, "not_cancellable", "unknown"), "running")
    assert [end(urls[0], token, job)["state"] for job in (first, second, third)] == [
        "succeeded", "cancelled", "succeeded",
    ]  # fmt: skip
    assert cancel(urls[0], token, third).refusal == (409, "not_cancellable", "yes")
    assert received(running) == before + 2
    states = {job["id"]: job["state"] for job in call(urls[0], "/v1/jobs", token).json["data"]}
    assert states == {first: "succeeded", second: "cancelled", third: "succeeded"}


def test_places_are_taken_with_the_turn_at_every_level(running: Fleet, urls: tuple[str, str]) -> None:
    for tenant, users in (("one", [None] * 4), ("person", ["ada"] * 4)):
        token = new_key(running, tenant)[1]
        running.faults([{"kind": "slow", "count": 4, "options": {"after_seconds": 0.3}}])
        began = time.monotonic()
        made = [queued(urls[at % 2], token, **({"user": user} if user else {})) for at, user in enumerate(users)]
        seen = 0
        while any(look(urls[0], token, job)["state"] in ("queued", "running") for job in made):
            states = [look(urls[0], token, job)["state"] for job in made]
            seen = max(seen, int(running.stats()["in_progress"]))
            assert states.count("running") <= 1 or seen <= 1
        assert seen == 1
        assert time.monotonic() - began >= 4 * 0.3


def test_a_repeat_under_a_name_is_given_the_same_job_whether_it_waits_or_not(
    running: Fleet, urls: tuple[str, str]
) -> None:
    token, before = new_key(running, "plain")[1], received(running)
    slow(running, 1.5)
    name = {"Idempotency-Key": "order-1"}
    answers = together([lambda url=url: generate(url, token, ASYNC | name) for url in (*urls, *urls)])
    (job,) = {answer.json["id"] for answer in answers}
    assert sorted("idempotency-replayed" in answer.headers for answer in answers) == [False, True, True, True]
    other = generate(urls[0], token, ASYNC | name, variant="max")
    assert other.refusal == (422, "idempotency_mismatch", "no")
    waited = generate(urls[1], token, name)
    assert (waited.status, waited.headers["gateway-job-id"]) == (200, job)
    assert waited.headers["idempotency-replayed"] == "true"
    assert generate(urls[0], token, ASYNC | name).json["state"] == "succeeded"
    assert generate(urls[0], token, {"Prefer": "wait=5"} | name).headers["gateway-job-id"] == job
    sync = {"Idempotency-Key": "order-2"}
    first, again = generate(urls[0], token, sync), generate(urls[1], token, ASYNC | sync)
    assert (again.status, again.body) == (200, first.body)
    assert received(running) == before + 2


def test_a_name_is_free_again_when_its_job_was_cancelled_or_refused(running: Fleet, urls: tuple[str, str]) -> None:
    token = new_key(running, "one")[1]
    slow(running, 1.0)
    queued(urls[0], token)
    first = generate(urls[0], token, ASYNC | {"Idempotency-Key": "n"}).json["id"]
    assert cancel(urls[0], token, first).status == 200
    second = generate(urls[0], token, ASYNC | {"Idempotency-Key": "n"}).json["id"]
    assert second != first
    assert end(urls[0], token, second)["state"] == "succeeded"


def test_a_repeat_after_its_content_was_deleted_is_told_so_and_waits_for_nothing(
    running: Fleet, urls: tuple[str, str]
) -> None:
    token, before, name = new_key(running, "erased")[1], received(running), ASYNC | {"Idempotency-Key": "n"}
    assert end(urls[0], token, generate(urls[0], token, name).json["id"])["state"] == "succeeded"
    assert "1 jobs" in running.command("content", "delete", "--tenant", "erased")
    assert generate(urls[1], token, name).refusal == (410, "idempotency_gone", "yes")
    assert received(running) == before + 1


def test_calls_wait_for_the_job_that_has_their_name_for_a_while_and_in_nobody_s_way(
    running: Fleet, urls: tuple[str, str]
) -> None:
    token, name = new_key(running, "stuck")[1], ASYNC | {"Idempotency-Key": "n"}
    end(urls[0], token, generate(urls[0], token, name).json["id"])
    held = {"state": "claimed", "claim": "job_lost", "owner": "job_lost", "until": 2**42}
    with running.redis as client:
        (key,) = client.scan_iter("kg:{t:stuck}:idem:*")
        client.hset(key, mapping=held)

    def beside() -> Answer:
        time.sleep(2)
        return generate(urls[0], token, ASYNC)

    *refused, queued_beside = together([*[lambda: generate(urls[0], token, name)] * 8, beside])
    assert queued_beside.status == 202
    assert {answer.refusal for answer in refused} == {(409, "idempotency_in_flight", "unknown")}


def test_what_is_in_the_cache_or_in_the_making_costs_a_queued_job_nothing(
    running: Fleet, urls: tuple[str, str]
) -> None:
    token, before = new_key(running, "plain")[1], received(running)
    slow(running, 0.7)
    made = [queued(url, token, seed=4711) for url in urls]
    found = [end(urls[0], token, job) for job in made]
    assert sorted((job["result"]["source"], job["charged"]) for job in found) == [
        ("coalesced", "no"), ("upstream", "yes"),
    ]  # fmt: skip
    hit = end(urls[1], token, queued(urls[1], token, seed=4711))
    assert (hit["result"]["source"], hit["cost"]["micro_usd"], hit["charged"]) == ("cache", 0, "no")
    assert {job["image"]["id"] for job in found} == {hit["image"]["id"]}
    assert received(running) == before + 1


def test_policy_and_key_are_asked_again_when_a_job_s_turn_comes(
    running: Fleet, urls: tuple[str, str], policies: Policies
) -> None:
    (key_id, token), (_, other) = new_key(running, "strict"), new_key(running, "strict")
    policies.set("strict", "safety: {generate: {ceiling: 4}}, limits: {concurrency: 1}")
    slow(running, 1.5)
    first = queued(urls[0], other, safety_tolerance=1)
    until(urls[0], other, first, "running")
    before = received(running)
    lowered, revoked = queued(urls[0], other, safety_tolerance=4), queued(urls[0], token, safety_tolerance=1)
    policies.set("strict", "safety: {generate: {ceiling: 1}}, limits: {concurrency: 1}")
    keyring(running, lambda ring: ring.revoke("strict", key_id))
    found = end(urls[0], other, lowered)
    assert (found["state"], found["charged"], found["error"]["code"]) == ("failed", "no", "safety_ceiling")
    wait_until(lambda: not running.redis.zcard("kg:{t:strict}:open"), 20)
    assert received(running) == before
    row = next(row for row in rows(running, "strict") if row["job"] == revoked)
    assert (row["state"], row["reason"]) == ("REFUNDED", "unauthenticated")


def test_a_key_sees_its_own_jobs_only(running: Fleet, urls: tuple[str, str]) -> None:
    token = new_key(running, "plain")[1]
    job = queued(urls[0], token)
    for stranger in (new_key(running, "other")[1], new_key(running, "plain")[1]):
        for path, method in (
            (f"/v1/jobs/{job}", "GET"),
            (f"/v1/jobs/{job}", "DELETE"),
            (f"/v1/jobs/{job}/events", "GET"),
        ):
            assert call(urls[1], path, stranger, method=method).refusal == (404, "not_found", "no")
    for name in ("job_x", f"{job}x", "..%2f..", "job_" + "0" * 26):
        assert call(urls[0], f"/v1/jobs/{name}", token).status == 404
    end(urls[0], token, job)


def test_a_job_that_was_waited_for_is_told_of_by_its_id_and_cannot_be_cancelled(
    running: Fleet, urls: tuple[str, str]
) -> None:
    token = new_key(running, "plain")[1]
    job = generate(urls[0], token).headers["gateway-job-id"]
    assert (look(urls[1], token, job)["state"], look(urls[1], token, job)["charged"]) == ("succeeded", "yes")
    assert cancel(urls[1], token, job).refusal == (409, "not_cancellable", "yes")
    assert events(urls[0], token, job) == [("status", "succeeded")]


def test_events_tell_every_change_and_end_with_the_job(running: Fleet, urls: tuple[str, str]) -> None:
    token = new_key(running, "one")[1]
    slow(running, 1.0, count=2)
    queued(urls[0], token)
    job = queued(urls[0], token)
    told = events(urls[1], token, job)
    states = [what for event, what in told if event == "status"]
    assert states[0] == "queued"
    assert [state for at, state in enumerate(states) if state not in states[:at]] == ["queued", "running", "succeeded"]
    percents = [json.loads(what)["percent"] for event, what in told if event == "progress"]
    assert percents
    assert percents == sorted(percents)
    assert told[-1] == ("status", "succeeded")
    assert events(urls[0], token, job, last="running") == [("status", "succeeded")]
    again = call(urls[0], f"/v1/jobs/{job}/events", token, headers={"Last-Event-ID": "succeeded"})
    assert (again.status, again.body) == (204, b"")


def test_events_end_for_whoever_would_not_be_let_in_any_more(
    running: Fleet, urls: tuple[str, str], policies: Policies
) -> None:
    key_id, token = new_key(running, "plain")[:2]
    lent = call(
        urls[0], "/v1/client-tokens", token, headers={"Content-Type": "application/json"}, method="POST",
        body=json.dumps({"operations": ["generate"], "images": 1}).encode(),
    ).json["token"]  # fmt: skip
    suspended = new_key(running, "narrow")[1]
    slow(running, 3.0, count=3)
    made = [(one, queued(urls[0], one, seed=at)) for at, one in enumerate((token, lent, suspended))]
    for one, job in made:
        until(urls[0], one, job, "running")
    with ThreadPoolExecutor(3) as pool:
        streams = [pool.submit(events, urls[1], one, job) for one, job in made]
        time.sleep(0.7)  # each has said that its job runs
        keyring(running, lambda ring: ring.revoke("plain", key_id))
        policies.set("narrow", "suspended: true")
        told = [[what for event, what in stream.result() if event == "status"] for stream in streams]
    policies.set("narrow", "")
    assert told == [["running"]] * 3


def test_a_caller_has_so_many_streams_and_no_more(running: Fleet, urls: tuple[str, str]) -> None:
    token = new_key(running, "plain")[1]
    slow(running, 4.0)
    job = queued(urls[0], token)
    until(urls[0], token, job, "running")
    place = urlsplit(urls[0])
    with ExitStack() as open_:
        for _ in range(STREAMS):
            connection = HTTPConnection(place.hostname or "", place.port, timeout=30)
            open_.callback(connection.close)
            connection.request("GET", f"/v1/jobs/{job}/events", headers={"Authorization": f"Bearer {token}"})
            assert connection.getresponse().readline().startswith(b"event")
        refused = call(urls[0], f"/v1/jobs/{job}/events", token)
        assert (refused.refusal, refused.json["limit"]) == ((429, "concurrency_limited", "no"), STREAMS)
        assert call(urls[0], f"/v1/jobs/{job}", token).status == 200
    wait_until(lambda: call(urls[0], f"/v1/jobs/{job}/events", token).status == 200, 20)


def test_what_cannot_be_reserved_or_kept_is_refused_before_anything_is_held(
    running: Fleet, urls: tuple[str, str]
) -> None:
    token = new_key(running, "poor")[1]
    slow(running, 1.0, count=2)
    made = [queued(urls[0], token) for _ in range(2)]
    assert generate(urls[0], token, ASYNC).refusal == (429, "budget_reserved", "no")
    assert [end(urls[0], token, job)["state"] for job in made] == ["succeeded", "succeeded"]
    assert generate(urls[0], token, ASYNC).refusal == (402, "budget_exhausted", "no")
    assert generate(urls[0], token, ASYNC, prompt="x").refusal == (422, "invalid_request", "no")
    token = new_key(running, "one")[1]
    slow(running, 2.0)
    blocker = queued(urls[0], token)
    until(urls[0], token, blocker, "running")
    made = [queued(url, token) for url in urls * 4]
    full = generate(urls[0], token, ASYNC)
    assert (full.refusal, full.headers["retry-after"]) == ((429, "queue_full", "no"), "10")
    for job in made:
        assert cancel(urls[0], token, job).status == 200
    big = picture(side=256) + b"\0" * 0
    padded = big[:-12] + _chunk(3_000_000) + big[-12:]
    kept = [edit(urls[0], token, {"image": padded}, ASYNC) for _ in range(2)]
    assert [answer.status for answer in kept] == [202, 202]
    full = edit(urls[0], token, {"image": padded}, ASYNC)
    assert (full.refusal, full.json["unit"]) == ((429, "queue_full", "no"), "bytes")
    for answer in kept:
        assert cancel(urls[0], token, answer.json["id"]).status == 200
    end(urls[0], token, blocker)
    with running.redis as client:
        assert int(client.get("kg:{t:one}:queued-bytes") or 0) == 0
        assert not list(client.scan_iter("kg:{t:one}:in:*"))


def _chunk(size: int) -> bytes:
    """A PNG chunk that a gate may cut, of this size."""
    import zlib

    kind, data = b"tEXt", b"note\0" + b"x" * size
    return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")


def test_an_upload_waits_outside_of_the_process_and_is_forgotten_with_the_job(
    running: Fleet, urls: tuple[str, str]
) -> None:
    token, after = new_key(running, "one")[1], received(running)
    slow(running, 1.5)
    until(urls[0], token, queued(urls[0], token), "running")
    colour = picture((200, 10, 30))
    job = edit(urls[0], token, {"image": colour}, ASYNC).json["id"]
    with running.redis as client:
        asked = list(client.scan_iter("kg:{t:one}:in:*"))
        assert sorted(client.hexists(name, "image:0") for name in asked) == [False, True]
        assert all(client.pttl(name) > 0 for name in asked)
        records = [client.hgetall(name) for name in client.scan_iter("kg:{t:one}:job:*")]
        assert not any(b"sky stormy" in value for record in records for value in record.values())
        found = end(urls[1], token, job)
        assert found["state"] == "succeeded", found
        assert found["result"]["input"]["width"] == 320
        assert not list(client.scan_iter("kg:{t:one}:in:*"))
        assert b"sky stormy" not in b"".join(client.hgetall(f"kg:{{t:one}}:job:{job}").values())
        assert client.pttl(f"kg:{{t:one}}:job:{job}") > 0
        assert client.xlen("kg:{t:one}:queue") == 0
    inputs = [job["inputs"] for job in get_json(f"{running.upstream}/sandbox/jobs?limit=1000")["jobs"][after:]]
    assert any(inputs)


@pytest.mark.parametrize("wish", ["respond-sync", "wait=x", "wait=-1", "", 'return="minimal"'])
def test_preferences_that_are_not_understood_are_ignored(running: Fleet, urls: tuple[str, str], wish: str) -> None:
    answer = generate(urls[0], new_key(running, "plain")[1], {"Prefer": wish})
    assert (answer.status, "preference-applied" in answer.headers) == (200, False)


def test_what_must_not_wait_is_not_queued(running: Fleet, urls: tuple[str, str]) -> None:
    token = new_key(running, "plain")[1]
    answer = generate(urls[0], token, ASYNC | {"Cache-Control": "only-if-cached"}, seed=99)
    assert answer.refusal == (504, "not_cached", "no")
    assert generate(urls[0], token, webhook_url="https://hooks.example/").json["field"] == "webhook_url"
