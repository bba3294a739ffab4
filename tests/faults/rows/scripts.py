"""M-13, M-14, M-17, M-20, M-21: the money scripts themselves, on both engines, in every order and with every key
damaged."""

from __future__ import annotations

import time
from collections import Counter
from decimal import Decimal
from typing import Any

import redis

from app.domain import pricing
from app.store import keys
from tests.faults.books import Books
from tests.faults.checker import books, check, settle_down
from tests.faults.clients import History
from tests.faults.nemesis import hurried
from tests.faults.row import Run, row
from tests.faults.storm import PATIENT, tenants, token
from tests.fleet import fleet, wait_until
from tests.redis_server import Engine
from tests.scripts.calls import CALLS, LIMITS, busy
from tests.scripts.desk import DIGEST, FAR, KEY, TENANT, Desk, Limit
from tests.scripts.engines import engine
from tests.scripts.machine import play

ENGINES: tuple[Engine, ...] = ("valkey", "redis")
SPENDS = (
    "admit",
    "reserve",
    "reserve standing",
    "sit",
    "dispatch",
    "dispatch named",
    "claim",
    "reserve queued",
    "seat",
)  # what may be refused for want of memory; ends may not
DOLLARS = [Limit("tenant", "usd", 30, 10)]


@row(
    "M-13",
    "0 violations in sequences of reserve, dispatch, retract, settle, refund, reap and reconcile, in any order",
    ci={"sequences": 160},
    nightly={"sequences": 20_000},
)
def any_order_of_calls(run: Run, sequences: int) -> None:
    for kind in ENGINES:
        with engine(kind) as client:
            play(Desk(client), examples=sequences // 2, draws=run.seed)
    run.reached = f"0 in {sequences} sequences of up to 40 calls, two engines"


@row(
    "M-14",
    "1 refund for each of the holds that 3 replicas reap at once",
    ci={"holds": 400},
    nightly={"holds": 10_000},
)
def three_reapers(run: Run, holds: int) -> None:
    with fleet(run.folder, tenants(None), replicas=3, **PATIENT) as running, running.redis as client:
        History().send(running.urls, token(running), [1])  # the tenant's ledger is open
        settle_down(running, TENANT)
        desk = Desk(client, epoch=str(client.hget(keys.ROOT, "id").decode()))
        client.hset(keys.key(TENANT, KEY), mapping={f"d:{DIGEST}": "0", "version": "1"})
        start, _, end = client.hget(keys.ledger(TENANT), "w:day").decode().partition(",")
        limits = [Limit("user", "usd", 10**12, 40_000)]
        for replica in running.replicas:
            replica.freeze()
        for number in range(holds):
            name = f"res_dead{number}"
            assert desk.reserve(name, "inc_dead", limits, (int(start), int(end)), amount=40_000)[0] == "ok"
        client.zadd(keys.outstanding(TENANT), {f"res_dead{number}": 1 for number in range(holds)})
        time.sleep(1)  # so that the heartbeat of each is due when they go on
        for replica in running.replicas:
            replica.thaw()
        wait_until(lambda: not client.zcard(keys.outstanding(TENANT)), 30 + holds / 100)
        check(running, TENANT)
        ends = Counter(one["id"] for one in books(running).rows if one["by"] == "reaper")
        won = [int(one.total("kontext_gateway_reservations_reaped_total")) for one in running.replicas]
        run.reached = f"{len(ends)} holds, {max(ends.values())} refund each; by replica {won}"
        assert len(ends) == holds == sum(won)
        assert set(ends.values()) == {1}


@row(
    "M-17",
    "each window is charged with what was reserved in it, and opened once",
    ci={"rollovers": 10},
    nightly={"rollovers": 1_000},
)
def windows_roll_over(run: Run, rollovers: int) -> None:
    """Windows of one second of a clock that runs five times faster; each hold ends in the window after its own; three
    callers open each window."""
    with engine("valkey", **hurried(5)) as client:
        desk = Desk(client).open()
        expected, waiting = {}, ""
        for number in range(rollovers):
            wait_until(
                lambda: desk.now > int((client.hget(keys.ledger(TENANT), "w:day") or b",0").split(b",")[1]) - 1, 3
            )
            span = (desk.now, desk.now + 1)
            opened = [desk.reserve(f"r{number}-{i}", "a", DOLLARS, span, amount=10) for i in range(3)]
            assert [reply[0] for reply in opened] == ["ok"] * 3
            full = desk.reserve(f"r{number}-3", "a", DOLLARS, span, amount=10)
            assert full[0] in ("limit", "span")
            if waiting:
                assert desk.finish(waiting, "SETTLED", "DISPATCHING", paid=8)[0] == "done"
            for i in (1, 2):
                assert desk.finish(f"r{number}-{i}", "REFUNDED", "RESERVED")[0] == "done"
            waiting = f"r{number}-0"
            assert desk.dispatch(waiting, "a", 0)[0] == "ok"
            expected[DOLLARS[0].key(span[0])] = (8, 0)
        assert desk.finish(waiting, "SETTLED", "DISPATCHING", paid=8)[0] == "done"
        found = Books.read(client, TENANT)
        run.reached = f"{rollovers} rollovers, {len(found.windows)} windows exact"
        assert not found.violations()
        assert found.windows == expected


@row(
    "M-18",
    "0 micro-dollars of drift from exact decimals, over random prices and in the ledger",
    ci={"prices": 100_000, "jobs": 500},
    nightly={"prices": 1_000_000, "jobs": 20_000},
)
def nothing_is_rounded(run: Run, prices: int, jobs: int) -> None:
    total, exact = 0, Decimal(0)
    for _ in range(prices):
        reserved, reported = run.draw.randrange(1, 10**12), run.draw.randrange(10**12)
        price = pricing.actual(reserved, reported)
        assert (price.paid, price.drift) == (min(reserved, reported), max(0, reported - reserved))
        assert pricing.parse_billed(pricing.usd(reported)) == reported
        total, exact = total + price.paid, exact + Decimal(pricing.usd(price.paid))
    assert exact * pricing.MICRO == total
    with engine("valkey") as client:
        desk, spent = Desk(client).open(), 0
        span = (desk.now - 1_000, desk.now + FAR)
        for number in range(jobs):
            amount = run.draw.randrange(1, 10**10)
            paid = run.draw.randrange(amount + 1)
            assert (
                desk.reserve(f"r{number}", "a", [Limit("tenant", "usd", 2**52, amount)], span, amount=amount)[0] == "ok"
            )
            assert desk.dispatch(f"r{number}", "a", 0)[0] == "ok"
            assert desk.finish(f"r{number}", "SETTLED", "DISPATCHING", paid=paid)[0] == "done"
            spent += paid
        found = Books.read(client, TENANT)
        run.reached = f"0 in {prices:,} prices, and 0 in {jobs:,} jobs of {spent / 1e6:,.0f} dollars in all"
        assert set(found.windows.values()) == {(spent, 0)}
        assert not found.violations()


@row(
    "M-20",
    "no hold at any level when the last of them is full",
    ci={"tries": 2_000},
    nightly={"tries": 100_000},
)
def the_last_level_is_full(run: Run, tries: int) -> None:
    with engine("valkey") as client:
        desk = Desk(client).open()
        span = (desk.now - 1_000, desk.now + FAR)
        refused = 0
        for number in range(tries):
            amount = run.draw.choice([1, 7, 40, 1_000])
            full = run.draw.randrange(len(LIMITS))
            limits = [Limit(x.level, x.kind, 0 if i == full else 10**9, amount) for i, x in enumerate(LIMITS)]
            reply = desk.reserve(f"r{number}", "a", limits, span, places=(("all", 3),), amount=amount)
            refused += reply[:2] == ["limit", full + 1]
        found = Books.read(client, TENANT)
        run.reached = f"0 partial holds in {refused} of {tries} tries"
        assert refused == tries
        assert not found.windows
        assert not found.holds
        assert not any(found.places.values())


@row(
    "M-21",
    "state unchanged by every call that meets a damaged key or full memory; ends are written all the same",
    ci={"rounds": 1},
    nightly={"rounds": 20},
)
def damaged_keys_and_full_memory(run: Run, rounds: int) -> None:
    poisoned = 0
    for kind in ENGINES * rounds:
        with engine(kind) as client:
            desk = Desk(client)
            for call in CALLS:
                for place in range(len(CALLS[call][1](busy(desk)))):
                    _meets_a_key_of_another_type(desk, call, place)
                    poisoned += 1
                _meets_full_memory(busy(desk), call)
    run.reached = f"{poisoned} damaged keys and {len(CALLS) * 2 * rounds} calls in full memory, {len(ENGINES)} engines"


def _meets_a_key_of_another_type(desk: Desk, call: str, place: int) -> None:
    work, names = CALLS[call]
    name = names(busy(desk))[place]
    desk.client.delete(name)
    if name.endswith(("k1", "k2", "queued-bytes")):  # these are strings
        desk.client.hset(name, "x", "1")
    else:
        desk.client.set(name, "not what it should be")
    before = desk.everything()
    assert _error(lambda: work(desk)).startswith("WRONGTYPE")
    assert desk.everything() == before, f"{call} wrote before it met {name}"


def _meets_full_memory(desk: Desk, call: str) -> None:
    before = desk.everything()
    desk.client.config_set("maxmemory", 1)
    try:
        error = _error(lambda: CALLS[call][0](desk))
    finally:
        desk.client.config_set("maxmemory", 0)
    assert bool(error) == (call in SPENDS), (call, error)
    assert not error or desk.everything() == before


def _error(work: Any) -> str:
    try:
        work()
    except redis.ResponseError as error:
        return str(error)
    return ""
