"""What was read of a queued job a moment ago does not give back the money of one that was sent meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import TypeVar

from app.quota.epoch import Epoch
from app.quota.ledger import Ledger, Moved, write
from app.quota.seat import FACTS, FIELDS, Held, refund_queued
from app.store import keys
from app.store.redis import Store
from tests.scripts.desk import FAR, TENANT, Desk, Limit, job

T = TypeVar("T")
LIMITS = [Limit("tenant", "usd", 100, 10)]


def _read(desk: Desk) -> Held:
    fields = (*FIELDS, *FACTS)
    found = desk.client.hmget(keys.reservation(TENANT, "r"), fields)
    return Held(TENANT, "r", {name: (value or b"").decode() for name, value in zip(fields, found, strict=True)})


def _with(desk: Desk, do: Callable[[Store], Awaitable[T]]) -> T:
    at = desk.client.connection_pool.connection_kwargs

    async def go() -> T:
        store = Store(f"redis://{at['host']}:{at['port']}", timeout=5, connect_timeout=5, observe=lambda *_: None)
        try:
            return await do(store)
        finally:
            await store.aclose()

    return asyncio.run(go())


def _cancel(desk: Desk, held: Held) -> str:
    async def go(store: Store) -> str:
        return (await write(store, held.refund("cancelled"), "inc_me"))[0].decode()

    return _with(desk, go)


def _queued(desk: Desk) -> None:
    start = desk.now - 10
    assert desk.reserve("r", "a", LIMITS, (start, start + FAR), amount=10, queued=True)[0] == "ok"
    desk.client.hset(keys.job(TENANT, job("r")), "worker", "a")


def test_a_job_that_was_sent_since_it_was_read_is_not_cancelled(desk: Desk) -> None:
    _queued(desk)
    assert desk.seat("r", "a")[0] == "ok"
    held = _read(desk)
    assert desk.dispatch("r", "a", 1)[0] == "ok"
    assert _cancel(desk, held) == "state"
    assert desk.finish("r", "SETTLED", "DISPATCHING", paid=10)[0] == "done"


def test_a_job_that_changed_hands_since_it_was_read_is_cancelled_once(desk: Desk) -> None:
    _queued(desk)
    held = _read(desk)
    assert desk.seat("r", "a")[0] == "ok"
    assert _cancel(desk, held) == "done"
    assert _cancel(desk, held) == "already"
    assert desk.dispatch("r", "a", 1)[0] == "state"


def test_a_job_that_took_places_since_it_was_read_is_cancelled_and_nothing_is_left_to_do_it_later(desk: Desk) -> None:
    _queued(desk)
    held, moved = _read(desk), list[Moved]()
    assert desk.seat("r", "a", [("all", 2)])[0] == "ok"

    async def go(store: Store) -> tuple[str, int]:
        ledger = Ledger(store, Epoch(store), "inc_me", moved=moved.append)
        return (await refund_queued(ledger, held, "cancelled")).state, len(ledger.unwritten)

    assert _with(desk, go) == ("REFUNDED", 0)
    assert [one.end for one in moved] == ["REFUNDED"]
    assert desk.client.scard(keys.concurrency(TENANT, "tenant", "all")) == 0


def test_an_end_that_cannot_be_written_holds_up_no_other(desk: Desk) -> None:
    start = desk.now - 10
    for name in ("bad", "good"):
        assert desk.reserve(name, "a", LIMITS, (start, start + FAR), amount=1)[0] == "ok"

    async def go(store: Store) -> list[str]:
        ledger = Ledger(store, Epoch(store), "a", moved=lambda _: None)
        for name in ("bad", "good"):
            call = (await Held.read(store, TENANT, name)).refund("left")
            ledger.unwritten[name] = replace(call, taken=()) if name == "bad" else call
        await ledger.write_unwritten()
        return list(ledger.unwritten)

    assert _with(desk, go) == ["bad"]
    assert desk.client.hget(keys.reservation(TENANT, "good"), "state") == b"REFUNDED"
