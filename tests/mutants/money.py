"""Mistakes with money: what is held, charged, given back, sent again, or forgotten."""

from __future__ import annotations

import asyncio
import json
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any

from app.cache.flight import Flights
from app.cache.results import Results
from app.domain.job import Caller
from app.domain.tenant import KeyPolicy
from app.errors import LedgerUnavailable, Refused
from app.pipeline import Gateway
from app.prodia import faults
from app.prodia.retry import RetryBudget
from app.prodia.turns import Turn
from app.quota import hold
from app.quota.epoch import Epoch
from app.quota.hold import Hold
from app.quota.ledger import Ledger
from app.store import keys
from app.store.redis import Script
from tests.mutants.mutant import Killer, Mutant, changed

_LIMIT = "if spent + reserved + limit[2] > limit[1] then return {'limit', i, int(spent), int(reserved)} end"


def _check_then_add() -> None:
    unchecked, asked = changed(hold.RESERVE, _LIMIT, ""), Hold._ask

    async def ask(self: Hold, script: Script, names: list[str], args: list[Any]) -> Any:
        if script is not hold.RESERVE:
            return await asked(self, script, names, args)
        limits = json.loads(args[0])["limits"]
        windows = names[len(names) - len(limits) :]
        found = await self._ledger.store.commands(*(("HMGET", name, "spent", "reserved") for name in windows))
        for place, (limit, values) in enumerate(zip(limits, found, strict=True), 1):
            spent, reserved = (int(value or 0) for value in values)
            if spent + reserved + limit[1] > limit[0]:
                return [b"limit", place, spent, reserved]
        return await asked(self, unchecked, names, args)

    Hold._ask = ask  # type: ignore[method-assign]


def _no_reservation_id() -> None:
    unaware = changed(hold.RESERVE, "local state = redis.call('HGET', KEYS[2], 'state')", "local state = nil")
    asked = Hold._ask

    async def ask(self: Hold, script: Script, names: list[str], args: list[Any]) -> Any:
        if script is not hold.RESERVE:
            return await asked(self, script, names, args)
        for _ in range(30):
            with suppress(LedgerUnavailable):
                return await asked(self, unaware, names, args)
            await asyncio.sleep(0.1)
        raise LedgerUnavailable()

    Hold._ask = ask  # type: ignore[method-assign]


def _refund_on_timeout() -> None:
    async def charge_unknown(self: Hold, told: object = None, **row: Any) -> str:
        return await self._end("REFUNDED", "DISPATCHING", 0, told, row)

    Hold.charge_unknown = charge_unknown  # type: ignore[method-assign]


def _reserve_after_dispatch() -> None:
    dispatch, end = Hold.dispatch, Hold._end

    async def enter(self: Hold) -> Hold:
        return self

    async def pretend(self: Hold) -> None:
        self.state = "new"

    async def end_late(self: Hold, to: Any, sources: str, paid: int, told: object, row: Any) -> str:
        if to == "REFUNDED":
            self.state = "ended"
            return "done"
        try:
            await self._reserve()
        except Refused:
            self.state = "ended"
            raise
        await dispatch(self)
        return await end(self, to, sources, paid, told, row)

    Hold.__aenter__ = enter  # type: ignore[method-assign]
    Hold.dispatch = Hold.retract = pretend  # type: ignore[method-assign]
    Hold._end = end_late  # type: ignore[method-assign]


def _retry_after_cut() -> None:
    faults.RETRY["lost"], faults.MONEY["lost"] = 1, "refund"
    RetryBudget.withdraw = lambda self: True  # type: ignore[method-assign]


def _lease_never_expires() -> None:
    keys.LEASE_MS = 10**9


def _left_with_its_caller() -> None:
    async def led(self: Gateway, purchase: Any) -> Any:
        return await self.buyer.lead(purchase)

    Gateway._led = led  # type: ignore[method-assign]


def _store_after_settle() -> None:
    store = Results.store

    async def later(self: Results, digest: str, result: Any, ttl: int) -> bool:
        self.__dict__.setdefault("storing", set()).add(asyncio.create_task(store(self, digest, result, ttl)))
        return True

    Results.store = later  # type: ignore[method-assign]


def _counts_by_itself() -> None:
    admit, join, enter, taken = Ledger.admit, Flights._join, Hold.__aenter__, Turn.taken

    async def admitted(self: Ledger, tenant: Any, key_id: str, digest: str) -> Any:
        try:
            return await admit(self, tenant, key_id, digest)
        except LedgerUnavailable:
            return Caller(tenant, key_id, digest, KeyPolicy()), []

    async def joined(self: Flights, flight: Any, **options: Any) -> None:
        with suppress(LedgerUnavailable):
            await join(self, flight, **options)

    async def entered(self: Hold) -> Hold:
        with suppress(LedgerUnavailable):
            return await enter(self)
        self.state = "cleared"
        return self

    async def soon(self: Turn) -> bool:
        return True

    @asynccontextmanager
    async def turn(self: Turn, *, timeout: float) -> Any:
        async with AsyncExitStack() as stack:
            with suppress(LedgerUnavailable):
                await stack.enter_async_context(taken(self, timeout=timeout))
            yield

    Ledger.admit, Flights._join = admitted, joined  # type: ignore[method-assign]
    Hold.__aenter__, Turn.taken, Turn.soon = entered, turn, soon  # type: ignore[method-assign, assignment]


def _any_ledger_will_do() -> None:
    async def mismatch(self: Epoch, tenant: str, found: bytes) -> None:
        self._marks.pop(tenant, None)
        await self._store.commands(
            ("HSETNX", keys.ledger(tenant), "epoch", str(self.id)), ("SADD", keys.TENANTS, tenant)
        )

    async def watch(self: Epoch) -> None:
        """Nothing."""

    Epoch.mismatch, Epoch.watch = mismatch, watch  # type: ignore[method-assign]


_OPEN_WINDOW = """local name, add = KEYS[6 + places + i], window[2]
  local open = string.match(redis.call('HGET', KEYS[1], 'w:' .. string.match(name, ':(%a+):%d+$')) or '', '^%d+')
  if open then name = string.gsub(name, '%d+$', open) end"""
STORM = {"fleets": 1, "rounds": 1, "requests": 200}

MUTANTS: dict[str, Mutant] = {
    "check-then-add": Mutant(
        "reads the counters, decides, then adds", (Killer("M-01", "I1: ", STORM),), _check_then_add
    ),
    "reserve-after-dispatch": Mutant(
        "sends first and holds money later", (Killer("M-01", "I3: ", STORM),), _reserve_after_dispatch
    ),
    "no-reservation-id": Mutant(
        "asks for a reservation until it hears of it, and has no id that would tell a repeat",
        (Killer("M-02", "I2: ", {"requests": 60}),), _no_reservation_id,
    ),
    "left-with-its-caller": Mutant(
        "ends a job that was sent when its caller leaves",
        (Killer("M-03", "I3: ", {"rounds": 1, "walks": 0}), Killer("U-01", 'sum("SETTLED")', {"waves": 2})),
        _left_with_its_caller,
    ),
    "lease-never-expires": Mutant(
        "takes a dead process for a living one for ever", (Killer("M-05", "I5: ", {"kills": 1}),), _lease_never_expires
    ),
    "store-after-settle": Mutant(
        "settles a picture that is not stored yet", (Killer("M-05", "paid and lost", {"kills": 0}),),
        _store_after_settle,
    ),
    "refund-on-timeout": Mutant(
        "gives money back for a job whose answer was lost", (Killer("M-07", "I3: ", {"jobs": 5}),), _refund_on_timeout
    ),
    "retry-after-cut": Mutant(
        "sends a job again whose answer was lost", (Killer("M-07", "I4: ", {"jobs": 5}),), _retry_after_cut
    ),
    "counts-by-itself": Mutant(
        "goes on without the ledger while it is away", (Killer("R-01", "I11: "),), _counts_by_itself
    ),
    "any-ledger-will-do": Mutant(
        "takes a ledger that was lost for one where nothing is spent", (Killer("R-05", "I11: "),), _any_ledger_will_do
    ),
    "window-at-settle": Mutant(
        "settles in the window of now", (Killer("M-13", "I2: "),),
        script="finish", change=("local name, add = KEYS[6 + places + i], window[2]", _OPEN_WINDOW),
    ),
    "window-opened-again": Mutant(
        "opens a window again that is over, when the clock steps back",
        (Killer("M-16", "two windows of 10", {"steps": 1}),),
        script="reserve",
        change=("if open_to and now < tonumber(open_to) then",
                "if open_to and now >= tonumber(open_from) and now < tonumber(open_to) then"),
    ),
    "charged-twice": Mutant(
        "settles an ambiguous job on top of its charge", (Killer("M-13", "I2: "),),
        script="finish", change=("state == 'AMBIGUOUS' and amount or 0\n", "0\n"),
    ),
    "charge-reported-twice": Mutant(
        "adds a late settlement to the day's usage on top of its charge", (Killer("M-13", "usage: "),),
        script="finish", change=("count('spent', charge - was)", "count('spent', charge)"),
    ),
    "stale-reaper": Mutant(
        "ends a reservation whatever its fence", (Killer("M-13", "model: "),),
        script="finish", change=("(ARGV[4] ~= '' and held[2] ~= ARGV[4]) or ", ""),
    ),
    "release-without-owner": Mutant(
        "takes a job back for whoever asks", (Killer("M-13", "model: "),),
        script="retract", change=("or held[2] ~= ARGV[1] or held[3] ~= ARGV[2]", "or held[3] ~= ARGV[2]"),
    ),
    "hold-by-hold": Mutant(
        "holds each level as it is checked", (Killer("M-13", "I2: "),),
        script="reserve", change=(_LIMIT, _LIMIT + "\n  redis.call('HINCRBY', KEYS[7 + places + i], 'reserved', 1)"),
    ),
    "off-by-one-cap": Mutant(
        "lets a cap be passed by one micro-dollar", (Killer("M-13", "model: "),),
        script="reserve", change=("limit[2] > limit[1] then", "limit[2] > limit[1] + 1 then"),
    ),
}  # fmt: skip
