"""Is this picture being made? Equal requests in flight, on any replica, become one job: one leads, the others follow.

Called by the pipeline. In a process, followers wait on futures; between processes, one watcher per flight polls
Redis. A leader refused for reasons of its own hands the flight to the next follower; an outcome that belongs to the
request is shared. A leader that died is replaced only before dispatch: what may have been sent is never sent again.
When Redis is away, `LedgerUnavailable` is raised.
"""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from app.cache.results import Result, Results
from app.errors import Charged, GatewayError, LedgerUnavailable, Refused, UpstreamError
from app.store import keys
from app.store.lease import Incarnation
from app.store.redis import Store, script

JOIN = script("app.cache", "join")
MARK = script("app.cache", "mark")
POLL = 0.05  # seconds between looks at a flight that another process leads


class _Lead:
    """What a follower's future resolves to when it is its turn to lead."""


LEAD = _Lead()


@dataclass(slots=True)
class Flight:
    """One picture in the making, as this process sees it."""

    scope: str
    digest: str
    shared: bool
    fence: str = ""
    committed: bool = False  # true from the moment dispatch is asked for: the job then runs to its end
    waiting: deque[asyncio.Future[Result | _Lead]] = field(default_factory=deque)
    watcher: asyncio.Task[None] | None = None

    @property
    def key(self) -> tuple[str, str]:
        """Where the flight is found, in this process and in Redis."""
        return (self.scope, self.digest)


class Flights:
    """The flights of one process."""

    def __init__(self, store: Store, results: Results, incarnation: Incarnation, *, deadline: float) -> None:
        self._store = store
        self._results = results
        self._incarnation = incarnation
        self._deadline = deadline
        self._flights: dict[tuple[str, str], Flight] = {}

    def alone(self, scope: str, digest: str) -> Flight:
        """A flight that nobody else can join: a request without a seed."""
        return Flight(scope, digest, shared=False)

    async def board(self, scope: str, digest: str, *, fresh: bool, timeout: float) -> tuple[Flight, Result | None]:
        """Join the flight of a digest: (flight, None) means lead it, (flight, result) means that it has landed.

        Args:
            fresh: a landed picture does not count (no-cache); one in the making does.
            timeout: seconds that this caller is ready to wait as a follower.

        Raises:
            GatewayError: what the flight ended with, or upstream_timeout at the caller's own deadline.
        """
        flight = self._flights.get((scope, digest))
        if flight is None:
            flight = Flight(scope, digest, shared=True)
            self._flights[flight.key] = flight
            found = await self._board_first(flight, fresh)
            if found is True:
                return flight, None
            if isinstance(found, Result):
                self._land(flight, found)
                return flight, found
            flight.watcher = asyncio.create_task(self._watch(flight))
        return flight, await self._follow(flight, timeout)

    async def sent(self, flight: Flight) -> None:
        """The leader is about to dispatch: from now on nobody takes over. Raises LedgerUnavailable, also when fenced
        out."""
        if flight.shared and not await self._mark(flight, "sent", ""):
            raise LedgerUnavailable("Another replica took this flight over; nothing was dispatched here.")

    async def unsent(self, flight: Flight) -> None:
        """The upstream proved that nothing was billed: until the next dispatch a dead leader may be replaced again."""
        if flight.shared:
            await self._mark(flight, "lead", "")

    async def landed(self, flight: Flight, result: Result, stored_at: str | None) -> None:
        """Announce a finished picture to this process, and to the others where it is stored (None: nowhere)."""
        self._land(flight, result)
        await self._announce(flight, "done" if stored_at else "failed", stored_at or "")

    async def failed(self, flight: Flight, error: BaseException) -> None:
        """The leader gives up. What belongs to the request is shared; anything else hands the flight to the next
        follower."""
        own = not isinstance(error, GatewayError) or isinstance(error, Refused | LedgerUnavailable)
        if own and flight.committed:
            error, own = _lost(), False  # it may have been sent: nobody sends it again
        if isinstance(error, GatewayError) and not own:
            self._crash(flight, error)
            note = {"code": error.code, "detail": error.detail, "charged": error.charged}
            await self._announce(flight, "failed", json.dumps(note))
        elif not self._hand_over(flight):
            self._flights.pop(flight.key, None)
            await self._announce(flight, "open", "")

    def followed(self, flight: Flight) -> bool:
        """Whether callers of this process wait for the flight."""
        return any(not future.done() for future in flight.waiting)

    async def _follow(self, flight: Flight, timeout: float) -> Result | None:
        future: asyncio.Future[Result | _Lead] = asyncio.get_running_loop().create_future()
        flight.waiting.append(future)
        try:
            async with asyncio.timeout(timeout):
                outcome = await future
        except TimeoutError:
            raise UpstreamError(
                "upstream_timeout", "The picture was still being made at the deadline.", charged="unknown"
            ) from None
        except asyncio.CancelledError:
            if future.done() and not future.cancelled() and future.exception() is None and future.result() is LEAD:
                await asyncio.shield(self.failed(flight, Refused("overloaded", "The next leader went away.")))
            raise
        finally:
            if future in flight.waiting:
                flight.waiting.remove(future)
        return None if isinstance(outcome, _Lead) else outcome

    async def _board_first(self, flight: Flight, fresh: bool) -> Result | Literal[True] | None:
        """The first local caller's join. If it leaves while asking, the answer still counts for those behind it."""
        joining = asyncio.ensure_future(self._join(flight, dead="", fresh=fresh))
        try:
            return await asyncio.shield(joining)
        except GatewayError as error:
            self._crash(flight, error)
            raise
        except asyncio.CancelledError:
            await asyncio.wait([joining])
            if (trouble := joining.exception()) is not None:
                self._crash(flight, trouble)
            elif isinstance(found := joining.result(), Result):
                self._land(flight, found)
            elif found is None:
                flight.watcher = asyncio.create_task(self._watch(flight))
            else:
                await self.failed(flight, Refused("overloaded", "The first caller went away."))
            raise

    async def _join(self, flight: Flight, *, dead: str, fresh: bool) -> Result | Literal[True] | None:
        """True: we lead. A result: it has landed. None: somebody else leads."""
        for _ in range(3):
            reply = await self._store.run(
                JOIN,
                [keys.flight(*flight.key)],
                [self._incarnation.id, keys.FLIGHT_MS, dead, int(fresh), int(self._deadline * 1000)],
            )
            if reply[0] == b"lead":
                flight.fence = reply[1].decode()
                return True
            if reply[1] != b"done":
                return None
            # A picture that must not be reused lies elsewhere: it is for those alone who were aboard when it landed.
            reusable = reply[3].decode() == flight.digest
            if reusable and (result := await self._results.find(flight.scope, flight.digest)) is not None:
                return result
            fresh = True
        return None

    async def _watch(self, flight: Flight) -> None:
        """Follow a flight that another process leads, for everyone in this one who waits for it."""
        read = ("HMGET", keys.flight(*flight.key), "state", "leader", "note", "started")
        while self.followed(flight):
            await asyncio.sleep(POLL)
            try:
                state, leader, note, started = await self._store.command(*read)
                if state == b"done":
                    result = await self._results.find(flight.scope, note.decode())
                    if result is not None:
                        self._land(flight, result)
                        return
                elif state == b"failed":
                    self._crash(flight, _error(note))
                    return
                lives = bool(leader) and bool(await self._incarnation.alive([leader.decode()]))
                if state == b"sent" and await self._overdue(int(started)):
                    self._crash(flight, _lost())
                    return
                if state in (None, b"open", b"done") or (state == b"lead" and not lives):
                    joined = await self._join(flight, dead=(leader or b"").decode(), fresh=state == b"done")
                    if isinstance(joined, Result):
                        self._land(flight, joined)
                        return
                    if joined is True:
                        flight.watcher = None
                        await self.failed(flight, Refused("overloaded", "Handing over to a follower."))
                        return
            except LedgerUnavailable:
                continue
        if self._flights.get(flight.key) is flight:
            del self._flights[flight.key]

    async def _overdue(self, started_ms: int) -> bool:
        now = await self._store.command("TIME")
        return int(now[0]) * 1000 - started_ms > self._deadline * 1000

    def _land(self, flight: Flight, result: Result) -> None:
        self._close(flight, lambda future: future.set_result(result))

    def _crash(self, flight: Flight, error: BaseException) -> None:
        shared = error if isinstance(error, GatewayError) else LedgerUnavailable()
        self._close(flight, lambda future: future.set_exception(follower_error(shared)))

    def _close(self, flight: Flight, resolve: Callable[[asyncio.Future[Result | _Lead]], None]) -> None:
        if self._flights.get(flight.key) is flight:
            del self._flights[flight.key]
        for future in flight.waiting:
            if not future.done():
                resolve(future)

    def _hand_over(self, flight: Flight) -> bool:
        for future in flight.waiting:
            if not future.done():
                future.set_result(LEAD)
                return True
        return False

    async def _announce(self, flight: Flight, state: str, note: str) -> None:
        if not flight.shared:
            return
        try:
            await self._mark(flight, state, note)
        except LedgerUnavailable:
            return  # the others find out by the lease or by their own deadline

    async def _mark(self, flight: Flight, state: str, note: str) -> bool:
        ttl = keys.LANDED_MS if state in ("done", "failed", "open") else keys.FLIGHT_MS
        reply: Any = await self._store.run(
            MARK, [keys.flight(*flight.key)], [self._incarnation.id, flight.fence, state, note, ttl]
        )
        return bool(reply)


def follower_error(error: GatewayError) -> GatewayError:
    """A leader's failure as its followers are told it: the leader was charged or not, they were not, unless nobody
    knows."""
    charged: Charged = "unknown" if error.charged == "unknown" else "no"
    told = UpstreamError(error.code, error.detail, charged=charged, retry_after=error.retry_after, field=error.field)
    told.status = error.status
    return told


def _error(note: bytes | None) -> GatewayError:
    if not note:
        return UpstreamError("upstream_failed", "The picture was made, but could not be shared between replicas.")
    told = json.loads(note)
    return UpstreamError(told["code"], told["detail"], charged=told["charged"])


def _lost() -> GatewayError:
    return UpstreamError(
        "upstream_timeout", "What became of this picture is unknown; it may come yet.", charged="unknown"
    )
