"""A worker that could not send a job gives its seat back, whatever Redis had acknowledged: the job waits again, its
money held, and nothing that was certainly not sent is charged."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace

from app.domain.policy import apply
from app.errors import LedgerUnavailable
from app.prodia.faults import Fault, public_error
from app.quota.epoch import Epoch
from app.quota.ledger import Ledger
from app.quota.seat import Held, Seat
from app.store import keys
from app.store.redis import Store
from tests.scripts.desk import DIGEST, EPOCH, FAR, TENANT, Desk, Limit, job
from tests.unit.asks import caller, request, tenant

LIMITS = [Limit("tenant", "usd", 100, 10), Limit("tenant", "img", 5, 1)]
RECORD = keys.reservation(TENANT, "r")


def _given_back(desk: Desk, meanwhile: Callable[[Seat], Awaitable[None]], error: BaseException | None = None) -> Seat:
    """The seat of a job that met this error once `meanwhile` had happened."""
    start = desk.now - 10
    assert desk.reserve("r", "a", LIMITS, (start, start + FAR), amount=10, queued=True)[0] == "ok"
    desk.client.hset(keys.job(TENANT, job("r")), "worker", "a")
    desk.client.hset(RECORD, "job", job("r"))
    at = desk.client.connection_pool.connection_kwargs

    async def go() -> Seat:
        store = Store(f"redis://{at['host']}:{at['port']}", timeout=5, connect_timeout=5, observe=lambda *_: None)
        ledger = Ledger(store, Epoch(store), "a", moved=lambda _: None)
        ledger.epoch.id = EPOCH
        who = replace(caller(tenant()), token_digest=DIGEST)
        seat = Seat(ledger, apply(who, request()), await Held.read(store, TENANT, "r"), None)
        try:
            async with seat:
                await meanwhile(seat)
                raise error or LedgerUnavailable
        except (LedgerUnavailable, type(error or LedgerUnavailable())):
            assert not ledger.unwritten
            assert (seat.id in ledger.active) == seat.owed
            return seat
        finally:
            await store.aclose()

    return asyncio.run(go())


def _waits(desk: Desk) -> bool:
    """Whether the job waits as if its turn had not come."""
    record = desk.client.hmget(RECORD, "state", "owner", "places")
    waiting = desk.client.zrange(keys.waiting(TENANT), 0, -1)
    return record == [b"RESERVED", job("r").encode(), b"[]"] and waiting == [job("r").encode()]


def _counters(desk: Desk) -> list[list[int]]:
    start = int(desk.client.hget(RECORD, "usage").rsplit(b":", 1)[1])
    found = [desk.client.hmget(limit.key(start), "spent", "reserved") for limit in LIMITS]
    return [[int(value or 0) for value in values] for values in found]


def test_a_dispatch_whose_acknowledgement_was_lost_is_taken_back_with_the_seat(desk: Desk) -> None:
    async def lost(seat: Seat) -> None:
        assert desk.dispatch("r", "a", 1)[0] == "ok"
        seat.not_sent()

    assert not _given_back(desk, lost).owed
    assert _waits(desk)
    assert _counters(desk) == [[0, 10], [0, 1]]
    assert desk.dispatch("r", "a", 1)[0] == "state"  # nor does one that comes late
    assert desk.seat("r", "a") == ["ok", desk.client.hget(keys.ledger(TENANT), "seq").decode(), "4"]


def test_a_dispatch_that_was_never_acknowledged_leaves_the_job_waiting(desk: Desk) -> None:
    async def nothing(seat: Seat) -> None:
        seat.not_sent()

    assert not _given_back(desk, nothing).owed
    assert _waits(desk)


def test_a_retraction_whose_reply_was_lost_leaves_the_job_waiting(desk: Desk) -> None:
    async def lost(seat: Seat) -> None:
        await seat.dispatch()
        seat.not_sent()
        assert desk.retract("r", "a", 1)[0] == "ok"

    assert not _given_back(desk, lost).owed
    assert _waits(desk)


def test_what_a_busy_upstream_did_not_bill_waits(desk: Desk) -> None:
    async def sent(seat: Seat) -> None:
        await seat.dispatch()
        seat.not_sent()

    _given_back(desk, sent, public_error(Fault("busy"), "no"))
    assert _waits(desk)


def test_what_another_replica_took_for_sent_meanwhile_is_not_charged(desk: Desk) -> None:
    async def reaped(seat: Seat) -> None:
        await seat.dispatch()
        seat.not_sent()
        assert desk.finish("r", "AMBIGUOUS", "DISPATCHING", fence="1", by="reaper")[0] == "done"

    assert not _given_back(desk, reaped).owed
    assert desk.client.hget(RECORD, "state") == b"REFUNDED"
    assert _counters(desk) == [[0, 0], [0, 0]]


def test_what_another_worker_has_by_now_is_left_to_it(desk: Desk) -> None:
    async def replaced(seat: Seat) -> None:
        assert desk.unseat("r", "a", 1)[0] == "ok"
        desk.client.hset(keys.job(TENANT, job("r")), "worker", "b")
        assert desk.seat("r", "b")[0] == "ok"
        assert desk.dispatch("r", "b", 3)[0] == "ok"
        seat.not_sent()

    assert not _given_back(desk, replaced).owed
    assert desk.client.hmget(RECORD, "state", "owner") == [b"DISPATCHING", b"b"]


def test_a_seat_that_cannot_be_given_back_is_owed_and_no_reaper_of_its_process_touches_it(desk: Desk) -> None:
    async def away(seat: Seat) -> None:
        await seat.dispatch()
        seat.not_sent()
        await seat._ledger.store.aclose()

    assert _given_back(desk, away).owed
    assert desk.client.hget(RECORD, "state") == b"DISPATCHING"
