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
from app.store.seal import Seal

CLAIM = script("app.quota", "claim")
CLOSE = script("app.quota", "close")
BLANK = script("app.quota", "blank")
POLL = 0.05  # seconds between looks at a name that another call has
JOB = b"job_"  # how the owner of a name begins that is a job in the queue, and not a process
BLANKED = b'{"image":"","said":{}}'  # an answer that was emptied; also what one is that does not open any more
CHARGED: dict[str, Charged] = {"SETTLED": "yes", "AMBIGUOUS": "unknown", "REFUNDED": "no", "FREE": "no"}


@dataclass(slots=True)
class Claim:
    """A name that this call has. `tell` makes the answer to keep of what the call came to: once, so that the first
    caller and all later ones are told the same."""

    key: str
    seed: int
    tell: Callable[[Any], dict[str, Any]]
    id: str
    seal: Seal
    answer: dict[str, Any] | None = None

    def write(self, outcome: Any) -> memoryview:
        """The answer as it is kept."""
        self.answer = self.tell(outcome)
        return self.seal.close(self.key, orjson.dumps(self.answer, default=str))


@dataclass(frozen=True, slots=True)
class Ended:
    """A call under a name that is over. `claim` is the id of its job, if it came by the queue; `answer` is None where
    its process died before there was one."""

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

    def __init__(self, store: Store, incarnation: Incarnation, seal: Seal) -> None:
        self._store, self.seal = store, seal
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
            if (found := self._read(wanted.key, reply, tell, claim)) is not None:
                return found
            if not wait or (running and monotonic() > wanted.until):
                raise in_flight()
            running = True
            try:
                async with asyncio.timeout(wanted.until - monotonic()):
                    dead = await self._change(wanted.key)
            except TimeoutError:
                raise in_flight() from None

    async def take_for_job(self, wanted: Wanted, job_id: str, ms: int) -> Claim | Ended | str:
        """The name for a job, which has it for so many ms, and from the queue on as long as it may be there: its own
        claim, what became of the call or job that had the name, or the id of the job that has it. Raises as `take`
        without waiting.
        """
        args = [job_id, job_id, wanted.digest, wanted.seed, wanted.request, ms, "", keys.IDEMPOTENCY_MS]
        reply = await self._store.run(CLAIM, [wanted.key], args)
        if (found := self._read(wanted.key, reply, _untold, job_id)) is not None:
            return found
        if reply[1].startswith(JOB):
            return str(reply[1].decode())
        raise in_flight()

    async def close(self, key: str, claim: str, answer: bytes | memoryview = b"") -> None:
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

    def _read(
        self, key: str, reply: list[bytes], tell: Callable[[Any], dict[str, Any]], claim: str
    ) -> Claim | Ended | None:
        """What the claim script said of a name; None where somebody else is at work under it. Raises InvalidRequest."""
        match reply[0]:
            case b"yours":
                return Claim(key, int(reply[1]), tell, claim, self.seal)
            case b"ended":
                held, seed, request, end = (part.decode() for part in reply[1:5])
                answer = orjson.loads(self.seal.open(key, reply[5]) or BLANKED) if reply[5] else None
                return Ended(key, held, int(seed), request, CHARGED[end], answer)
            case b"mismatch":
                raise _mismatch()
        return None

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
                if owner.startswith(JOB):
                    continue  # it is in the queue, whoever lives
                if state == b"claimed" and not await self._incarnation.alive([owner.decode()]):
                    return str(owner.decode())
            except LedgerUnavailable:
                continue


def _untold(_: Any) -> dict[str, Any]:
    raise AssertionError("the worker of the job tells what it came to")


def _mismatch() -> GatewayError:
    text = "This name was given to another request; take a new one."
    return InvalidRequest(text, code="idempotency_mismatch", field="Idempotency-Key")


async def blank(store: Store, key: str) -> bool:
    """Empty the answer that is kept under a name, which stays taken: a repeat buys nothing and is told that the picture
    is gone. Whether there was one. Raises LedgerUnavailable."""
    return bool(await store.run(BLANK, [key], [BLANKED]))


def in_flight() -> GatewayError:
    """The refusal of a call whose name another one has, for longer than it waits."""
    return Refused(
        "idempotency_in_flight",
        "The first call under this name is still running; ask again under the same name.",
        field="Idempotency-Key",
        charged="unknown",
    )
