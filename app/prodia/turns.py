"""A fair turn at the upstream: fleet-wide slots shared between tenants by weight, the pause after a 429, and the
breaker.

The pipeline's leader takes a turn before it dispatches. All wants of a process travel in one script call at a time;
while some are unmet, the call is repeated every few hundredths of a second. While nobody waits, a slot that was given
back a moment ago is taken again without a call. A want whose turn cannot be expected before its deadline is refused as
soon as that is known, and so is one too many. When Redis is away, `LedgerUnavailable` is raised to those who wait.
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

import orjson

from app.errors import LedgerUnavailable, Refused, UpstreamError
from app.store import keys
from app.store.redis import Store, script

TURNS = script("app.prodia", "turns")
POLL = 0.025  # seconds between calls while a want is unmet
CALM = 60.0  # seconds after bad news or a closed gate for which every change is told at once
LATER = 0.02  # seconds until a slot that nobody waits for is given back
FRESH = 0.05  # seconds for which what Redis said of gates and of others' wants still holds
AWAY = 0.1  # seconds between calls while Redis is away
SOON = 0.05  # seconds that a job which may be sent at once waits for its slot before it says that it has to wait
THRESHOLD = 10  # failures in a row, over the whole fleet, that open the breaker of a type
MOST_WAITING = 2_000  # jobs of one process
SPARE = 1.25  # a job may take so many times what jobs took lately: one that is cut off may have to be paid for
LEARNING = 0.2  # weight of the newest job in the time that a slot is held
KNOWN = 60.0  # seconds for which that time is believed; what is refused for it can tell nothing newer
OPEN_MS, OPEN_MAX_MS = 5_000, 60_000

Line = tuple[str, str]  # tenant, job type


@dataclass(slots=True)
class Want:
    """One job that waits: `future` ends when it has its slot."""

    future: asyncio.Future[None]
    since: float
    weight: int
    until: float
    judged: bool = False


class Turn:
    """One job's place in line, and then its slot."""

    def __init__(self, turns: Turns, line: Line, weight: int, until: float) -> None:
        self._turns, self._line, self._weight, self._until = turns, line, weight, until
        self._want: Want | None = None

    def ask(self) -> Want:
        """Stand in line from now on, although it is not certain yet that the slot will be needed. Raises Refused."""
        self._want = self._want or self._turns.enqueue(self._line, self._weight, self._until)
        return self._want

    async def soon(self) -> bool:
        """Whether the slot is there, or comes with the exchange that is under way."""
        if self._want is not None and not self._want.future.done():
            await asyncio.wait((self._want.future,), timeout=SOON)
        return self._want is not None and self._want.future.done()

    @asynccontextmanager
    async def taken(self, *, timeout: float) -> AsyncIterator[None]:
        """Wait for the slot, hold it for the length of the block. May be entered again, from the end of the line.

        Raises:
            Refused: upstream_busy, no turn within `timeout` seconds, or none to be expected.
            UpstreamError: upstream_unavailable, the breaker is open.
            LedgerUnavailable: Redis is away.
        """
        want = self.ask()
        try:
            if not want.future.done():
                async with asyncio.timeout(timeout):
                    await want.future
            want.future.result()
        except TimeoutError:
            raise _busy("No upstream slot came free before the deadline.", 5) from None
        self._want, began, held = None, monotonic(), None
        try:
            yield
            held = monotonic() - began  # what failed or was cut off does not tell how long a job takes
        finally:
            self._turns.give_back(self._line, held)

    def leave(self) -> None:
        """Not needed, or not any more."""
        if self._want is not None:
            want, self._want = self._want, None
            self._turns.withdraw(self._line, want)


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
        self._wants: defaultdict[Line, deque[Want]] = defaultdict(deque)
        self._using: Counter[Line] = Counter()
        self._spare: Counter[Line] = Counter()  # slots not in use any more that Redis still counts as this process's
        self._news: list[tuple[str, str, int]] = []
        self._exchange: asyncio.Task[None] | None = None
        self._dirty = False
        self._woken = asyncio.Event()
        self._slack = False
        self._heard = -math.inf  # when Redis answered last
        self._trouble = -math.inf
        self._held: dict[str, tuple[float, float]] = {}  # job type -> seconds that a slot is held, and when it was seen

    @property
    def total(self) -> int:
        """Jobs in flight over the whole fleet at most."""
        return self._total

    @property
    def slack(self) -> bool:
        """Whether a slot asked for now is likely to be granted at once; only a guess, as of the last call."""
        return self._slack and not self._wants and monotonic() - self._trouble >= CALM

    @property
    def waiting(self) -> int:
        """Jobs of this process that wait for a slot."""
        return sum(len(wants) for wants in self._wants.values())

    @property
    def oldest_wait(self) -> float:
        """Seconds that the longest waiting job of this process has waited."""
        return max((monotonic() - wants[0].since for wants in self._wants.values() if wants), default=0.0)

    def turn(self, tenant: str, weight: int, job_type: str, until: float) -> Turn:
        """One job's turn, of use until that moment of the monotonic clock; to be taken or left."""
        return Turn(self, (tenant, job_type), weight, until)

    def enqueue(self, line: Line, weight: int, until: float) -> Want:
        """A want at the end of its line. Raises Refused: upstream_busy, too many wait."""
        if self.waiting >= MOST_WAITING:
            raise _busy("Too many jobs wait for the upstream.", 5)
        now = monotonic()
        want = Want(asyncio.get_running_loop().create_future(), now, weight, until)
        if self._spare[line] > 0 and self.slack and now - self._heard < FRESH:
            self._spare[line] -= 1
            self._using[line] += 1
            want.future.set_result(None)
            return want
        self._wants[line].append(want)
        self._kick()
        return want

    def withdraw(self, line: Line, want: Want) -> None:
        """Leave the line; a slot granted in the meantime goes back."""
        waiting = self._wants.get(line)
        if waiting is not None and want in waiting:
            waiting.remove(want)
            if not waiting:
                del self._wants[line]
            self._kick()  # while Redis believes that it is wanted, its share is kept free
        if want.future.done() and not want.future.cancelled() and want.future.exception() is None:
            self.untold(line[1])
            self.give_back(line)

    def give_back(self, line: Line, held: float | None = None) -> None:
        """A slot is free again, after a job that was done took so many seconds."""
        if held is not None:
            before = self._takes(line[1]) or held
            self._held[line[1]] = before + LEARNING * (held - before), monotonic()
        self._using[line] -= 1
        if not self._using[line]:
            del self._using[line]
        if not self._slack or self._wants or monotonic() - self._trouble < CALM:
            self._kick()
            return
        # Nobody waits for it, and no breaker or pause hangs on it: it can be said with what is asked next.
        self._spare[line] += 1
        if not self._dirty:
            self._dirty = True
            asyncio.get_running_loop().call_later(LATER, self._tell)

    def report(self, job_type: str, *, ok: bool) -> None:
        """What an upstream answer says of a type's health: a complete or a caller's-fault answer is ok, silence or a
        5xx is not."""
        self._news.append((job_type, "ok" if ok else "fail", 0))  # travels with the slot, which is given back next
        if not ok:
            self._trouble = monotonic()

    def untold(self, job_type: str) -> None:
        """A slot was used for nothing that tells how a type is: if it was its breaker's probe, another may probe."""
        self._news.append((job_type, "untold", 0))

    def pause(self, job_type: str, seconds: float) -> None:
        """A 429: no replica starts a job of this type for a while."""
        self._news.append((job_type, "pause", math.ceil(seconds * 1000)))
        self._trouble = monotonic()
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

    def _tell(self) -> None:
        if self._dirty:
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
            self._spare.clear()  # it is told now that they are not in use
            try:
                reply = await self._store.run(
                    TURNS, [keys.LEASES, keys.HELD, keys.WANTED, keys.GATES], [orjson.dumps(self._ask(news))]
                )
            except LedgerUnavailable as error:
                self._news[:0] = news
                for wants in self._wants.values():
                    for want in wants:
                        if not want.future.done():
                            want.future.set_exception(error)
                await asyncio.sleep(AWAY)
                self._dirty = True  # also what is not in use any more has to be said
                continue
            self._heard = monotonic()
            self._slack = reply[0] < self._total and len(reply) == 1 + sum(item[0] == b"slot" for item in reply[1:])
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
                continue
            if item[0] == b"wait":
                self._judge((item[1].decode(), item[2].decode()), int(item[3]) / 100)
                continue
            if item[0] == b"others":
                continue  # there is no slack while they wait
            self._trouble = monotonic()
            if item[3] == b"open":
                seconds = max(1, math.ceil(int(item[2]) / 1000))
                for (_, kind), wants in self._wants.items():
                    for want in wants if kind == item[1].decode() else ():
                        if not want.future.done():
                            want.future.set_exception(_open(seconds))

    def _judge(self, line: Line, rounds: float) -> None:
        """Refuse the new ones of a line that cannot be done in time, `rounds` being what its last one waits for.

        Nothing is refused on a guess: until a job of the type was done in this process lately, everybody waits.
        """
        held, waiting, now = self._takes(line[1]), self._wants.get(line, deque()), monotonic()
        if held is None:
            return
        late = 0
        for place, want in enumerate(waiting, 1):
            if want.judged or want.future.done():
                continue
            expected = held * (SPARE + rounds * (place - late) / len(waiting))
            want.judged = expected <= want.until - now
            if not want.judged:
                late += 1
                text = "No upstream slot is expected to come free before the deadline."
                want.future.set_exception(_busy(text, min(60, math.ceil(expected - (want.until - now)))))

    def _takes(self, job_type: str) -> float | None:
        """Seconds that a job of this type takes, where it is known."""
        seconds, seen = self._held.get(job_type, (0.0, -math.inf))
        return seconds if monotonic() - seen < KNOWN else None

    def _grant(self, line: Line) -> None:
        waiting = self._wants.get(line, deque())
        enough = monotonic() + (self._takes(line[1]) or 0.0) * SPARE
        while waiting:
            want = waiting.popleft()
            if not waiting:
                del self._wants[line]
            if not want.future.done() and want.until < enough:
                want.future.set_exception(_busy("The upstream slot came free too late.", 5))
            if not want.future.done():
                self._using[line] += 1
                want.future.set_result(None)
                return
        # Nobody waits for it any more: say so at the next call.
        self._dirty = True


def _busy(text: str, seconds: int) -> Refused:
    return Refused("upstream_busy", text, retry_after=max(1, seconds))


def _open(seconds: int) -> UpstreamError:
    return UpstreamError(
        "upstream_unavailable", "The upstream keeps failing; it is given a rest.", retry_after=min(60, seconds)
    )
