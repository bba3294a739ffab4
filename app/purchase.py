"""The leader's part of the walk: hold the money, take a turn, send, and make of the outcome what it means.

Called by the pipeline for the one request that leads its flight. Only the leader reserves; retries live inside one
reservation; a dispatch is acknowledged before the first byte goes upstream; bytes are stored before money is settled.
When Redis is away, `LedgerUnavailable` is raised and nothing is sent; an end that cannot be written is written later.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from time import monotonic, time

from app.cache.flight import Flight, Flights
from app.cache.lineage import Lineage
from app.cache.results import Result, Results, image_id
from app.domain import policy, pricing
from app.domain.ids import job_id
from app.domain.job import Job
from app.errors import Charged, LedgerUnavailable, Refused
from app.images.gate import Gate, Plan
from app.images.picture import describe
from app.prodia.client import Prodia
from app.prodia.faults import RETRY, Fault, Money, Outcome, public_error
from app.prodia.retry import Retries, RetryBudget
from app.prodia.turns import Turn, Turns
from app.prodia.wire import Call, Completed, Part
from app.quota.hold import Hold, NotLeading
from app.quota.ledger import Ledger
from app.quota.names import Claim
from app.quota.party import Guest
from app.quota.seat import Seat, comes_again
from app.store import keys
from app.store.blobs import Spool
from app.telemetry.metrics import Metrics
from app.telemetry.outcome import Outcome as Record
from app.tenants import Tenants

# An upstream answer, and its picture as (content type, width, height).
Bought = tuple[Completed, tuple[str, int, int]]
CHARGED: Mapping[Money, Charged] = {"refund": "no", "charge": "yes", "ambiguous": "unknown"}
HEALTHY = frozenset({"invalid", "moderated", "failed", "refused", "misconfigured"})


@dataclass(slots=True)
class Purchase:
    """One job to be bought: for which flight, until when (monotonic), whether its picture is kept for reuse, whether
    one that was made before does not count, the name (`Idempotency-Key`) under which it was asked for, its place among
    the jobs that start with it, and for a queued job what it holds already."""

    flight: Flight
    job: Job
    plans: Mapping[str, Plan]
    until: float
    keep: bool
    fresh: bool
    record: Record
    claim: Claim | None
    guest: Guest[tuple[Part, ...]] | None = None
    seat: Seat | None = None
    id: str = field(default_factory=job_id)
    call: Call | None = None  # what goes to the wire, once the inputs conform

    def __post_init__(self) -> None:
        if self.seat is not None:
            self.id = self.seat.job_id
        self.record.job_id = self.id


@dataclass(slots=True, kw_only=True)
class Buyer:
    """What buying takes; every part is handed in by the composition root."""

    tenants: Tenants
    ledger: Ledger
    flights: Flights
    results: Results
    lineage: Lineage
    turns: Turns
    prodia: Prodia
    gate: Gate
    spool: Spool
    metrics: Metrics
    retry_budget: RetryBudget
    money: Mapping[Outcome, Money]

    async def lead(self, it: Purchase) -> Result:
        """Make the input conform, lead the flight, hold the money, buy, store, settle, announce. Raises GatewayError,
        or Elsewhere where another replica leads."""
        flight, job, tenant = it.flight, it.job, it.job.caller.tenant
        turn = self.turns.turn(tenant.id, tenant.weight, job.type.type, it.until)
        try:
            it.call = it.call or await self._call(it)
            # What is asked of Redis in one turn of the loop travels together: the flight, the money, the place in line.
            leading = self.flights.join(flight, fresh=it.fresh)
            if flight.pooled or it.seat:
                await asyncio.shield(leading)
            if at_once := self.turns.slack and not flight.pooled and it.guest is None and it.seat is None:
                turn.ask()
            for _ in range(2):
                try:
                    async with it.seat or Hold(
                        self.ledger, job, it.id, flight.beside_money, at_once=at_once, claim=it.claim,
                        abreast=it.guest.asks() if it.guest else None,
                    ) as hold:  # fmt: skip
                        await asyncio.shield(leading)
                        if it.guest is not None:
                            await it.guest.begin(hold, it.until)
                        return await self._make(it, hold, turn)
                except NotLeading:
                    await asyncio.shield(leading)  # says where it is led, or that it is led here by now
            raise LedgerUnavailable("Another replica took this flight over; nothing was dispatched here.")
        except BaseException as error:
            await asyncio.shield(self.flights.failed(flight, error))
            raise
        finally:
            turn.leave()
            if it.guest is not None:
                it.guest.left()

    async def _make(self, it: Purchase, hold: Hold, turn: Turn) -> Result:
        """Buy it; the bytes first, then the money, then the word to those who wait."""
        bought, picture = await self._buy(it, hold, turn)
        where = it.flight.digest if it.keep else _claim_digest(it.id)
        result = _result(it, bought, picture, where)
        ttl = it.job.caller.tenant.cache.ttl_seconds if it.keep else keys.CLAIM_S
        stored = await self.results.store(where, result, ttl)
        announcing = asyncio.create_task(self.flights.landed(it.flight, result, where if stored else None))
        noting = asyncio.create_task(self.lineage.note(it.job, result, made=True))
        await self._settle(hold, it.job, bought, result)  # leaves first, in the same round trip
        await asyncio.gather(announcing, noting)
        return result

    async def _buy(self, it: Purchase, hold: Hold, turn: Turn) -> Bought:
        """Take a turn, dispatch, call; again while the upstream proves that nothing was billed, within one
        reservation."""
        retries, job = Retries(self.retry_budget), it.job
        while True:
            asked = monotonic()
            if hold.state == "cleared" and not await turn.soon():
                await self._unsent(it.flight, hold)
            async with turn.taken(timeout=it.until - asked):
                it.record.waited += monotonic() - asked
                self.metrics.wait.observe(monotonic() - asked)
                try:
                    await self._still_allowed(job)
                    await self._dispatch(it.flight, hold)
                except BaseException:
                    self.turns.untold(job.type.type)  # nothing was sent: if it was the probe, another is
                    raise
                try:
                    return await self._attempt(it)
                except Fault as fault:
                    wait = await self._after(fault, it, hold, retries)
                    await self._unsent(it.flight, hold)
                    self.metrics.retries.labels(fault.outcome).inc()
                    if fault.outcome == "busy":
                        self.turns.pause(job.type.type, wait)
            await asyncio.sleep(wait)

    async def _dispatch(self, flight: Flight, hold: Hold) -> None:
        """Acknowledged by Redis before the first byte goes upstream; both marks travel in one round trip."""
        flight.committed = True
        if hold.state == "cleared":  # with the reservation
            return await hold.dispatch()
        marks = await asyncio.gather(self.flights.sent(flight), hold.dispatch(), return_exceptions=True)
        if error := next((mark for mark in marks if isinstance(mark, BaseException)), None):
            flight.committed = False
            hold.not_sent()
            raise error

    async def _unsent(self, flight: Flight, hold: Hold) -> None:
        """Back to reserved, because nothing was sent or nothing billed: a dead leader may be replaced again."""
        flight.committed = False
        await asyncio.gather(hold.retract(), self.flights.unsent(flight))

    async def _attempt(self, it: Purchase) -> Bought:
        began, status, job = monotonic(), "lost", it.job
        it.record.attempts += 1
        self.metrics.in_progress.inc()
        try:
            assert it.call is not None  # noqa: S101
            bought = await self.prodia.attempt(it.call, timeout=it.until - monotonic())
            try:
                picture = describe(bought.image)
            except ValueError:
                raise Fault("malformed", status=200, upstream_id=bought.upstream_id) from None
            status = "ok"
            return bought, picture
        except Fault as fault:
            status = fault.outcome
            raise
        finally:
            seconds = monotonic() - began
            it.record.upstream += seconds
            self.metrics.in_progress.dec()
            self.metrics.attempt(job.variant, job.operation, status, seconds)
            if status not in ("busy", "unavailable"):
                self.turns.report(job.type.type, ok=status == "ok" or status in HEALTHY)
            else:
                self.turns.untold(job.type.type)

    async def _after(self, fault: Fault, it: Purchase, hold: Hold, retries: Retries) -> float:
        """Seconds until the next try; where there is none, the end of the money and the caller's error."""
        proven_unbilled = fault.outcome in RETRY and self.money[fault.outcome] == "refund"
        if proven_unbilled:
            hold.not_sent()
        if proven_unbilled and (wait := retries.next_wait(fault, remaining=it.until - monotonic())) is not None:
            return wait
        if proven_unbilled:
            await hold.retract()  # nothing was dispatched after all: the image does not count either
        money = self.money[fault.outcome]
        it.record.charged = CHARGED[money]
        error = public_error(fault, CHARGED[money])
        if it.seat is not None and proven_unbilled and comes_again(error):
            raise error  # nothing has ended: the seat is given back, and the job is sent in a later turn
        told = {"reason": str(fault.outcome)} | ({"upstream_id": fault.upstream_id} if fault.upstream_id else {})
        match money:
            case "refund":
                # What may go better the next time is nothing to repeat to a caller.
                again = proven_unbilled or fault.outcome == "misconfigured"
                await hold.refund(None if again else error, **told)
            case "charge":
                await hold.settle(it.job.price, error, **told)
            case "ambiguous":
                await hold.charge_unknown(error, **told)
        raise error

    async def _settle(self, hold: Hold, job: Job, bought: Completed, result: Result) -> None:
        price = pricing.actual(job.price, bought.price_micro_usd)
        self.metrics.upstream_cost.labels(job.variant).inc(price.billed / pricing.MICRO)
        if price.drift:
            self.metrics.drift.labels(job.variant).inc(price.drift / pricing.MICRO)
        await hold.settle(
            price.paid, result, image=result.image_id, sha256=result.sha256, upstream_id=bought.upstream_id or "",
            drift=price.drift, seed=result.seed,
        )  # fmt: skip

    async def _still_allowed(self, job: Job) -> None:
        """The policy in force at dispatch may be stricter than at admission. Raises Refused."""
        tenant = (await self.tenants.refresh()).tenants.get(job.caller.tenant.id)
        if tenant is None:
            raise Refused("forbidden", "This tenant was removed.")
        if refusal := policy.still_allowed(job, job.caller.under(tenant)):
            raise refusal

    async def _call(self, it: Purchase) -> Call:
        """What goes to the wire; an input that several jobs start from is made to conform once."""

        async def parts() -> tuple[Part, ...]:
            return await self._parts(it.job, it.plans)

        ready = await (it.guest.input(parts) if it.guest else parts())
        return Call(it.job.type.type, it.job.config, ready, it.job.request.output)  # type: ignore[arg-type]

    async def _parts(self, job: Job, plans: Mapping[str, Plan]) -> tuple[Part, ...]:
        """The inputs made to conform, under fixed file names, in the catalogue's order."""
        parts = []
        for rule in job.type.inputs:
            upload = job.request.uploads[rule.name]
            ready = await self.gate.prepare(upload.data, plans[rule.name], rule)
            upload.release()
            parts.append(Part(f"{rule.name}.{ready.format}", ready.content_type, await self.spool.keep(ready.data)))
        return tuple(parts)


def _result(it: Purchase, bought: Completed, picture: tuple[str, int, int], where: str) -> Result:
    """The record of a picture that was bought; `where` is the digest it is stored under."""
    job, (content_type, width, height) = it.job, picture
    sha256, price = hashlib.sha256(bought.image).hexdigest(), pricing.actual(job.price, bought.price_micro_usd).paid
    return Result(
        image=bought.image, job_id=it.id, image_id=image_id(where, sha256), sha256=sha256,
        content_type=content_type, width=width, height=height,
        seed=job.request.seed, job_type=job.type.type, variant=job.variant, operation=job.operation,
        safety_applied=job.safety.applied, price=price, created=int(time()), scope=it.flight.scope,
    )  # fmt: skip


def _claim_digest(job_id: str) -> str:
    """Where a result that must not be reused waits for those it was made for."""
    return hashlib.sha256(b"kontext-gateway/claim/" + job_id.encode()).hexdigest()
