"""A call that has a name is made once: whoever asks again under it is given the first answer, from any replica."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from http.client import HTTPException
from pathlib import Path
from typing import Any

import pytest

from tests.fleet import Fleet, Replica, fleet, wait_until
from tests.pipeline.calls import Answer, Policies, call, edit, generate, keyring, new_key, picture, rows, together
from tests.pipeline.test_jobs import ask_and_leave

JSON = {"Accept": "application/json"}
BUDGET = 'limits: {budgets: [{usd: "1.00", per: month}]}'
CEILING = "safety: {generate: {ceiling: 4}}"
# What a replay repeats: everything but what an exchange has of its own.
OWN = ("date", "server-timing", "x-request-id", "idempotency-replayed", "connection", "ratelimit", "ratelimit-policy")


def named(name: str, **headers: str) -> dict[str, str]:
    return {"Idempotency-Key": name} | headers


def told(answer: Answer) -> tuple[int, bytes, dict[str, str]]:
    """What must be the same in a first answer and in all that repeat it."""
    return answer.status, answer.body, {n: value for n, value in answer.headers.items() if n not in OWN}


def replayed(answer: Answer) -> bool:
    return answer.headers.get("idempotency-replayed") == "true"


def sent(running: Fleet) -> int:
    return int(running.stats()["received"])


@pytest.fixture
def token(running: Fleet) -> str:
    return new_key(running, "named")[1]


WAYS: dict[str, Callable[[str, str, str], Answer]] = {
    "bytes": lambda url, token, name: generate(url, token, named(name)),
    "seeded": lambda url, token, name: generate(url, token, named(name), seed=77, user="ada", tags=["a"]),
    "json": lambda url, token, name: generate(url, token, named(name, **JSON)),
    "base64": lambda url, token, name: generate(url, token, named(name, **JSON), response_format="b64_json"),
    "no-store": lambda url, token, name: generate(url, token, named(name, **{"Cache-Control": "no-store"})),
    "png": lambda url, token, name: generate(url, token, named(name, Accept="image/png")),
    "auto": lambda url, token, name: generate(url, token, named(name, **JSON), variant="auto"),
    "form": lambda url, token, name: edit(url, token, {"image": picture()}, named(name, **JSON), aspect_ratio="1:1"),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_repeat_is_the_first_answer_on_any_replica_and_nothing_is_bought(
    running: Fleet, urls: tuple[str, str], token: str, way: str
) -> None:
    before = sent(running)
    first, again, third = (WAYS[way](url, token, "order-1") for url in (*urls, urls[0]))
    assert (first.status, first.source, replayed(first)) == (200, "upstream", False)
    assert first.headers["gateway-cost-usd"] == "0.040000"
    assert told(again) == told(third) == told(first)
    assert replayed(again)
    assert replayed(third)
    assert again.headers["x-request-id"] != first.headers["x-request-id"]
    assert sent(running) == before + 1


def test_a_repeat_in_another_form_is_the_same_picture(running: Fleet, urls: tuple[str, str], token: str) -> None:
    first, again = generate(urls[0], token, named("n")), generate(urls[1], token, named("n", **JSON))
    assert (again.json["id"], again.json["seed"]) == (
        first.headers["gateway-job-id"],
        int(first.headers["gateway-seed"]),
    )
    assert again.json["request_id"] == first.headers["x-request-id"]


def test_calls_under_one_name_at_once_are_one_job_and_one_answer(
    running: Fleet, urls: tuple[str, str], token: str
) -> None:
    before = sent(running)
    running.faults([{"kind": "slow", "count": 1, "options": {"after_seconds": 1}}])
    answers = together([partial(generate, urls[at % 2], token, named("many", **JSON)) for at in range(12)])
    assert len({(answer.status, answer.body) for answer in answers}) == 1
    assert answers[0].status == 200
    assert sum(replayed(answer) for answer in answers) == 11
    assert sent(running) == before + 1


OTHER: list[dict[str, Any]] = [
    {"prompt": "another lighthouse"},
    {"seed": 7},
    {"variant": "max"},
    {"variant": "auto"},
    {"safety_tolerance": 1},
    {"aspect_ratio": "16:9"},
    {"output_format": "png"},
    {"response_format": "b64_json"},
    {"user": "bob"},
    {"tags": ["spring"]},
]


def test_another_request_under_a_name_is_refused_and_nothing_is_bought(
    running: Fleet, urls: tuple[str, str], token: str
) -> None:
    assert generate(urls[0], token, named("n")).status == 200
    before = sent(running)
    for fields in OTHER:
        answer = generate(urls[1], token, named("n"), **fields)
        assert (answer.refusal, answer.json["field"]) == ((422, "idempotency_mismatch", "no"), "Idempotency-Key")
    assert generate(urls[1], token, named("n", Accept="image/png")).code == "idempotency_mismatch"
    assert edit(urls[0], token, {"image": picture()}, named("e")).status == 200
    assert edit(urls[0], token, {"image": picture((1, 2, 3))}, named("e")).code == "idempotency_mismatch"
    assert sent(running) == before + 1


def test_the_same_request_in_another_spelling_is_a_repeat(running: Fleet, urls: tuple[str, str], token: str) -> None:
    first = generate(urls[0], token, named("n"), seed=9, user="ada")
    body = b'{ "user": "ada", "seed": 9.0e0, "prompt":"a lighthouse at d\\u0061wn" }'.replace(b"9.0e0", b"9")
    headers = named('"n"', **{"Content-Type": "application/json"})
    assert told(call(urls[1], "/v1/generate", token, body=body, headers=headers)) == told(first)


def test_a_name_is_its_keys_and_its_routes_own(running: Fleet, urls: tuple[str, str], token: str) -> None:
    before = sent(running)
    others = [new_key(running, tenant)[1] for tenant in ("named", "named-other")]
    answers = [generate(urls[0], one, named("n"), prompt=f"a boat {at}") for at, one in enumerate((token, *others))]
    answers.append(edit(urls[0], token, {"image": picture()}, named("n")))
    assert [(answer.status, answer.source, replayed(answer)) for answer in answers] == [(200, "upstream", False)] * 4
    assert sent(running) == before + 4


def test_what_was_not_bought_is_repeated_as_it_was(running: Fleet, urls: tuple[str, str], token: str) -> None:
    paid = generate(urls[0], token, seed=5)
    hit, again = (generate(url, token, named("hit", **JSON), seed=5) for url in urls)
    assert (hit.json["source"], hit.json["cost"]["micro_usd"]) == ("cache", 0)
    assert told(again) == told(hit)
    assert replayed(again)
    running.faults([{"kind": "slow", "count": 1, "options": {"after_seconds": 1}}])
    with ThreadPoolExecutor() as pool:
        leading = pool.submit(generate, urls[0], token, seed=6)
        wait_until(lambda: running.stats()["in_progress"] == 1, 10)
        shared = generate(urls[1], token, named("shared"), seed=6)
        assert shared.source == "coalesced"
        assert told(generate(urls[0], token, named("shared"), seed=6)) == told(shared)
        assert leading.result().body == shared.body
    assert paid.source == "upstream"


FAILURES: list[tuple[dict[str, Any], tuple[int, str, str]]] = [
    ({"kind": "moderated_prompt"}, (422, "content_moderated", "no")),
    ({"kind": "failed"}, (502, "upstream_failed", "no")),
    ({"kind": "cut_after_accept"}, (502, "upstream_failed", "unknown")),
    ({"kind": "truncated"}, (502, "upstream_invalid", "unknown")),
]


@pytest.mark.parametrize(("fault", "refusal"), FAILURES, ids=str)
def test_a_failure_after_the_dispatch_is_repeated(
    running: Fleet, urls: tuple[str, str], token: str, fault: dict[str, Any], refusal: tuple[int, str, str]
) -> None:
    running.faults([fault | {"count": 1}])
    first = generate(urls[0], token, named("n"))
    before = sent(running)
    again = generate(urls[1], token, named("n"))
    assert first.refusal == refusal
    assert told(again) == told(first)
    assert (replayed(first), replayed(again)) == (False, True)
    assert sent(running) == before


@pytest.mark.parametrize("kind", ["busy", "misconfigured"])
def test_what_may_go_better_the_next_time_leaves_the_name_free(
    running: Fleet, urls: tuple[str, str], token: str, kind: str
) -> None:
    fault = {"kind": "unauthorised"} if kind == "misconfigured" else {"kind": "busy", "options": {"retry_after": 0}}
    running.faults([fault])
    refused = generate(urls[0], token, named("n"))
    running.faults([])
    assert refused.code == f"upstream_{kind}"
    assert refused.json["charged"] == "no"
    bought = generate(urls[1], token, named("n"))
    assert (bought.status, bought.source, replayed(bought)) == (200, "upstream", False)


def test_a_refusal_leaves_the_name_free_for_any_request(
    running: Fleet, urls: tuple[str, str], policies: Policies
) -> None:
    _, token = new_key(running, "named-poor")
    ask = partial(generate, urls[0], token, named("n"))
    assert ask(prompt="hi").code == "invalid_request"
    assert ask(variant="max").code == "budget_exhausted"  # the price of a pro picture is left
    assert generate(urls[0], token, named("n", **{"Cache-Control": "only-if-cached"})).code == "not_cached"
    policies.set("named-poor", "suspended: true")
    assert ask().code == "forbidden"
    policies.set("named-poor", 'limits: {budgets: [{usd: "0.04", per: month}]}')
    bought = ask()
    assert (bought.status, replayed(bought)) == (200, False)
    assert told(ask()) == told(bought)  # though the budget is spent


def test_a_wrong_name_is_refused_by_the_header(running: Fleet, urls: tuple[str, str], token: str) -> None:
    before = sent(running)
    for name in ("", " ", '""', "a" * 256, '"open', '"a"b"', '"a";x=1', '"a\\b"', "caf\xe9", "a\tb"):
        answer = generate(urls[0], token, named(name))
        assert (answer.status, answer.json["field"]) == (422, "Idempotency-Key"), name
    assert sent(running) == before
    for name in ("a" * 255, "x", "a b;c", '"a \\"quoted\\" name\\\\"'):
        assert generate(urls[0], token, named(name)).status == 200, name


def test_two_names_are_one_too_many(running: Fleet, urls: tuple[str, str], token: str) -> None:
    import http.client
    from urllib.parse import urlsplit

    connection = http.client.HTTPConnection(urlsplit(urls[0]).netloc)
    connection.putrequest("POST", "/v1/generate")
    body = b'{"prompt": "a boat"}'
    lines = {"Authorization": f"Bearer {token}", "Content-Type": "application/json", "Content-Length": str(len(body))}
    for name, value in (*lines.items(), ("Idempotency-Key", "a"), ("Idempotency-Key", "a")):
        connection.putheader(name, value)
    connection.endheaders(body)
    answer = connection.getresponse()
    assert (answer.status, json.load(answer)["field"]) == (400, "Idempotency-Key")
    connection.close()


def test_a_picture_that_is_gone_is_not_bought_again(running: Fleet, urls: tuple[str, str], token: str) -> None:
    first = generate(urls[0], token, named("n"))
    with running.redis as client:
        (stored,) = [
            name
            for name in client.scan_iter("kg:{t:named}:result:*", count=1000)
            if name.decode().rpartition(":")[2] == first.headers["gateway-image-id"][4:44]
        ]
        client.delete(stored)
    before = sent(running)
    for url in urls:
        assert generate(url, token, named("n")).refusal == (410, "idempotency_gone", "yes")
    assert sent(running) == before


def test_a_replay_is_held_to_the_policy_and_the_key_of_now(
    running: Fleet, urls: tuple[str, str], policies: Policies
) -> None:
    key_id, token = new_key(running, "named-changing")
    ask = partial(generate, urls[1], token, named("n"), safety_tolerance=4)
    first, before = generate(urls[0], token, named("n"), safety_tolerance=4), sent(running)
    policies.set("named-changing", "safety: {generate: {ceiling: 3}}")
    assert ask().refusal == (410, "idempotency_gone", "yes")
    policies.set("named-changing", "safety: {generate: {ceiling: 3}, mode: reject}")
    assert ask().code == "safety_ceiling"
    policies.set("named-changing", "suspended: true")
    assert ask().code == "forbidden"
    policies.set("named-changing", "")
    assert told(ask()) == told(first)
    keyring(running, lambda ring: ring.revoke("named-changing", key_id))
    assert ask().code == "unauthenticated"
    assert sent(running) == before


def test_a_caller_that_left_is_given_its_picture_when_it_comes_back(
    running: Fleet, urls: tuple[str, str], token: str
) -> None:
    before = sent(running)
    running.faults([{"kind": "slow", "count": 1, "options": {"after_seconds": 1}}])
    ask_and_leave(
        urls[0], token, lambda: running.stats()["in_progress"] == 1, headers="Idempotency-Key: left\r\nAccept: */*\r\n"
    )
    found = generate(urls[1], token, named("left"))
    assert (found.status, found.source, replayed(found)) == (200, "upstream", True)
    assert told(generate(urls[0], token, named("left"))) == told(found)
    assert sent(running) == before + 1


def test_a_call_without_a_name_asks_nothing_more_of_redis(running: Fleet, urls: tuple[str, str], token: str) -> None:
    with running.redis as client:
        assert generate(urls[0], token).status == 200
        assert not list(client.scan_iter("kg:{t:named-none}:idem:*", count=1000))
        asked = [replica.total("kontext_gateway_redis_operation_duration_seconds_count", operation=f"app.quota/{name}")
                 for replica in running.replicas for name in ("claim", "close")]  # fmt: skip
        assert generate(urls[0], token).status == 200
        again = [replica.total("kontext_gateway_redis_operation_duration_seconds_count", operation=f"app.quota/{name}")
                 for replica in running.replicas for name in ("claim", "close")]  # fmt: skip
    assert again == asked


def test_a_name_is_kept_for_a_day_and_is_not_in_a_key(running: Fleet, urls: tuple[str, str], token: str) -> None:
    with running.redis as client:
        before = set(client.scan_iter("kg:{t:named}:idem:*", count=1000))
        assert generate(urls[0], token, named("Ada-Lovelace")).status == 200
        (made,) = set(client.scan_iter("kg:{t:named}:idem:*", count=1000)) - before
        assert 86_390 < client.ttl(made) <= 86_400
        client.delete(made)
    assert b"Ada" not in made
    assert not replayed(generate(urls[0], token, named("Ada-Lovelace")))


# Crashes: a fleet of their own, with one slot, so that a job can be held before its dispatch.


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    tenants = Policies({"busy": "", "named": BUDGET}).text
    fast = ("--time-scale", "0.01", "--picture", "small")
    few = {"GATEWAY_UPSTREAM_CONCURRENCY": "1", "GATEWAY_UPSTREAM_DEADLINE": "25s"}
    with fleet(tmp_path_factory.mktemp("narrow"), tenants, replicas=2, sandbox=fast, **few) as found:
        yield found


@contextmanager
def dying(running: Fleet) -> Iterator[Replica]:
    """A replica that may be killed; another one takes its place."""
    replica = running.start()
    yield replica
    replica.kill()
    running.replicas.remove(replica)


def lost(url: str, token: str, name: str) -> Answer | None:
    with suppress(HTTPException, OSError):
        return generate(url, token, named(name))
    return None


@contextmanager
def occupied(running: Fleet, seconds: float) -> Iterator[Future[Answer]]:
    """The one slot is taken by somebody else's job."""
    _, busy = new_key(running, "busy")
    running.faults([{"kind": "slow", "count": 1, "options": {"after_seconds": seconds}}])
    with ThreadPoolExecutor() as pool:
        other = pool.submit(generate, running.replicas[0].url, busy)
        wait_until(lambda: running.stats()["in_progress"] == 1, 10)
        yield other
        assert other.result().status == 200


def state(running: Fleet, value: bytes) -> bool:
    with running.redis as client:
        return [client.hget(name, "state") for name in client.scan_iter("kg:{t:named}:res:*", count=1000)].count(
            value
        ) == 1


def test_after_a_crash_before_the_dispatch_the_name_buys_once(narrow: Fleet) -> None:
    _, token = new_key(narrow, "named")
    with dying(narrow) as owner, ThreadPoolExecutor() as pool, occupied(narrow, 3):
        before = sent(narrow)
        first = pool.submit(lost, owner.url, token, "n")
        wait_until(lambda: state(narrow, b"RESERVED"), 10)
        waiting = [pool.submit(generate, replica.url, token, named("n")) for replica in narrow.replicas[:2]]
        owner.kill()
        answers = [one.result() for one in waiting]
    assert first.result() is None
    assert [answer.status for answer in answers] == [200, 200]
    assert told(answers[0]) == told(answers[1])
    assert sent(narrow) == before + 1


def test_after_a_crash_behind_the_dispatch_nothing_is_sent_again(narrow: Fleet) -> None:
    _, token = new_key(narrow, "named")
    before = sent(narrow)
    with dying(narrow) as owner, ThreadPoolExecutor() as pool:
        narrow.faults([{"kind": "slow", "count": 1, "options": {"after_seconds": 2}}])
        first = pool.submit(lost, owner.url, token, "n")
        wait_until(lambda: narrow.stats()["in_progress"] == 1, 10)
        owner.kill()
        assert generate(narrow.urls[0], token, named("n"), seed=1).code == "idempotency_mismatch"
        answers = [generate(url, token, named("n")) for url in narrow.urls]
    assert first.result() is None
    assert [answer.refusal for answer in answers] == [(504, "upstream_timeout", "unknown")] * 2
    assert told(answers[0]) == told(answers[1])
    assert all(map(replayed, answers))
    assert sent(narrow) == before + 1
    assert [row["state"] for row in rows(narrow, "named")][-1] == "AMBIGUOUS"


def test_after_a_crash_before_any_money_was_held_the_name_buys(narrow: Fleet) -> None:
    _, token = new_key(narrow, "named")
    first = generate(narrow.urls[0], token, named("n", **JSON))
    with narrow.redis as client:
        name = record(narrow, first)
        client.hdel(name, "end", "reply")
        client.hset(name, mapping={"state": "claimed", "owner": "inc_of_the_dead", "until": 10**14})
    again = generate(narrow.urls[1], token, named("n", **JSON))
    assert (again.status, replayed(again), again.json["id"] != first.json["id"]) == (200, False, True)
    assert again.json["seed"] == first.json["seed"]  # the one that was assigned to the name


def record(running: Fleet, answer: Answer) -> bytes:
    """Where the name of an answer is kept."""
    with running.redis as client:
        names = client.scan_iter("kg:{t:named}:idem:*", count=1000)
        wanted = answer.headers["x-request-id"].encode()
        (found,) = [name for name in names if client.hget(name, "request") == wanted]
    return bytes(found)


def test_a_picture_that_a_crash_left_behind_is_given(narrow: Fleet) -> None:
    _, token = new_key(narrow, "named")
    made = generate(narrow.urls[0], token, named("n", **JSON))
    with narrow.redis as client:
        name = record(narrow, made)
        client.hdel(name, "reply")  # stored and not settled, as the reaper leaves it
        client.hset(name, "end", "AMBIGUOUS")
    before = sent(narrow)
    found, again = (generate(url, token, named("n", **JSON)) for url in narrow.urls)
    assert found.json["image"]["sha256"] == made.json["image"]["sha256"]
    assert (found.json["id"], found.json["seed"]) == (made.json["id"], made.json["seed"])
    assert told(again) == told(found)
    assert sent(narrow) == before


def test_a_call_that_runs_longer_than_its_repeat_can_wait(tmp_path: Path) -> None:
    with fleet(tmp_path, Policies({"named": ""}).text, replicas=1, GATEWAY_UPSTREAM_CONCURRENCY="4") as running:
        impatient = running.start(GATEWAY_UPSTREAM_DEADLINE="1s")
        _, token = new_key(running, "named")
        running.faults([{"kind": "slow", "count": 1, "options": {"after_seconds": 4}}])
        with ThreadPoolExecutor() as pool:
            first = pool.submit(generate, running.urls[0], token, named("n"))
            wait_until(lambda: running.stats()["in_progress"] == 1, 10)
            again = generate(impatient.url, token, named("n"))
            assert again.refusal == (409, "idempotency_in_flight", "unknown")
            assert first.result().status == 200
        assert told(generate(impatient.url, token, named("n"))) == told(first.result())
        assert running.stats()["received"] == 1


def test_a_name_is_free_when_its_caller_leaves_before_the_dispatch(narrow: Fleet) -> None:
    _, token = new_key(narrow, "named")
    with occupied(narrow, 1.5):
        ask_and_leave(
            narrow.urls[0], token, lambda: state(narrow, b"RESERVED"), headers="Idempotency-Key: n\r\nAccept: */*\r\n"
        )
        wait_until(lambda: not state(narrow, b"RESERVED"), 10)
        before = sent(narrow)
        other = generate(narrow.urls[1], token, named("n"), prompt="another boat")
    assert (other.status, replayed(other)) == (200, False)
    assert sent(narrow) == before + 1


def test_a_named_call_needs_redis_like_any_other(tmp_path: Path) -> None:
    with fleet(tmp_path, Policies({"named": ""}).text) as running:
        _, token = new_key(running, "named")
        assert generate(running.urls[0], token, named("n")).status == 200
        running.server.kill()
        assert generate(running.urls[0], token, named("n")).refusal == (503, "ledger_unavailable", "no")
        assert running.stats()["received"] == 1
