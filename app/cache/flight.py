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
from typing import Any

from app.cache.results import Result, Results
from app.errors import Charged, GatewayError, LedgerUnavailable, Refused, UpstreamError
from app.store import keys
from app.store.lease import Incarnation
from app.store.redis import Store, script

JOIN = script("app.cache", "join")
MARK = script("app.cache", "mark")
POLL = 0.05  # seconds between looks at a flight that another process leads


class Elsewhere(Exception):
    """Another replica leads this flight, or it has landed: its callers follow."""


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
    joining: asyncio.Task[None] | None = None
    elsewhere: bool = False  # another replica leads it
    watcher: asyncio.Task[None] | None = None
    ended: Result | GatewayError | None = None

    @property
    def key(self) -> tuple[str, str]:
        """Where the flight is found, in this process and in Redis."""
        return (self.scope, self.digest)

    @property
    def pooled(self) -> bool:
        """Whether several tenants share it: it then lies under another hash tag than their money."""
        return self.shared and not self.scope.startswith("t:")

    @property
    def beside_money(self) -> str | None:
        """Its key, where it lies under the tenant's own hash tag, so that a reservation can depend on it."""
        return keys.flight(*self.key) if self.shared and not self.pooled else None


class Flights:
    """The flights of one process."""

    def __init__(self, store: Store, results: Results, incarnation: Incarnation, *, deadline: float) -> None:
        self._store = store
        self._results = results
        self._incarnation = incarnation
        self._deadline = deadline
        self._flights: dict[tuple[str, str], Flight] = {}
        self._unsaid: dict[tuple[str, str], tuple[str, str, str]] = {}  # fence, state and note that were not written

    def alone(self, scope: str, digest: str) -> Flight:
        """A flight that nobody else can join: a request without a seed."""
        return Flight(scope, digest, shared=False)

    def board(self, scope: str, digest: str) -> tuple[Flight, bool]:
        """The flight of a digest in this process, and whether the caller is its first: that one joins for all."""
        flight = self._flights.get((scope, digest))
        if flight is not None:
            return flight, False
        flight = self._flights[scope, digest] = Flight(scope, digest, shared=True)
        return flight, True

    def join(self, flight: Flight, *, fresh: bool) -> asyncio.Task[None]:
        """Ask the fleet to lead a flight. The command leaves in this turn of the event loop, before what is asked next.

        Args:
            fresh: a landed picture does not count (no-cache); one in the making does.

        Returns:
            A task that ends when this process leads, or raises Elsewhere (it follows: `follow`) or LedgerUnavailable.
        """
        flight.joining = asyncio.create_task(self._join(flight, dead="", fresh=fresh) if flight.shared else _alone())
        return flight.joining

    async def follow(self, flight: Flight, timeout: float) -> Result | None:
        """Wait for a flight that somebody else leads: its picture, or None when it is now this caller's turn to lead.

        Raises:
            GatewayError: what the flight ended with, or upstream_timeout at the caller's own deadline.
        """
        if isinstance(flight.ended, GatewayError):
            raise flight.ended
        if flight.ended is not None:
            return flight.ended
        future: asyncio.Future[Result | _Lead] = asyncio.get_running_loop().create_future()
        flight.waiting.append(future)
        self._keep_watch(flight)
        try:
            async with asyncio.timeout(timeout):
                outcome = await future
        except (TimeoutError, asyncio.CancelledError) as left:
            if future.done() and not future.cancelled() and future.exception() is None and future.result() is LEAD:
                await asyncio.shield(self.failed(flight, Refused("overloaded", "The next leader went away.")))
            if isinstance(left, asyncio.CancelledError):
                raise
            raise UpstreamError(
                "upstream_timeout", "The picture was still being made at the deadline.", charged="unknown"
            ) from None
        finally:
            if future in flight.waiting:
                flight.waiting.remove(future)
        return None if isinstance(outcome, _Lead) else outcome

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
        if flight.joining is not None:
            # A leader that leaves while it asks: the answer still counts for those behind it.
            await asyncio.wait((flight.joining,))
            match flight.joining.exception():
                case Elsewhere():
                    return self._keep_watch(flight)
                case LedgerUnavailable() as trouble:
                    self._unsaid[flight.key] = ("", "open", "")  # it may be led in our name, and nobody works on it
                    return self._crash(flight, trouble)
        own = not isinstance(error, GatewayError) or isinstance(error, Refused | LedgerUnavailable)
        if own and flight.committed:
            error, own = _lost(), False  # it may have been sent: nobody sends it again
        if isinstance(error, GatewayError) and not own:
            self._crash(flight, error)
            note = {"code": error.code, "detail": error.detail, "charged": error.charged}
            await self._announce(flight, "failed", json.dumps(note))
        elif not self._hand_over(flight):
            if self._flights.get(flight.key) is flight:
                del self._flights[flight.key]
            await self._announce(flight, "open", "")

    def followed(self, flight: Flight) -> bool:
        """Whether callers of this process wait for the flight."""
        return any(not future.done() for future in flight.waiting)

    async def _join(self, flight: Flight, *, dead: str, fresh: bool) -> None:
        self._unsaid.pop(flight.key, None)
        for _ in range(3):
            reply = await self._store.run(
                JOIN,
                [keys.flight(*flight.key)],
                [self._incarnation.id, keys.FLIGHT_MS, dead, int(fresh), int(self._deadline * 1000), flight.digest],
            )
            if reply[0] == b"lead":
                flight.fence = reply[1].decode()
                return
            if reply[1] != b"done":
                break
            if (result := await self._results.find(flight.scope, flight.digest)) is not None:
                self._land(flight, result)
                raise Elsewhere
            fresh = True
        flight.elsewhere = True
        raise Elsewhere

    def _keep_watch(self, flight: Flight) -> None:
        if flight.elsewhere and self.followed(flight) and (flight.watcher is None or flight.watcher.done()):
            flight.watcher = asyncio.create_task(self._watch(flight))

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
                    dead = leader.decode() if state == b"lead" else ""
                    await self._join(flight, dead=dead, fresh=state == b"done")
                    flight.joining, flight.elsewhere = None, False
                    await self.failed(flight, Refused("overloaded", "Handing over to a follower."))
                    return
            except Elsewhere:
                if flight.ended is not None:
                    return
            except LedgerUnavailable:
                continue
        if self._flights.get(flight.key) is flight:
            del self._flights[flight.key]

    async def _overdue(self, started_ms: int) -> bool:
        now = await self._store.command("TIME")
        return int(now[0]) * 1000 - started_ms > self._deadline * 1000

    def _land(self, flight: Flight, result: Result) -> None:
        flight.ended = result
        self._close(flight, lambda future: future.set_result(result))

    def _crash(self, flight: Flight, error: GatewayError) -> None:
        flight.ended = follower_error(error)
        self._close(flight, lambda future: future.set_exception(follower_error(error)))

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
            self._unsaid[flight.key] = (flight.fence, state, note)

    async def say_unsaid(self) -> None:
        """Tell the other processes what could not be told when it happened; called by the heartbeat. Raises
        LedgerUnavailable."""
        for key, (fence, state, note) in list(self._unsaid.items()):
            if key not in self._flights:
                await self._mark(Flight(*key, shared=True, fence=fence), state, note)
            self._unsaid.pop(key, None)

    async def _mark(self, flight: Flight, state: str, note: str) -> bool:
        ttl = keys.LANDED_MS if state in ("done", "failed", "open") else keys.FLIGHT_MS
        reply: Any = await self._store.run(
            MARK, [keys.flight(*flight.key)], [self._incarnation.id, flight.fence, state, note, ttl]
        )
        return bool(reply)


async def _alone() -> None:
    """Nobody else can join: there is nobody to ask."""


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
