"""A reservation in code: an async context manager that no path can leave without an end, cancellation included.

Made by the pipeline's leader for one job. Everything the job needs is held at once or not at all; retries of the
upstream call live inside it. When Redis does not answer, a script is asked once more by the same id and then
`LedgerUnavailable` is raised.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import orjson

from app.domain.job import Job
from app.domain.usage import group
from app.domain.windows import local_date
from app.errors import GatewayError, LedgerUnavailable, Refused
from app.quota.ledger import End, Finish, Ledger, window_key
from app.quota.limits import caps, places
from app.quota.names import Claim
from app.quota.refusals import cap_refusal, key_refusal, place_refusal, told
from app.store import keys
from app.store.redis import Script, script

RESERVE = script("app.quota", "reserve")
DISPATCH = script("app.quota", "dispatch")
RETRACT = script("app.quota", "retract")
SIT = script("app.quota", "sit")


BILLABLE = "RESERVED,DISPATCHING"
UNSENT = f"{BILLABLE},AMBIGUOUS"  # also where another replica has reaped it meanwhile


class NotLeading(Exception):
    """Another process leads the flight that the reservation was for: nothing was reserved."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A job's entry in its tenant's queue: it owns the hold until a worker takes a seat, or the job expires.

    Args:
        size: bytes that the job keeps in Redis until it ends.
        keep: ms that it has its name at most.
    """

    job: str
    size: int
    keep: int

    def keys(self, tenant: str) -> tuple[str, ...]:
        """What the reserve script touches for it."""
        return (keys.queue(tenant), keys.job(tenant, self.job), keys.waiting(tenant), keys.queued_bytes(tenant))


class Hold:
    """One reservation: RESERVED -> DISPATCHING -> SETTLED | REFUNDED | AMBIGUOUS.

    Args:
        if_leading: key of a flight under the tenant's hash tag; reserve only while this process leads it.
        at_once: acknowledge the dispatch in the same step, because a slot is believed to be free; the state is then
            `cleared`: nothing was sent, and nothing but `dispatch` is needed to send it. `retract` takes it back.
        claim: the call's name; it is taken for good with the dispatch, and its answer kept with the end.
        entry: the job enters its tenant's queue with the hold, and takes no places yet.
        abreast: how many jobs hold with this one or not at all, where it is not alone. Where every concurrent job is
            taken such a one holds the rest without a place; `standing` then says so, and `sit` takes the place later.
    """

    def __init__(
        self,
        ledger: Ledger,
        job: Job,
        job_id: str,
        if_leading: str | None = None,
        *,
        at_once: bool = False,
        claim: Claim | None = None,
        entry: Entry | None = None,
        abreast: Callable[[], int] | None = None,
    ) -> None:
        self._if_leading, self._at_once, self._claim, self._entry = if_leading, at_once, claim, entry
        self._abreast = abreast
        self.standing: Refused | None = None
        self.unheard = False  # whether the ledger was asked to hold it, and did not say what came of that
        self._name = () if claim is None else (claim.key,)
        self._ledger = ledger
        self._job = job
        self.id = "res_" + secrets.token_hex(12)
        self._tenant = job.caller.tenant
        self._fence = 0
        self._usage = ""
        self._taken: tuple[str, ...] = ()
        self.state: Literal["new", "reserved", "cleared", "dispatching", "ended"] = "new"
        self.remaining: dict[str, int] = {}
        self.facts: dict[str, Any] = {
            "job": job_id,
            "tenant": self._tenant.id,
            "key": job.caller.key_id,
            "user": job.request.user or "",
            "tags": ",".join(job.request.tags),
            "operation": job.operation,
            "variant": job.variant,
            "type": job.type.type,
            "price": job.price,
            "seed": str(job.request.seed),  # text, because Lua's numbers are doubles
        }

    async def __aenter__(self) -> Hold:
        asking = asyncio.ensure_future(self._reserve())
        try:
            await asyncio.shield(asking)
        except asyncio.CancelledError:
            # Bounded by the commands' own timeouts; shielded, because a second cancellation must not lose the hold.
            await asyncio.shield(self._give_back(asking))
            raise
        return self

    async def _give_back(self, asking: asyncio.Future[None]) -> None:
        """A hold that is made although its caller has left is given back at once."""
        await asyncio.wait([asking])
        if asking.exception() is None:
            await self._left()

    async def enter_queue(self) -> None:
        """Hold it for the queue's entry, which sees to the end of it.

        Raises:
            Refused: no room at one of the levels, or the key was revoked or has expired.
            LedgerUnavailable: no answer; what may have been held is given back, unless a worker sends it before:
                with `unheard` it may be in the queue.
        """
        await asyncio.shield(self._reserve())
        self._ledger.active.discard(self.id)

    async def _left(self) -> None:
        await self.refund(reason="left")

    async def _reserve(self) -> None:
        ledger, job, entry = self._ledger, self._job, self._entry
        tenant, user = self._tenant, self._job.request.user
        found, seats = caps(job.caller, user), () if entry else places(job.caller, user)
        queue = entry.keys(tenant.id) if entry else ()
        seat_keys = [keys.concurrency(tenant.id, seat.level, seat.subject) for seat in seats]
        ledger.active.add(self.id)
        try:
            for _ in range(6):
                spans = ledger.propose_spans(tenant, {"day", *(cap.per for cap in found)})
                order, start = list(spans), spans["day"][0]
                usage = keys.usage(tenant.id, start)
                taken = [*seat_keys, *(window_key(tenant.id, cap, spans) for cap in found)]
                ask = {
                    "id": self.id, "owner": entry.job if entry else ledger.owner, "digest": job.caller.token_digest,
                    "epoch": ledger.epoch.check(), "mark": ledger.epoch.mark(tenant.id), "amount": job.price,
                    "spans": [[per, *spans[per]] for per in order], "conc": [seat.cap for seat in seats],
                    "limits": [
                        [
                            cap.cap, job.price if cap.kind == "usd" else 1, order.index(cap.per) + 1, cap.kind,
                            *([cap.until + keys.CLIENT_KEEP_S] if cap.until else ()),
                        ]
                        for cap in found
                    ],
                    "keep": keys.WINDOW_KEEP_S, "facts": self.facts,
                    "day": {
                        "start": start, "date": str(local_date(tenant.timezone, start)), "keep": keys.USAGE_KEEP_S,
                        "group": group(job),
                    },
                    "recent": {"max": keys.RECENT, "ms": keys.RECENT_MS},
                }  # fmt: skip
                if self._if_leading:
                    ask["leader"] = ledger.owner
                if self._at_once:
                    ask["at_once"] = True
                if self._claim:
                    ask["claim"] = self._claim.id
                if entry:
                    ask["queue"] = {"job": entry.job, "bytes": entry.size, "keep": entry.keep}
                if self._abreast:
                    ask["stand"] = True
                self.unheard = True
                reply = await self._ask(
                    RESERVE,
                    [keys.ledger(tenant.id), keys.reservation(tenant.id, self.id), keys.outstanding(tenant.id),
                     keys.key(tenant.id, job.caller.key_id), usage, keys.days(tenant.id),
                     keys.jobs(tenant.id, job.caller.holder), *taken, *self._name,
                     *filter(None, (self._if_leading,)), *queue],
                    [orjson.dumps(ask)],
                )  # fmt: skip
                self.unheard = False
                match reply[0]:
                    case b"ok" | b"stand":
                        if reply[0] == b"stand":
                            self.standing = place_refusal(seats[int(reply.pop(2)) - 1], job.type)
                            taken = taken[len(seats) :]
                        self._usage, self._taken = usage, tuple(taken)
                        self.state = "cleared" if self._at_once else "reserved"
                        ledger.epoch.saw(tenant.id, reply[1])
                        self.remaining = {
                            f"{cap.kind}-{cap.per}": int(left) for cap, left in zip(found, reply[2:], strict=False)
                        }
                        return
                    case b"span":
                        ledger.correct_span(tenant, reply)
                    case b"conc":
                        seat = seats[int(reply[1]) - 1]
                        raise told(job.caller, place_refusal(seat, job.type))
                    case b"limit":
                        cap = found[int(reply[1]) - 1]
                        add = (job.price if cap.kind == "usd" else 1) * (self._abreast() if self._abreast else 1)
                        refusal = cap_refusal(cap, spans[cap.per], int(reply[2]), int(reply[3]), add, ledger.now())
                        raise told(job.caller, refusal)
                    case b"key":
                        raise key_refusal(reply[1])
                    case b"follow":
                        raise NotLeading
                    case b"taken":
                        raise _taken()
                    case b"epoch":
                        await ledger.epoch.mismatch(tenant.id, reply[1])
                    case _:
                        break
            raise LedgerUnavailable()
        except LedgerUnavailable:
            if self._at_once or entry:  # it may stand there as dispatched or queued, and certainly was not sent
                self._usage, self._taken, self.state = usage, tuple(taken), "cleared"
                sources = "RESERVED" if entry else UNSENT
                ledger.unwritten[self.id] = self._finish("REFUNDED", sources, 0, {"reason": "unsent"})
            ledger.active.discard(self.id)
            raise
        except BaseException:
            # Whether it was reserved may be unknown: the reaper sees an id of ours that nobody works on, and gives it
            # back.
            ledger.active.discard(self.id)
            raise

    async def sit(self) -> bool:
        """Take the concurrency place that was not free when the rest was held; whether it is this job's by now.

        Raises LedgerUnavailable.
        """
        if self.standing is not None:
            asking = asyncio.ensure_future(self._sit())
            try:
                await asyncio.shield(asking)
            except asyncio.CancelledError:
                await asyncio.wait([asking])  # what it took is to be given back with the rest
                raise
        return self.standing is None

    async def _sit(self) -> None:
        tenant, seats = self._tenant.id, places(self._job.caller, self._job.request.user)
        seat_keys = [keys.concurrency(tenant, seat.level, seat.subject) for seat in seats]
        try:
            reply = await self._ask(
                SIT,
                [keys.ledger(tenant), keys.reservation(tenant, self.id), *seat_keys],
                [self.id, self._ledger.owner, *(seat.cap for seat in seats)],
            )
        except LedgerUnavailable:
            # Whether it sits is unknown, and with it which keys its end must name: the reaper reads that, and ends it.
            self.state = "ended"
            self._ledger.active.discard(self.id)
            raise
        match reply[0]:
            case b"ok":
                self._taken, self.standing = (*seat_keys, *self._taken), None
                self._ledger.epoch.saw(tenant, reply[1])
            case b"conc":
                self.standing = place_refusal(seats[int(reply[1]) - 1], self._job.type)
            case _:
                raise LedgerUnavailable("This job's reservation was reaped meanwhile; nothing was dispatched.")

    async def dispatch(self) -> None:
        """Acknowledge in Redis that the job is about to be sent.

        Raises:
            Refused: the key was revoked or has expired meanwhile.
            LedgerUnavailable: not acknowledged; the job must not be sent.
        """
        if self.state == "cleared":
            self.state = "dispatching"
            return
        tenant = self._tenant.id
        reply = await self._ask(
            DISPATCH,
            [keys.ledger(tenant), keys.reservation(tenant, self.id), keys.key(tenant, self._job.caller.key_id),
             *self._name],
            [self._ledger.epoch.check(), self._ledger.epoch.mark(tenant), self._ledger.owner, self._fence,
             self._job.caller.token_digest, *self._claimed],
        )  # fmt: skip
        match reply[0]:
            case b"ok":
                self.state = "dispatching"
                self._ledger.epoch.saw(tenant, reply[1])
            case b"key":
                raise key_refusal(reply[1])
            case b"taken":
                raise _taken()
            case b"epoch":
                await self._ledger.epoch.mismatch(tenant, reply[1])
                raise LedgerUnavailable()
            case _:
                raise LedgerUnavailable("This job's reservation was reaped meanwhile; nothing was dispatched.")

    async def retract(self) -> None:
        """Back to RESERVED: not sent after all, or an answer proves that nothing was billed. Raises
        LedgerUnavailable."""
        if not await self._retracted():
            raise LedgerUnavailable("This job's reservation was reaped meanwhile; it is not sent again.")

    async def _retracted(self) -> bool:
        tenant = self._tenant.id
        reply = await self._ask(
            RETRACT,
            [keys.ledger(tenant), keys.reservation(tenant, self.id), *self._name],
            [self._ledger.owner, self._fence, *self._claimed],
        )
        if reply[0] != b"ok":
            return False
        self._fence += 1
        self.state = "reserved"
        self._ledger.epoch.saw(tenant, reply[1])
        return True

    async def settle(self, paid: int, told: object = None, **row: Any) -> str:
        """Charge `paid` micro-dollars. `row` goes into the ledger row; `told` is what the call came to, for the answer
        under its name. The script's word: done, already or unwritten."""
        return await self._end("SETTLED", "DISPATCHING,AMBIGUOUS", paid, told, row)

    async def refund(self, told: object = None, **row: Any) -> str:
        """Charge nothing: never sent, or an answer that by policy is not billed. Without `told` the name is free."""
        return await self._end("REFUNDED", UNSENT if self.state != "dispatching" else BILLABLE, 0, told, row)

    def not_sent(self) -> None:
        """Certainly nothing was sent, or nothing billed for it: however this ends, it is not charged."""
        self.state = "cleared"

    async def charge_unknown(self, told: object = None, **row: Any) -> str:
        """Charge the whole price until reconciled: it was sent, and what became of it is unknown."""
        return await self._end("AMBIGUOUS", "DISPATCHING", 0, told, row)

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if self.state == "ended":
            return
        reason = error.code if isinstance(error, GatewayError) else "left"
        # Shielded: a second cancellation must not lose the end of the reservation.
        if self.state == "dispatching":
            await asyncio.shield(self.charge_unknown(reason=reason))
        else:
            await asyncio.shield(self.refund(reason=reason))

    async def _end(self, end: End, sources: str, paid: int, told: object, row: Mapping[str, Any]) -> str:
        call = self._finish(end, sources, paid, row)
        if self._claim is not None and told is not None:
            call.answer = self._claim.write(told)
        self.state = "ended"
        return await self._ledger.finish(call)

    def _finish(self, end: End, sources: str, paid: int, row: Mapping[str, Any]) -> Finish:
        return Finish(
            self._tenant.id, self.id, self._usage, self._taken, end, paid, "", sources, "owner",
            self.facts | dict(row),
            self._job.price, unsent=self.state in ("cleared", "reserved"), name="".join(self._name),
        )  # fmt: skip

    @property
    def _claimed(self) -> tuple[str, ...]:
        return () if self._claim is None else (self._claim.id,)

    async def _ask(self, script: Script, names: list[str], args: list[Any]) -> Any:
        """Ask a script that is idempotent by id once more when its reply was lost, and only then give up."""
        try:
            return await self._ledger.store.run(script, names, args)
        except LedgerUnavailable:
            return await self._ledger.store.run(script, names, args)


def _taken() -> GatewayError:
    return LedgerUnavailable("Another call took this name over; nothing was dispatched here.")
