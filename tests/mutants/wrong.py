"""The mistakes: how each one is put into a running gateway, and how into a script.

Nothing in the application knows of them: a method, or a script's text, is replaced before the command starts.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

from app import named, pipeline
from app.cache.flight import Flights
from app.errors import Refused
from app.prodia import faults
from app.prodia.retry import RetryBudget
from app.quota import hold, ledger
from app.quota.hold import Hold
from app.store import keys
from app.store.redis import Script

Proof = Literal["storm", "machine", "seeded flock", "seedless flock", "crowd"]


@dataclass(frozen=True)
class Mutant:
    """One mistake.

    Args:
        says: what is done wrong.
        proof: which run finds it.
        invariant: what the checker must say of it.
        patch: puts it into this process's gateway; for a mistake in a script, `script` and `change` say it instead.
        script: name of the script in app/quota.
        change: the text that is replaced, and by what.
    """

    says: str
    proof: Proof
    invariant: str
    patch: Callable[[], None] | None = None
    script: str = ""
    change: tuple[str, str] = ("", "")

    def text(self, shipped: str) -> str:
        """A script with the mistake in it. Raises AssertionError when the script no longer has the place for it."""
        assert shipped.count(self.change[0]) == 1, f"{self.script}.lua has no such place: {self.change[0]!r}"
        return shipped.replace(*self.change)

    def apply(self) -> None:
        """Make the gateway of this process the wrong one."""
        if self.patch is not None:
            self.patch()
        else:
            where = ledger if self.script == "finish" else hold
            name = self.script.upper()
            setattr(where, name, _changed(getattr(where, name), *self.change))


def _changed(shipped: Script, old: str, new: str) -> Script:
    assert old in shipped.text
    text = shipped.text.replace(old, new)
    return replace(shipped, text=text, sha=hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())


_LIMIT = "if spent + reserved + limit[2] > limit[1] then return {'limit', i, int(spent), int(reserved)} end"


def _check_then_add() -> None:
    unchecked, asked = _changed(hold.RESERVE, _LIMIT, ""), Hold._ask

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


def _refund_on_timeout() -> None:
    async def charge_unknown(self: Hold, **row: Any) -> str:
        return await self._end("REFUNDED", "DISPATCHING", 0, row)

    Hold.charge_unknown = charge_unknown  # type: ignore[method-assign]


def _reserve_after_dispatch() -> None:
    dispatch, end = Hold.dispatch, Hold._end

    async def enter(self: Hold) -> Hold:
        return self

    async def pretend(self: Hold) -> None:
        self.state = "new"

    async def end_late(self: Hold, to: Any, sources: str, paid: int, row: Any) -> str:
        if to == "REFUNDED":
            self.state = "ended"
            return "done"
        try:
            await self._reserve()
        except Refused:
            self.state = "ended"
            raise
        await dispatch(self)
        return await end(self, to, sources, paid, row)

    Hold.__aenter__ = enter  # type: ignore[method-assign]
    Hold.dispatch = Hold.retract = pretend  # type: ignore[method-assign]
    Hold._end = end_late  # type: ignore[method-assign, assignment]


def _retry_after_cut() -> None:
    faults.RETRY["lost"], faults.MONEY["lost"] = 1, "refund"
    RetryBudget.withdraw = lambda self: True  # type: ignore[method-assign]


def _seedless_coalesced() -> None:
    validate = pipeline.validate  # type: ignore[attr-defined]

    def fixed(*args: Any, **options: Any) -> Any:
        return replace(validate(*args, **options), seed=0, seed_given=True)

    pipeline.validate = fixed  # type: ignore[attr-defined]


def _flight_per_process() -> None:
    async def join(self: Flights, flight: Any, *, dead: str, fresh: bool) -> Any:
        flight.fence = "1"
        return True

    async def mark(self: Flights, flight: Any, state: str, note: str) -> bool:
        return True

    Flights._join, Flights._mark = join, mark  # type: ignore[method-assign]


def _unscoped() -> None:
    scoped = keys.idempotency
    keys.idempotency = lambda tenant, key_id, route, name: scoped(tenant, "", "", name)


def _body_unchecked() -> None:
    named.call_digest = lambda request, *, secret: "always the same"  # type: ignore[attr-defined]


def _name_per_process() -> None:
    scoped, here = keys.idempotency, str(os.getpid())
    keys.idempotency = lambda tenant, key_id, route, name: scoped(tenant, key_id, route, here + name)


_OPEN_WINDOW = """local name, add = KEYS[6 + places + i], window[2]
  local open = string.match(redis.call('HGET', KEYS[1], 'w:' .. string.match(name, ':(%a+):%d+$')) or '', '^%d+')
  if open then name = string.gsub(name, '%d+$', open) end"""

MUTANTS: dict[str, Mutant] = {
    "check-then-add": Mutant("reads the counters, decides, then adds", "storm", "I1", _check_then_add),
    "refund-on-timeout": Mutant("gives money back for a job whose answer was lost", "storm", "I3", _refund_on_timeout),
    "reserve-after-dispatch": Mutant("sends first and holds money later", "storm", "I3", _reserve_after_dispatch),
    "retry-after-cut": Mutant("sends a job again whose answer was lost", "storm", "I4", _retry_after_cut),
    "flight-per-process": Mutant("joins flights in one process only", "seeded flock", "I7", _flight_per_process),
    "seedless-coalesced": Mutant("takes all seedless requests for equal", "seedless flock", "I7", _seedless_coalesced),
    "name-unscoped": Mutant("takes one key's name for another's", "crowd", "I6", _unscoped),
    "body-unchecked": Mutant("takes any request under a name for the first", "crowd", "I6", _body_unchecked),
    "name-per-process": Mutant("remembers names in one process only", "crowd", "I6", _name_per_process),
    "window-at-settle": Mutant(
        "settles in the window of now", "machine", "I2",
        script="finish", change=("local name, add = KEYS[6 + places + i], window[2]", _OPEN_WINDOW),
    ),
    "charged-twice": Mutant(
        "settles an ambiguous job on top of its charge", "machine", "I2",
        script="finish", change=("state == 'AMBIGUOUS' and amount or 0\n", "0\n"),
    ),
    "charge-reported-twice": Mutant(
        "adds a late settlement to the day's usage on top of its charge", "machine", "usage",
        script="finish", change=("count('spent', charge - was)", "count('spent', charge)"),
    ),
    "stale-reaper": Mutant(
        "ends a reservation whatever its fence", "machine", "model",
        script="finish", change=("(ARGV[4] ~= '' and held[2] ~= ARGV[4]) or ", ""),
    ),
    "release-without-owner": Mutant(
        "takes a job back for whoever asks", "machine", "model",
        script="retract", change=("or held[2] ~= ARGV[1] or held[3] ~= ARGV[2]", "or held[3] ~= ARGV[2]"),
    ),
    "hold-by-hold": Mutant(
        "holds each level as it is checked", "machine", "I2",
        script="reserve", change=(_LIMIT, _LIMIT + "\n  redis.call('HINCRBY', KEYS[7 + places + i], 'reserved', 1)"),
    ),
    "off-by-one-cap": Mutant(
        "lets a cap be passed by one micro-dollar", "machine", "model",
        script="reserve", change=("limit[2] > limit[1] then", "limit[2] > limit[1] + 1 then"),
    ),
}  # fmt: skip
