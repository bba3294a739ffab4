"""From an admitted request to a job in the queue: room, name, inputs, record, and the money with the entry in one step.

Called by the surfaces. What is refused is refused before money is held, and leaves nothing behind; a process that dies
in between leaves records that expire. When Redis is away, `LedgerUnavailable` is raised: a job that may have been
queued all the same is named in it, and taken out again by the heartbeat if it was not sent until then.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from time import monotonic

import orjson

from app.domain import policy
from app.domain.fingerprint import call_digest, scope_secret
from app.domain.ids import job_id
from app.domain.job import Job
from app.errors import GatewayError, LedgerUnavailable, Refused
from app.jobs import inputs, ticket
from app.jobs.queue import Backlog, Queue, hook_of
from app.pipeline import Admitted, Control, Gateway, beside_loop
from app.quota.hold import Entry, Hold
from app.quota.names import Claim, Ended, Wanted, in_flight
from app.store import keys
from app.telemetry.outcome import Outcome as Record

POLL = 0.02  # seconds between looks at a job that another call is queueing under the same name
QUEUEING_MS = 15_000  # a name whose job did not come into the queue in this time is free; then the job keeps it
MARGIN_MS = 600_000  # that what belongs to a job outlives the last moment at which it can be worked on
_GONE = "The job of this name is not stored any more; nothing was queued."


@dataclass(frozen=True, slots=True)
class Bounds:
    """How much may be queued. `ttl` is in seconds."""

    ttl: float
    jobs: int
    tenant_bytes: int
    total_bytes: int


@dataclass(frozen=True, slots=True)
class Beside:
    """What goes with a job and changes nothing of it: the URL that is told of its end, and what its surface will say of
    it again, which is content and is kept as such."""

    hook: str = ""
    echo: Callable[[Job], bytes] = lambda _: b""


@dataclass(frozen=True, slots=True)
class Put:
    """A job in the queue; `repeated` where it was there before, under the name of this call."""

    job_id: str
    repeated: bool


class Intake:
    """The way in, of one process."""

    def __init__(self, gateway: Gateway, queue: Queue, bounds: Bounds, kick: Callable[[], None]) -> None:
        self._gateway, self._queue, self._bounds, self._kick = gateway, queue, bounds, kick
        self._entering: dict[str, tuple[int, int]] = {}  # tenant -> jobs and bytes that are being queued
        self.total = 0  # bytes that all tenants hold, as of the last look, and what was added here since

    async def put(
        self,
        admitted: Admitted,
        control: Control,
        record: Record,
        *,
        route: str,
        name: str | None,
        beside: Beside,
    ) -> Put | None:
        """Queue a job; its id, or that of the job which has the name already. None: a call that has ended has it.

        Raises:
            Refused: queue_full; what a reservation is refused for; idempotency_mismatch, idempotency_in_flight or
                idempotency_gone.
            GatewayError: overloaded, too much is queued in all.
            LedgerUnavailable: no answer; with `charged: unknown` the job may be in the queue.
        """
        new, claim = job_id(), None
        if name is not None:
            found = await self._name(admitted, record, route, name, new, beside.hook)
            if not isinstance(found, Claim):
                return found
            claim = found
            job = admitted.job
            admitted = replace(admitted, job=policy.apply(job.caller, replace(job.request, seed=found.seed)))
        try:
            size = await self._enter(new, admitted, control, record, claim, beside)
        except GatewayError as error:
            if claim is not None and error.charged == "no":  # else a repeat is given the job, if it is there
                await self._gateway.names.close(claim.key, claim.id)
            raise
        self.total += size
        record.job_id = new
        self._kick()
        return Put(new, repeated=False)

    async def _name(
        self, admitted: Admitted, record: Record, route: str, name: str, new: str, hook: str
    ) -> Claim | Put | None:
        """The name for a new job, or the job that has it; None: what had it is over, and not told of as a job."""
        job, tenant = admitted.job, admitted.job.caller.tenant.id
        secret = scope_secret(self._gateway.pepper, f"t:{tenant}")
        digest = await beside_loop(job, lambda: call_digest(job.request, secret=secret, hook=hook))
        key = keys.idempotency(tenant, job.caller.holder, route, name)
        wanted = Wanted(key, digest, job.request.seed, record.request_id, admitted.until)
        until = min(admitted.until, monotonic() + QUEUEING_MS / 1000)
        while True:
            found = await self._gateway.names.take_for_job(wanted, new, QUEUEING_MS)
            if isinstance(found, Claim):
                return found
            holder = found.claim if isinstance(found, Ended) else found
            if await self._queue.find(tenant, holder) is not None:
                return Put(holder, repeated=True)
            if isinstance(found, Ended):
                if hook:  # a waiting call has none, so it was a job, and there is no answer here to give again
                    raise Refused("idempotency_gone", _GONE, charged=found.charged, field="Idempotency-Key")
                return None
            if monotonic() > until:
                raise in_flight()
            await asyncio.sleep(POLL)  # it is just being queued, or was refused and leaves its name

    async def _enter(
        self, new: str, admitted: Admitted, control: Control, record: Record, claim: Claim | None, beside: Beside
    ) -> int:
        """Put a job into the queue; the bytes that it holds there."""
        job, tenant = admitted.job, admitted.job.caller.tenant.id
        size = sum(upload.size for upload in job.request.uploads.values())
        ms = int((self._bounds.ttl + self._gateway.deadline) * 1000) + MARGIN_MS
        with self._room(tenant, size, await self._queue.backlog(tenant)):
            hold = Hold(self._gateway.ledger, job, new, claim=claim, entry=Entry(new, size, ms))
            try:
                await self._write(new, admitted, control, record, claim, beside, ms)
                await hold.enter_queue()
            except GatewayError as error:
                if hold.unheard:
                    record.job_id = new
                    raise _unheard(new) from None
                if not isinstance(error, LedgerUnavailable):  # what cannot be removed now expires
                    with suppress(LedgerUnavailable):
                        await self._queue.store.command("UNLINK", keys.inputs(tenant, new), keys.job(tenant, new))
                raise
        return size

    async def _write(
        self,
        new: str,
        admitted: Admitted,
        control: Control,
        record: Record,
        claim: Claim | None,
        beside: Beside,
        ms: int,
    ) -> None:
        job, store = admitted.job, self._queue.store
        tenant, uploads, seal = job.caller.tenant.id, job.request.uploads, self._queue.seal
        told = {
            "state": "new", "holder": job.caller.holder, "key": job.caller.key_id,
            "digest": job.caller.token_digest, "request": record.request_id,
            "hook": beside.hook and seal.close(keys.hook(tenant, hook_of(new)), beside.hook.encode()),
            "worker": "", "starts": 0,
            "sizes": orjson.dumps({name: upload.size for name, upload in uploads.items()}),
            "name": claim.key if claim else "", "operation": job.operation, "variant": job.variant,
            "type": job.type.type, "seed": job.request.seed, "price": job.price, "typical": job.type.typical_seconds,
        }  # fmt: skip
        parts = [part for pair in told.items() for part in pair]
        await store.run(inputs.KEEP, [keys.job(tenant, new)], [MARGIN_MS, *parts])
        await store.command("SADD", keys.QUEUES, tenant)
        await inputs.keep(store, seal, tenant, new, ticket.pack(job, control), uploads, ms, beside.echo(job))
        for upload in uploads.values():
            upload.release()

    @contextmanager
    def _room(self, tenant: str, size: int, found: Backlog) -> Iterator[None]:
        """Refuse what there is no room for, also beside what is just being queued; nothing was written."""
        jobs, held = self._entering.get(tenant, (0, 0))
        bounds = self._bounds
        if found.waiting + jobs >= bounds.jobs:
            raise _full(bounds.jobs, "jobs")
        if found.size + held + size > bounds.tenant_bytes:
            raise _full(bounds.tenant_bytes, "bytes")
        if self.total + sum(bytes_ for _, bytes_ in self._entering.values()) + size > bounds.total_bytes:
            text = "The queue holds as much as it may; nothing was queued."
            raise GatewayError("overloaded", text, retry_after=10)
        self._entering[tenant] = (jobs + 1, held + size)
        try:
            yield
        finally:
            jobs, held = self._entering.pop(tenant)
            if jobs > 1:
                self._entering[tenant] = (jobs - 1, held - size)


def _unheard(new: str) -> LedgerUnavailable:
    error = LedgerUnavailable("The ledger did not answer in time: the job may be queued. Ask for it by its id.")
    error.charged, error.retry_after, error.extra = "unknown", None, {"job": new}
    return error


def _full(most: int, unit: str) -> Refused:
    text = f"This tenant's queue is full: it may hold {most} {unit}."
    return Refused("queue_full", text, retry_after=10, limit=most, unit=unit)
