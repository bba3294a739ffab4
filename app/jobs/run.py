"""One job from its turn to its end: the same walk as a waiting caller's, with the money that is held already.

Called by the worker. A job that cannot be sent now waits for its next turn; one that may have been sent is never sent
again: what its reservation says decides. When Redis is away, `LedgerUnavailable` is raised, and the job is looked at
again.
"""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic
from typing import Any

import orjson

from app.cache.results import Result
from app.domain import policy
from app.domain.job import Caller
from app.errors import GatewayError, Refused, UpstreamError
from app.jobs import inputs, ticket
from app.jobs.queue import Queue, Queued, State
from app.jobs.status import CHARGED, plain_error, state_of
from app.jobs.telling import tell_end
from app.named import answer_of, written
from app.pipeline import Admitted, Control, Delivery, Gateway, kept
from app.quota.names import Claim
from app.quota.seat import Held, Seat, comes_again, refund_queued
from app.telemetry.outcome import Outcome as Record

MOST_STARTS = 5  # a job that so many processes began and none ended is what ends them
_UNKNOWN = "What became of this job is unknown: its worker died after it was sent. It is not sent again."
Tell = Callable[[Gateway, Delivery, str], dict[str, Any]]


class Later(Exception):
    """Not this time: the job stays in the queue, for so many seconds at least."""

    def __init__(self, wait: float = 0) -> None:
        self.wait = wait


class Runner:
    """Works on jobs that this process was handed.

    Args:
        tell: what a surface says of a picture: headers and document.
        ttl: seconds that a job may be queued, however often its turn has come.
    """

    def __init__(self, gateway: Gateway, queue: Queue, tell: Tell, *, ttl: float) -> None:
        self._gateway, self._queue, self._tell, self._ttl = gateway, queue, tell, ttl
        self._owed: dict[str, Seat] = {}  # job -> its seat, which could not be given back yet

    async def run(self, tenant: str, job_id: str, entry: str) -> None:
        """Bring a job to its end. Raises Later, LedgerUnavailable."""
        await self._give_back(job_id)
        job = await self._queue.find(tenant, job_id)
        if job is None or job.over:
            return await self._queue.drop(tenant, entry)
        word, starts = await self._queue.start(job)
        if word != "ok":
            return  # over, or another worker's
        record = Record(job.request, tenant=tenant, key_id=job.key, operation=job.operation, variant=job.variant)
        record.job_id = job.id
        held = await self._queue.held(job)
        if held.state == "RESERVED" and int(starts) > MOST_STARTS:
            held = await refund_queued(self._gateway.ledger, held, "job_abandoned")
        if held.state == "RESERVED" and job.created < await self._queue.store.now_ms() - self._ttl * 1000:
            held = await refund_queued(self._gateway.ledger, held, "expired")
        if held.state != "RESERVED":
            return await self._conclude(job, held, record)
        if held.record["owner"] != job.id:
            raise Later  # of a worker that died: the reaper gives its seat back
        try:
            admitted, control = await self._unpack(job)
            claim = self._claim(job, admitted, control)
            seat = Seat(self._gateway.ledger, admitted.job, held, claim)
        except GatewayError as error:
            return await self._refuse(job, held, error, record)
        try:
            delivery = await self._gateway.obtain(admitted, control, record, claim, seat=seat)
            if seat.state == "new":  # it was had for nothing
                await seat.give_back()
                await seat.refund(delivery, reason=delivery.source, image=delivery.result.image_id)
        except GatewayError as error:
            if seat.state == "new":
                return await self._refuse(job, held, error, record)
            return await self._end(job, "failed", self._told(error, admitted, control, job, claim), record)
        finally:
            if seat.owed:
                self._owed[job.id] = seat
        held = await self._queue.held(job)
        if held.state == "REFUNDED" and not held.record["image"]:  # cancelled meanwhile
            return await self._conclude(job, held, record)
        record.source, record.cost, record.saved = delivery.source, delivery.cost, delivery.saved
        await self._end(job, "succeeded", self._told(delivery, admitted, control, job, claim), record)

    async def settle(self) -> None:
        """Give back every seat that is owed: this process ends. Raises LedgerUnavailable."""
        for job_id in list(self._owed):
            await self._give_back(job_id)

    async def _give_back(self, job_id: str) -> None:
        if seat := self._owed.get(job_id):
            await seat.give_back()
            del self._owed[job_id]

    async def cancel(self, job: Queued) -> State:
        """Take a job out that was not sent; the state that it is in now. Raises LedgerUnavailable."""
        held = await refund_queued(self._gateway.ledger, await self._queue.held(job), "cancelled")
        state, _ = state_of(held)
        if state not in ("queued", "running") and not job.over:
            await self._conclude(job, held, Record(job.request, tenant=job.tenant, key_id=job.key))
        return state

    async def expire(self, tenant: str, job_id: str) -> None:
        """End a job whose turn did not come in time; one that is being sent goes on. Raises LedgerUnavailable."""
        job = await self._queue.find(tenant, job_id)
        if job is not None and not job.over:
            held = await refund_queued(self._gateway.ledger, await self._queue.held(job), "expired")
            if held.state not in ("RESERVED", "DISPATCHING"):
                await self._conclude(job, held, Record(job.request, tenant=tenant, key_id=job.key))

    async def _refuse(self, job: Queued, held: Held, error: GatewayError, record: Record) -> None:
        """The end of a job that may not be sent any more."""
        if comes_again(error):
            raise Later((isinstance(error, UpstreamError) and error.retry_after) or 0) from None
        held = await refund_queued(self._gateway.ledger, held, error.code)
        if held.state != "REFUNDED" or held.record["reason"] != error.code:
            return await self._conclude(job, held, record)
        await self._end(job, "failed", written(error), record)

    async def _conclude(self, job: Queued, held: Held, record: Record) -> None:
        """The end of a job as its reservation tells it."""
        state, code = state_of(held)
        if state in ("queued", "running"):
            raise Later  # its worker died: the reaper says what that means
        charged = CHARGED.get(held.state, "unknown")
        if held.state == "AMBIGUOUS" or state == "succeeded":
            found = await self._stored(job, held)
            if found is not None:
                return await self._end(job, "succeeded", found, record)
        if state == "cancelled":
            return await self._end(job, "cancelled", written(plain_error("job_cancelled", "no")), record)
        if state == "succeeded":  # bought, and not stored any more
            code = "idempotency_gone"
        error = plain_error(code, charged)
        if held.state == "AMBIGUOUS" and held.record["reason"] == "reaped":
            error = UpstreamError("upstream_timeout", _UNKNOWN, charged="unknown")
        await self._end(job, "failed", written(error), record)

    async def _stored(self, job: Queued, held: Held) -> dict[str, Any] | None:
        """The answer of a picture that was stored before its worker died; None where there is none."""
        try:
            admitted, control = await self._unpack(job)
        except GatewayError:
            return None
        found: Result | Delivery | None = None
        if image := held.record["image"]:
            scope, _ = await self._gateway.where(admitted.job)
            found = await self._gateway.results.by_id((scope,), image)
            if found is not None and held.state == "REFUNDED":
                found = Delivery(
                    admitted.job, found, held.record["reason"], admitted.plans, kept(admitted.job, control)
                )
        else:
            found = await self._gateway.results.find(*await self._gateway.where(admitted.job))
            if found is not None and found.job_id != job.id:
                return None
        if found is None:
            return None
        return self._answer(found, admitted, control, job)

    async def _end(self, job: Queued, state: State, answer: dict[str, Any], record: Record) -> None:
        event, body = tell_end(job, state, answer)
        told = orjson.dumps(answer, default=str)
        if job.name and state != "cancelled":  # where its worker died before it said so
            names = self._gateway.names
            await names.close(job.name, job.id, names.seal.close(job.name, told))
        if await self._queue.end(job, state, told, event, body):
            self._gateway.metrics.job_ended(record, state)

    async def _unpack(self, job: Queued) -> tuple[Admitted, Control]:
        """The job again, as it may be sent now. Raises Refused; LedgerUnavailable."""
        gateway = self._gateway
        tenant = (await gateway.tenants.refresh()).tenants.get(job.tenant)
        if tenant is None:
            raise Refused("forbidden", "This tenant was removed.")
        caller = Caller(tenant, job.key, job.digest, await gateway.keyring.policy(job.tenant, job.key))
        sizes = orjson.loads(job.sizes or "{}")
        uploads = await inputs.load(gateway.ledger.store, self._queue.seal, job.tenant, job.id, sizes)
        if uploads is None or not job.ticket:
            raise GatewayError("job_abandoned", "What was uploaded for this job is not there any more.")
        asked, control = ticket.unpack(job.ticket, caller, gateway.catalog, uploads)
        if refusal := policy.still_allowed(asked, asked.caller):
            raise refusal
        return Admitted(asked, gateway.plans(asked), monotonic() + gateway.deadline), control

    def _claim(self, job: Queued, admitted: Admitted, control: Control) -> Claim | None:
        """The name that the job has."""
        if not job.name:
            return None
        tell = lambda outcome: self._answer(outcome, admitted, control, job)  # noqa: E731
        return Claim(job.name, job.seed, tell, job.id, self._gateway.names.seal)

    def _told(
        self, outcome: Delivery | GatewayError, admitted: Admitted, control: Control, job: Queued, claim: Claim | None
    ) -> dict[str, Any]:
        """What is told of the outcome, under its name and by its id alike."""
        return (claim and claim.answer) or self._answer(outcome, admitted, control, job)

    def _answer(
        self, outcome: Delivery | Result | GatewayError, admitted: Admitted, control: Control, job: Queued
    ) -> dict[str, Any]:
        return answer_of(outcome, admitted, control, lambda delivery: self._tell(self._gateway, delivery, job.request))
