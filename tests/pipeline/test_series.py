"""n pictures of one call are n jobs: all hold their money or none is sent, and what exists is returned and charged."""

from __future__ import annotations

import base64
import json
import os
import socket
import time
from collections.abc import Iterator
from io import BytesIO
from typing import Any
from urllib.parse import urlsplit

import pytest
from PIL import Image

from tests.faults.books import Books
from tests.fleet import Fleet, fleet
from tests.pipeline.calls import Answer, call, jobs, picture, rows, together
from tests.processes import wait_until

TENANTS = {
    "shop": "",
    "seeds": "",
    "broad": "",
    "dime": 'limits: {budgets: [{usd: "0.10", per: month}]}',
    "pair": "limits: {images: [{max: 2, per: month}]}",
    "narrow": "limits: {concurrency: 2}",
    "taken": "limits: {concurrency: 1}",
    "crowd": 'limits: {budgets: [{usd: "0.60", per: month}]}',
    "partly": "",
    "choosy": 'limits: {budgets: [{usd: "0.20", per: month}]}',
    "tight": 'limits: {budgets: [{usd: "0.08", per: month}]}',
    "lost": "",
    "gone": "limits: {concurrency: 1}",
    "dead": "limits: {concurrency: 1}",
}
PRO = 40_000


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    blocks = "".join(f"  {name}: {{{block}}}\n" for name, block in TENANTS.items())
    with fleet(tmp_path_factory.mktemp("series"), f"version: 1\ntenants:\n{blocks}") as running:
        yield running


@pytest.fixture(scope="module")
def tokens(made: Fleet) -> dict[str, str]:
    return {name: made.token(name) for name in TENANTS}


def several(made: Fleet, token: str, n: int, *, replica: int = 0, **fields: Any) -> Answer:
    """`POST /v1/images/generations`."""
    body = json.dumps({"prompt": "a lighthouse at dawn", "n": n} | fields).encode()
    head = {"Content-Type": "application/json"}
    return call(made.replicas[replica].url, "/v1/images/generations", token, body=body, headers=head)


def edits(made: Fleet, token: str, n: int, photo: bytes, **fields: Any) -> Answer:
    """`POST /v1/images/edits` with JSON."""
    image = {"b64": base64.b64encode(photo).decode()}
    body = json.dumps({"prompt": "make the sky stormy", "n": n, "image": image} | fields).encode()
    return call(
        made.replicas[0].url, "/v1/images/edits", token, body=body, headers={"Content-Type": "application/json"}
    )


def at_rest(made: Fleet, tenant: str) -> Books:
    """A tenant's books once nothing is open; they balance."""
    with made.redis as client:
        wait_until(lambda: not Books.read(client, tenant).outstanding, 30)
        books = Books.read(client, tenant)
    assert books.violations() == []
    assert not any(books.places.values())
    assert all(reserved == 0 for _, reserved in books.windows.values())
    return books


def sent(made: Fleet, before: int) -> list[dict[str, Any]]:
    """What the upstream received since."""
    return jobs(made, before)


def mark(made: Fleet) -> int:
    """Jobs received so far."""
    return int(made.stats()["received"])


def test_each_picture_is_an_ordinary_job_with_a_row_and_a_seed_of_its_own(made: Fleet, tokens: dict[str, str]) -> None:
    answer = several(made, tokens["shop"], 3, seed=100)
    assert answer.status == 200
    assert len({one["b64_json"] for one in answer.json["data"]}) == 3
    assert answer.headers["gateway-seed"] == "100, 101, 102"
    assert answer.headers["gateway-source"] == "upstream, upstream, upstream"
    assert answer.headers["gateway-cost-usd"] == "0.120000"
    names = answer.headers["gateway-job-id"].split(", ")
    assert sorted(
        (row["job"], row["seed"], row["paid"] if "paid" in row else row["delta"]) for row in rows(made, "shop")
    ) == (sorted((name, str(100 + i), str(PRO)) for i, name in enumerate(names)))
    assert at_rest(made, "shop").delta == 3 * PRO
    listed = call(made.replicas[0].url, "/v1/jobs", tokens["shop"]).json["data"]
    assert {job["id"] for job in listed} == set(names)


def test_what_is_in_the_cache_costs_nothing_and_needs_no_money(made: Fleet, tokens: dict[str, str]) -> None:
    assert several(made, tokens["seeds"], 1, seed=6).status == 200
    answer = several(made, tokens["seeds"], 3, seed=5)
    assert answer.headers["gateway-source"] == "upstream, cache, upstream"
    assert answer.headers["gateway-cost-usd"] == "0.080000"
    again = several(made, tokens["seeds"], 3, seed=5)
    assert (again.headers["gateway-cost-usd"], again.body) == ("0.000000", answer.body)
    assert at_rest(made, "seeds").delta == 3 * PRO


@pytest.mark.parametrize(
    ("tenant", "n", "code"), [("dime", 3, "insufficient_quota"), ("pair", 3, "image_quota_exhausted")]
)
def test_where_one_cannot_be_held_none_is_sent_and_nothing_is_held(
    made: Fleet, tokens: dict[str, str], tenant: str, n: int, code: str
) -> None:
    before = mark(made)
    answer = several(made, tokens[tenant], n, seed=1)
    assert (answer.status, answer.json["error"]["code"]) == (429, code)
    assert answer.headers["x-should-retry"] == "false"
    assert sent(made, before) == []
    assert at_rest(made, tenant).delta == 0
    assert several(made, tokens[tenant], n - 1, seed=1).status == 200
    assert at_rest(made, tenant).delta == (n - 1) * PRO


def test_auto_picks_what_is_left_of_the_budget_pays_for_that_often(made: Fleet, tokens: dict[str, str]) -> None:
    two = {"prompt": "make the sky stormy and add a boat", "model": "auto", "seed": 1}
    three = edits(made, tokens["choosy"], 3, picture(), **two)
    assert (three.status, three.headers["gateway-variant"], three.headers["gateway-cost-usd"]) == (
        200,
        "pro",
        "0.120000",
    )
    assert "does not pay for max" in three.headers["gateway-auto"]
    assert edits(made, tokens["choosy"], 1, picture(), **two).headers["gateway-variant"] == "max"


def test_they_run_within_the_concurrency_that_there_is(made: Fleet, tokens: dict[str, str]) -> None:
    most = 0

    def watch() -> None:
        nonlocal most
        with made.redis as client:
            until = time.monotonic() + 30
            while time.monotonic() < until and not done:
                most = max([most, *(len(members) for members in Books.read(client, "narrow").places.values())])

    done: list[Answer] = []
    together([lambda: done.append(several(made, tokens["narrow"], 5, seed=1)), watch])
    assert (done[0].status, len(done[0].json["data"])) == (200, 5)
    assert most == 2
    assert at_rest(made, "narrow").delta == 5 * PRO


def test_where_every_place_is_taken_by_others_it_is_refused_at_once(made: Fleet, tokens: dict[str, str]) -> None:
    with made.redis as client:
        client.sadd("kg:{t:taken}:conc:tenant:all", "res_other")
        before = mark(made)
        answer = several(made, tokens["taken"], 2, seed=1)
        client.srem("kg:{t:taken}:conc:tenant:all", "res_other")
    assert (answer.status, answer.json["error"]["code"]) == (429, "concurrency_limited")
    assert answer.headers["x-should-retry"] == "true"
    assert sent(made, before) == []
    assert at_rest(made, "taken").delta == 0


def test_a_client_token_is_not_told_what_its_key_and_tenant_have(made: Fleet, tokens: dict[str, str]) -> None:
    lent = call(
        made.replicas[0].url, "/v1/client-tokens", tokens["taken"], body=b"{}",
        headers={"Content-Type": "application/json"},
    ).json["token"]  # fmt: skip
    with made.redis as client:
        client.sadd("kg:{t:taken}:conc:tenant:all", "res_other")
        told = {name: several(made, token, 2, seed=1) for name, token in (("key", tokens["taken"]), ("lent", lent))}
        client.srem("kg:{t:taken}:conc:tenant:all", "res_other")
    assert {answer.json["error"]["code"] for answer in told.values()} == {"concurrency_limited"}
    shown = {name: {"level", "limit"} & answer.json["error"]["gateway"].keys() for name, answer in told.items()}
    assert shown == {"key": {"level", "limit"}, "lent": set()}
    assert "tenant" not in told["lent"].json["error"]["message"]


def test_of_calls_that_compete_each_gets_all_or_nothing(made: Fleet, tokens: dict[str, str]) -> None:
    answers = together([lambda i=i: several(made, tokens["crowd"], 10, seed=100 * i) for i in range(1, 4)])  # type: ignore[misc]
    assert {(one.status, len(one.json.get("data", ()))) for one in answers} <= {(200, 10), (429, 0)}
    served = sum(one.status == 200 for one in answers)
    assert served <= 1
    assert at_rest(made, "crowd").delta == served * 10 * PRO


def test_a_refused_call_does_not_wait_for_what_others_make(made: Fleet, tokens: dict[str, str]) -> None:
    """One of its pictures is being made for another call when the money for the others is refused."""
    made.faults([{"kind": "hang", "count": 1, "options": {"after_seconds": 4.0, "seconds": 4.0}}])
    before = mark(made)
    refused: list[tuple[int, int]] = []

    def first() -> None:
        several(made, tokens["tight"], 1, seed=51)

    def second() -> None:
        wait_until(lambda: sent(made, before), 10)
        refused.append((several(made, tokens["tight"], 3, seed=50).status, made.stats()["in_progress"]))

    together([first, second])
    made.faults([])
    assert refused == [(429, 1)]
    assert len(sent(made, before)) == 1


def test_what_exists_is_returned_and_charged_and_what_is_missing_is_told(made: Fleet, tokens: dict[str, str]) -> None:
    made.faults([{"kind": "moderated_prompt", "count": 1}])
    try:
        answer = several(made, tokens["partly"], 3, seed=1)
    finally:
        made.faults([])
    assert (answer.status, len(answer.json["data"])) == (200, 2)
    assert answer.headers["gateway-missing"] == "content_moderated"
    assert answer.headers["gateway-cost-usd"] == "0.080000"
    books = at_rest(made, "partly")
    assert (books.delta, books.sum("SETTLED")) == (2 * PRO, 2 * PRO)


def test_where_none_exists_the_answer_is_the_failure_that_may_have_cost_something(
    made: Fleet, tokens: dict[str, str]
) -> None:
    made.faults([{"kind": "moderated_prompt", "count": 1}, {"kind": "cut_after_accept", "count": 1}])
    try:
        answer = several(made, tokens["lost"], 2, seed=1)
    finally:
        made.faults([])
    error = answer.json["error"]
    assert (answer.status, error["code"], error["gateway"]["charged"]) == (502, "upstream_failed", "unknown")
    assert answer.headers["x-should-retry"] == "false"
    assert at_rest(made, "lost").delta == PRO


def test_an_edit_sends_the_same_whole_picture_each_time(made: Fleet, tokens: dict[str, str]) -> None:
    """Large enough to be kept in a file that all of them read at once."""
    noise = picture_of_noise(700)
    before = mark(made)
    answer = edits(made, tokens["broad"], 4, noise, seed=1)
    assert (answer.status, len(answer.json["data"])) == (200, 4)
    digests = {(one["inputs"][0]["sha256"], one["inputs"][0]["size"]) for one in sent(made, before)}
    assert len(digests) == 1


def picture_of_noise(side: int) -> bytes:
    """A PNG that does not become small."""
    written = BytesIO()
    Image.frombytes("RGB", (side, side), os.urandom(side * side * 3)).save(written, "PNG")
    return written.getvalue()


def test_seeds_leave_room_for_all_of_them(made: Fleet, tokens: dict[str, str]) -> None:
    answer = several(made, tokens["shop"], 3, seed=2**53 - 2)
    error = answer.json["error"]
    assert (answer.status, error["param"], error["gateway"]["maximum"]) == (422, "seed", 2**53 - 3)
    assert several(made, tokens["shop"], 3, seed=2**53 - 3).status == 200


def test_a_name_goes_with_one_picture(made: Fleet, tokens: dict[str, str]) -> None:
    body = json.dumps({"prompt": "a lighthouse", "n": 2}).encode()
    head = {"Content-Type": "application/json", "Idempotency-Key": "order-1"}
    answer = call(made.replicas[0].url, "/v1/images/generations", tokens["shop"], body=body, headers=head)
    assert (answer.status, answer.json["error"]["param"]) == (422, "Idempotency-Key")


def test_a_client_that_leaves_pays_for_what_was_sent_alone(made: Fleet, tokens: dict[str, str]) -> None:
    parts = urlsplit(made.replicas[0].url)
    body = json.dumps({"prompt": "a lighthouse", "n": 3, "seed": 1}).encode()
    head = (
        f"POST /v1/images/generations HTTP/1.1\r\nHost: {parts.netloc}\r\nAuthorization: Bearer {tokens['gone']}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    before = mark(made)
    with socket.create_connection((parts.hostname or "", parts.port or 0)) as connection:
        connection.sendall(head.encode() + body)
        wait_until(lambda: sent(made, before), 10)
    assert at_rest(made, "gone").delta == PRO * len(sent(made, before))
    assert len(sent(made, before)) < 3


def test_what_stood_when_its_process_died_is_given_back(made: Fleet, tokens: dict[str, str]) -> None:
    """One was sent and is charged as ambiguous; those without a place come back whole."""
    second = made.start()
    before = mark(made)

    def ask() -> None:
        with pytest.raises((ConnectionError, OSError, Exception)):
            several(made, tokens["dead"], 3, replica=len(made.replicas) - 1, seed=1)

    def kill() -> None:
        wait_until(lambda: sent(made, before), 10)
        second.kill()

    together([ask, kill])
    books = at_rest(made, "dead")
    assert sorted(hold["state"] for hold in books.holds.values()) == ["AMBIGUOUS", "REFUNDED", "REFUNDED"]
    assert books.delta == PRO
