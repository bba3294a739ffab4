"""What an `Idempotency-Key` stands for: one call and its answer, under a name that a caller chose.

Called by `app.named`. A name is taken before money is held; from the step that acknowledges a dispatch on, which is the
money scripts' own, nobody can take it again. Equal calls wait here, with one look-out per name and process. When
Redis is away, `LedgerUnavailable` is raised; a name that could not be freed is freed by the heartbeat.
Key: `keys.idempotency`.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic
from typing import Any

import orjson

from app.errors import Charged, GatewayError, InvalidRequest, LedgerUnavailable, Refused
from app.store import keys
from app.store.lease import Incarnation
from app.store.redis import Store, script

CLAIM = script("app.quota", "claim")
CLOSE = script("app.quota", "close")
POLL = 0.05  # seconds between looks at a name that another call has
CHARGED: dict[str, Charged] = {"SETTLED": "yes", "AMBIGUOUS": "unknown", "REFUNDED": "no", "FREE": "no"}


@dataclass(slots=True)
class Claim:
    """A name that this call has. `tell` makes the answer to keep of what the call came to: once, so that the first
    caller and all later ones are told the same."""

    key: str
    seed: int
    tell: Callable[[Any], dict[str, Any]]
    id: str
    answer: dict[str, Any] | None = None

    def write(self, outcome: Any) -> bytes:
        """The answer as it is kept."""
        self.answer = self.tell(outcome)
        return orjson.dumps(self.answer, default=str)


@dataclass(frozen=True, slots=True)
class Ended:
    """A call under a name that is over. `answer` is None where its process died before there was one."""

    key: str
    claim: str
    seed: int
    request: str
    charged: Charged
    answer: dict[str, Any] | None


@dataclass(frozen=True, slots=True)
class Wanted:
    """A call that asks for a name: digest and id of its request, the seed it would have, its deadline (monotonic)."""

    key: str
    digest: str
    seed: int
    request: str
    until: float


@dataclass(slots=True)
class _LookOut:
    task: asyncio.Task[str]
    waiting: int = 0


class Names:
    """The names of one process's calls."""

    def __init__(self, store: Store, incarnation: Incarnation) -> None:
        self._store = store
        self._incarnation = incarnation
        self._look_outs: dict[str, _LookOut] = {}
        self._unfreed: dict[tuple[str, str], None] = {}

    async def take(self, wanted: Wanted, tell: Callable[[Any], dict[str, Any]], *, wait: bool = True) -> Claim | Ended:
        """The name for this call, or what became of the call that had it; until that is over, wait for it.

        Raises:
            InvalidRequest: idempotency_mismatch, the name has another request.
            Refused: idempotency_in_flight, still running at the deadline, or at once without `wait`.
            LedgerUnavailable: no answer.
        """
        claim, dead, running = secrets.token_hex(8), "", False
        while True:
            left = max(0, int((wanted.until - monotonic()) * 1000))
            try:
                reply = await self._store.run(
                    CLAIM,
                    [wanted.key],
                    [claim, self._incarnation.id, wanted.digest, wanted.seed, wanted.request, left, dead,
                     keys.IDEMPOTENCY_MS],
                )  # fmt: skip
            except (LedgerUnavailable, asyncio.CancelledError):
                self._unfreed[wanted.key, claim] = None  # it may have been taken
                raise
            match reply[0]:
                case b"yours":
                    return Claim(wanted.key, int(reply[1]), tell, claim)
                case b"ended":
                    held, seed, request, end, answer = (part.decode() for part in reply[1:])
                    told = orjson.loads(answer) if answer else None
                    return Ended(wanted.key, held, int(seed), request, CHARGED[end], told)
                case b"mismatch":
                    text = "This name was given to another request; take a new one."
                    raise InvalidRequest(text, code="idempotency_mismatch", field="Idempotency-Key")
            if not wait or (running and monotonic() > wanted.until):
                raise _in_flight()
            running = True
            try:
                async with asyncio.timeout(wanted.until - monotonic()):
                    dead = await self._change(wanted.key)
            except TimeoutError:
                raise _in_flight() from None

    async def close(self, key: str, claim: str, answer: bytes = b"") -> None:
        """Keep the answer of a call for which nothing was sent, or without one free its name; else nothing happens.

        Never raises for a Redis that is away: the name is freed later, and an answer that cost nothing may be lost.
        """
        try:
            await self._store.run(CLOSE, [key], [claim, answer, keys.IDEMPOTENCY_MS])
        except LedgerUnavailable:
            self._unfreed[key, claim] = None

    async def free(self) -> None:
        """Free what could not be freed before; called by the heartbeat. Raises LedgerUnavailable."""
        for key, claim in list(self._unfreed):
            await self._store.run(CLOSE, [key], [claim, b"", keys.IDEMPOTENCY_MS])
            del self._unfreed[key, claim]

    async def _change(self, key: str) -> str:
        """Wait until a name is over or free; the owner that died, if that is why."""
        look_out = self._look_outs.get(key)
        if look_out is None or look_out.task.done():
            look_out = self._look_outs[key] = _LookOut(asyncio.create_task(self._watch(key)))
        look_out.waiting += 1
        try:
            return await asyncio.shield(look_out.task)
        finally:
            look_out.waiting -= 1
            if not look_out.waiting:
                look_out.task.cancel()
                if self._look_outs.get(key) is look_out:
                    del self._look_outs[key]

    async def _watch(self, key: str) -> str:
        while True:
            await asyncio.sleep(POLL)
            try:
                state, owner = await self._store.command("HMGET", key, "state", "owner")
                if state not in (b"claimed", b"sent"):
                    return ""
                if state == b"claimed" and not await self._incarnation.alive([owner.decode()]):
                    return str(owner.decode())
            except LedgerUnavailable:
                continue


def _in_flight() -> GatewayError:
    return Refused(
        "idempotency_in_flight",
        "The first call under this name is still running; ask again under the same name.",
        field="Idempotency-Key",
        charged="unknown",
    )
