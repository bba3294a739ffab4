"""A reservation in code: an async context manager that no path can leave without an end, cancellation included.

Made by the pipeline's leader for one job. Everything the job needs is held at once or not at all; retries of the
upstream call live inside it. When Redis does not answer, a script is asked once more by the same id and then
`LedgerUnavailable` is raised.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Mapping
from typing import Any, Literal

import orjson

from app.domain.job import Job
from app.domain.usage import group
from app.domain.windows import local_date
from app.errors import GatewayError, LedgerUnavailable
from app.quota.ledger import End, Finish, Ledger, window_key
from app.quota.limits import caps, places
from app.quota.names import Claim
from app.quota.refusals import cap_refusal, key_refusal, place_refusal
from app.store import keys
from app.store.redis import Script, script

RESERVE = script("app.quota", "reserve")
DISPATCH = script("app.quota", "dispatch")
RETRACT = script("app.quota", "retract")


BILLABLE = "RESERVED,DISPATCHING"
UNSENT = f"{BILLABLE},AMBIGUOUS"  # also where another replica has reaped it meanwhile


class NotLeading(Exception):
    """Another process leads the flight that the reservation was for: nothing was reserved."""


class Hold:
    """One reservation: RESERVED -> DISPATCHING -> SETTLED | REFUNDED | AMBIGUOUS.

    Args:
        if_leading: key of a flight under the tenant's hash tag; reserve only while this process leads it.
        at_once: acknowledge the dispatch in the same step, because a slot is believed to be free; the state is then
            `cleared`: nothing was sent, and nothing but `dispatch` is needed to send it. `retract` takes it back.
        claim: the call's name; it is taken for good with the dispatch, and its answer kept with the end.
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
    ) -> None:
        self._if_leading, self._at_once, self._claim = if_leading, at_once, claim
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
            # Bounded by the commands' own timeouts; a hold made in the meantime is given back at once.
            await asyncio.wait([asking])
            if asking.exception() is None:
                await self.refund(reason="left")
            raise
        return self

    async def _reserve(self) -> None:
        ledger, job = self._ledger, self._job
        tenant, user = self._tenant, self._job.request.user
        found, seats = caps(job.caller, user), places(job.caller, user)
        seat_keys = [keys.concurrency(tenant.id, seat.level, seat.subject) for seat in seats]
        ledger.active.add(self.id)
        try:
            for _ in range(6):
                spans = ledger.propose_spans(tenant, {"day", *(cap.per for cap in found)})
                order, start = list(spans), spans["day"][0]
                usage = keys.usage(tenant.id, start)
                taken = [*seat_keys, *(window_key(tenant.id, cap, spans) for cap in found)]
                ask = {
                    "id": self.id, "owner": ledger.owner, "digest": job.caller.token_digest,
                    "epoch": ledger.epoch.check(), "mark": ledger.epoch.mark(tenant.id), "amount": job.price,
                    "spans": [[per, *spans[per]] for per in order], "conc": [seat.cap for seat in seats],
                    "limits": [
                        [cap.cap, job.price if cap.kind == "usd" else 1, order.index(cap.per) + 1, cap.kind]
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
                reply = await self._ask(
                    RESERVE,
                    [keys.ledger(tenant.id), keys.reservation(tenant.id, self.id), keys.outstanding(tenant.id),
                     keys.key(tenant.id, job.caller.key_id), usage, keys.days(tenant.id),
                     keys.jobs(tenant.id, job.caller.key_id), *taken, *self._name,
                     *filter(None, (self._if_leading,))],
                    [orjson.dumps(ask)],
                )  # fmt: skip
                match reply[0]:
                    case b"ok":
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
                        raise place_refusal(seat, job.type)
                    case b"limit":
                        cap = found[int(reply[1]) - 1]
                        add = job.price if cap.kind == "usd" else 1
                        raise cap_refusal(cap, spans[cap.per], int(reply[2]), int(reply[3]), add, ledger.now())
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
            if self._at_once:  # it may stand there as dispatched, and certainly was not sent
                self._usage, self._taken, self.state = usage, tuple(taken), "cleared"
                ledger.unwritten[self.id] = self._finish("REFUNDED", UNSENT, 0, {"reason": "unsent"})
            ledger.active.discard(self.id)
            raise
        except BaseException:
            # Whether it was reserved may be unknown: the reaper sees an id of ours that nobody works on, and gives it
            # back.
            ledger.active.discard(self.id)
            raise

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
        tenant = self._tenant.id
        reply = await self._ask(
            RETRACT,
            [keys.ledger(tenant), keys.reservation(tenant, self.id), *self._name],
            [self._ledger.owner, self._fence, *self._claimed],
        )
        if reply[0] != b"ok":
            raise LedgerUnavailable("This job's reservation was reaped meanwhile; it is not sent again.")
        self._fence += 1
        self.state = "reserved"
        self._ledger.epoch.saw(tenant, reply[1])

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
