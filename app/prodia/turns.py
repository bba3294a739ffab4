"""A fair turn at the upstream: fleet-wide slots shared between tenants by weight, the pause after a 429, and the
breaker.

The pipeline's leader takes a turn before it dispatches. All wants of a process travel in one script call at a time;
while some are unmet, the call is repeated every few hundredths of a second. When Redis is away, `LedgerUnavailable`
is raised to those who wait.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections import Counter, defaultdict, deque
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from time import monotonic
from typing import Any

from app.errors import LedgerUnavailable, Refused, UpstreamError
from app.store import keys
from app.store.redis import Store, script

TURNS = script("app.prodia", "turns")
POLL = 0.025  # seconds between calls while a want is unmet
THRESHOLD = 10  # failures in a row, over the whole fleet, that open the breaker of a type
OPEN_MS, OPEN_MAX_MS = 5_000, 60_000

Line = tuple[str, str]  # tenant, job type


@dataclass(slots=True)
class _Want:
    future: asyncio.Future[None]
    since: float
    weight: int


class Turns:
    """The upstream slots as one process sees them.

    Args:
        total: jobs in flight over the whole fleet.
        caps: per job type, where the catalogue sets one.
        probe_seconds: how long a probe of a half-open breaker may take.
    """

    def __init__(
        self, store: Store, incarnation: str, *, total: int, caps: Mapping[str, int], probe_seconds: float
    ) -> None:
        self._store = store
        self._me = incarnation
        self._total = total
        self._caps = dict(caps)
        self._probe_ms = int(probe_seconds * 1000)
        self._wants: defaultdict[Line, deque[_Want]] = defaultdict(deque)
        self._using: Counter[Line] = Counter()
        self._news: list[tuple[str, str, int]] = []
        self._exchange: asyncio.Task[None] | None = None
        self._dirty = False
        self._woken = asyncio.Event()

    @property
    def in_use(self) -> int:
        """Slots that this process uses."""
        return self._using.total()

    @property
    def waiting(self) -> int:
        """Jobs of this process that wait for a slot."""
        return sum(len(wants) for wants in self._wants.values())

    @property
    def oldest_wait(self) -> float:
        """Seconds that the longest waiting job of this process has waited."""
        return max((monotonic() - wants[0].since for wants in self._wants.values() if wants), default=0.0)

    @asynccontextmanager
    async def take(self, tenant: str, weight: int, job_type: str, *, timeout: float) -> AsyncIterator[None]:
        """Wait for a slot, hold it for the length of the block.

        Raises:
            Refused: upstream_busy, no turn within `timeout` seconds.
            UpstreamError: upstream_unavailable, the breaker is open.
            LedgerUnavailable: Redis is away.
        """
        line = (tenant, job_type)
        want = _Want(asyncio.get_running_loop().create_future(), monotonic(), weight)
        self._wants[line].append(want)
        self._kick()
        try:
            async with asyncio.timeout(timeout):
                await want.future
        except BaseException as error:
            if want.future.done() and not want.future.cancelled() and want.future.exception() is None:
                self._give_back(line)  # granted in the very turn of the loop in which its owner gave up
            if isinstance(error, TimeoutError):
                text = "No upstream slot came free before the deadline."
                raise Refused("upstream_busy", text, retry_after=5) from None
            raise
        finally:
            self._leave(line, want)
        try:
            yield
        finally:
            self._give_back(line)

    def report(self, job_type: str, *, ok: bool) -> None:
        """What an upstream answer says of a type's health: a complete or a caller's-fault answer is ok, silence or a
        5xx is not."""
        self._news.append((job_type, "ok" if ok else "fail", 0))  # travels with the slot, which is given back next

    def pause(self, job_type: str, seconds: float) -> None:
        """A 429: no replica starts a job of this type for a while."""
        self._news.append((job_type, "pause", math.ceil(seconds * 1000)))
        self._kick()

    async def breakers(self) -> dict[str, str]:
        """State of each type's breaker that is not plainly closed: open or half_open. Raises LedgerUnavailable."""
        found = await self._store.command("HGETALL", keys.GATES)
        server = await self._store.command("TIME")
        now = int(server[0]) * 1000
        gates = {name.decode(): json.loads(gate) for name, gate in found.items()}
        return {
            name: "open" if now < gate["until"] else "half_open" for name, gate in gates.items() if gate["until"] > 0
        }

    def _leave(self, line: Line, want: _Want) -> None:
        waiting = self._wants.get(line)
        if waiting is not None and want in waiting:
            waiting.remove(want)
        if not waiting:
            self._wants.pop(line, None)

    def _give_back(self, line: Line) -> None:
        self._using[line] -= 1
        if not self._using[line]:
            del self._using[line]
        self._kick()

    def _kick(self) -> None:
        self._dirty = True
        self._woken.set()
        if self._exchange is None or self._exchange.done():
            self._exchange = asyncio.create_task(self._run())

    async def _run(self) -> None:
        while self._dirty or self.waiting:
            self._dirty = False
            news, self._news = self._news, []
            try:
                reply = await self._store.run(
                    TURNS, [keys.LEASES, keys.HELD, keys.WANTED, keys.GATES], [json.dumps(self._ask(news))]
                )
            except LedgerUnavailable as error:
                for wants in self._wants.values():
                    for want in wants:
                        if not want.future.done():
                            want.future.set_exception(error)
                await asyncio.sleep(POLL)
                self._dirty = bool(self._using)
                continue
            self._deliver(reply[1:])
            if self.waiting and not self._dirty:
                self._woken.clear()
                with suppress(TimeoutError):
                    async with asyncio.timeout(POLL):
                        await self._woken.wait()

    def _ask(self, news: list[tuple[str, str, int]]) -> dict[str, Any]:
        now = monotonic()
        wants = [
            [tenant, kind, len(waiting), waiting[0].weight, math.ceil((now - waiting[0].since) * 1000)]
            for (tenant, kind), waiting in self._wants.items()
            if waiting
        ]
        return {
            "me": self._me, "total": self._total, "caps": self._caps, "want": wants, "news": news,
            "using": [[tenant, kind, count] for (tenant, kind), count in self._using.items() if count > 0],
            "threshold": THRESHOLD, "open_ms": OPEN_MS, "open_max_ms": OPEN_MAX_MS, "probe_ms": self._probe_ms,
        }  # fmt: skip

    def _deliver(self, reply: list[list[Any]]) -> None:
        for item in reply:
            if item[0] == b"slot":
                line = (item[1].decode(), item[2].decode())
                for _ in range(int(item[3])):
                    self._grant(line)
            elif item[3] == b"open":
                seconds = max(1, math.ceil(int(item[2]) / 1000))
                for (_, kind), wants in self._wants.items():
                    for want in wants if kind == item[1].decode() else ():
                        if not want.future.done():
                            want.future.set_exception(_open(seconds))

    def _grant(self, line: Line) -> None:
        waiting = self._wants.get(line, deque())
        while waiting:
            want = waiting.popleft()
            if not want.future.done():
                self._using[line] += 1
                want.future.set_result(None)
                return
        # Nobody waits for it any more: say so at the next call.
        self._dirty = True


def _open(seconds: int) -> UpstreamError:
    return UpstreamError(
        "upstream_unavailable", "The upstream keeps failing; it is given a rest.", retry_after=min(60, seconds)
    )
