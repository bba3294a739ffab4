"""How long a job takes is learned from jobs that were done and believed for a minute: no type is shut out for good."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from time import monotonic as real
from typing import Any, cast

import orjson
import pytest

from app.errors import Refused
from app.prodia import turns
from app.prodia.turns import Turns
from app.store.redis import Store

DEADLINE = 60.0


class Free:
    """A ledger that grants whatever is asked for."""

    async def run(self, script: object, keys: Sequence[str], arguments: Sequence[bytes]) -> list[Any]:
        """Every want has its slot."""
        return [0, *([b"slot", t.encode(), kind.encode(), n] for t, kind, n, *_ in orjson.loads(arguments[0])["want"])]


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Let so many seconds pass on the clock of turns."""
    ahead = 0.0

    def step(seconds: float) -> None:
        nonlocal ahead
        ahead += seconds

    monkeypatch.setattr(turns, "monotonic", lambda: real() + ahead)
    return step


def played(work: Callable[[Turns], Awaitable[None]]) -> None:
    """Run it against turns that always come at once."""

    async def run() -> None:
        await work(Turns(cast(Store, Free()), "me", total=4, caps={}, probe_seconds=DEADLINE))

    asyncio.run(run())


async def job(line: Turns, seconds: float, later: Callable[[float], None], error: Exception | None = None) -> None:
    """One that takes so long, and ends so."""
    turn = line.turn("acme", 1, "kind", turns.monotonic() + DEADLINE)
    async with turn.taken(timeout=DEADLINE):
        later(seconds)
        if error is not None:
            raise error


def test_jobs_that_were_cut_off_do_not_shut_out_those_after_them(later: Callable[[float], None]) -> None:
    async def work(line: Turns) -> None:
        for _ in range(20):
            with pytest.raises(TimeoutError):
                await job(line, DEADLINE, later, TimeoutError())
        await job(line, 6, later)

    played(work)


def test_who_is_refused_because_jobs_take_long_is_let_in_once_that_is_old(later: Callable[[float], None]) -> None:
    async def work(line: Turns) -> None:
        await job(line, 0.9 * DEADLINE, later)
        with pytest.raises(Refused, match="too late"):
            await job(line, 6, later)
        later(turns.KNOWN)
        await job(line, 6, later)

    played(work)
