"""THE walk of one request, on one page.

Every surface calls `Gateway.authenticate` and then `Gateway.submit`; whatever must hold for all of them holds here.
Policy is pure and comes first; only the leader of a flight reserves; retries live inside one reservation; bytes are
stored before money is settled. The work of a leader is a task of its own: a caller that goes away cancels it only
before dispatch.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from time import monotonic, perf_counter
from typing import Any

from app.bought import bought_result, claim_digest
from app.cache.flight import Elsewhere, Flight, Flights
from app.cache.results import Result, Results
from app.domain import auto, policy, pricing
from app.domain.catalog import Catalog
from app.domain.fingerprint import fingerprint, scope_secret
from app.domain.guidance import Guidance
from app.domain.ids import job_id
from app.domain.job import Ask, Caller, Job
from app.domain.validate import validate
from app.errors import Charged, GatewayError, LedgerUnavailable, Refused
from app.images.gate import GATE_VERSION, Gate, Plan, inspect
from app.images.picture import describe
from app.pictures import Pictures
from app.prodia.client import Prodia
from app.prodia.faults import RETRY, Fault, Money, Outcome, public_error
from app.prodia.retry import Retries, RetryBudget
from app.prodia.turns import Turn, Turns
from app.prodia.wire import Call, Completed, Part
from app.quota.deliveries import Deliveries
from app.quota.hold import Hold, NotLeading
from app.quota.ledger import Ledger
from app.quota.names import Claim, Names
from app.store import keys
from app.store.blobs import Spool
from app.telemetry.metrics import Metrics
from app.telemetry.outcome import Outcome as Record
from app.tenants import Keyring, Tenants

OFF_LOOP = 1024 * 1024  # bytes from which hashing leaves the event loop: below, a thread's wake-up costs more than it
# An upstream answer, and its picture as (content type, width, height).
Bought = tuple[Completed, tuple[str, int, int]]
CHARGED: Mapping[Money, Charged] = {"refund": "no", "charge": "yes", "ambiguous": "unknown"}
HEALTHY = frozenset({"invalid", "moderated", "failed", "refused", "misconfigured"})


@dataclass(frozen=True, slots=True)
class Control:
    """What a caller asked of the cache, from Cache-Control."""

    reuse: bool = True
    keep: bool = True
    only_if_cached: bool = False


@dataclass(frozen=True, slots=True)
class Delivery:
    """A finished picture for one caller: from the upstream, the cache, or a job that somebody else led."""

    job: Job
    result: Result
    source: str
    plans: Mapping[str, Plan]
    kept: bool

    @property
    def digests(self) -> dict[str, str]:
        """SHA-256 of each upload, hex."""
        return {name: upload.sha256 for name, upload in self.job.request.uploads.items()}

    @property
    def cost(self) -> int:
        """What this caller's tenant pays, in micro-dollars."""
        return self.result.price if self.source == "upstream" else 0

    @property
    def saved(self) -> int:
        """The price that this caller did not pay, in micro-dollars."""
        return 0 if self.source == "upstream" else self.result.price


@dataclass(frozen=True, slots=True)
class Admitted:
    """A request that may be made: the job, what is done to its uploads, and its deadline (monotonic)."""

    job: Job
    plans: Mapping[str, Plan]
    until: float


@dataclass(slots=True, kw_only=True)
class Gateway:
    """One process's walk; every part is handed in by the composition root."""

    catalog: Catalog
    guidance: Guidance
    tenants: Tenants
    keyring: Keyring
    ledger: Ledger
    flights: Flights
    results: Results
    turns: Turns
    prodia: Prodia
    gate: Gate
    spool: Spool
    metrics: Metrics
    retry_budget: RetryBudget
    money: Mapping[Outcome, Money]
    pepper: bytes
    pictures: Pictures
    deliveries: Deliveries
    names: Names
    deadline: float
    at_work: set[asyncio.Task[Result]]

    async def authenticate(self, token: str, record: Record) -> Caller:
        """Who this is, with one request taken from the rates of tenant and key. Raises Refused, LedgerUnavailable.

        The record names tenant and key only where the key was found valid, which is before the rates are asked.
        """
        tenant_id, key_id, digest = await self.keyring.resolve(token)
        tenant = (await self.tenants.refresh()).tenants.get(tenant_id)
        if tenant is None:
            raise Refused("forbidden", "This key's tenant is not configured here.")
        try:
            caller, record.rates = await self.ledger.admit(tenant, key_id, digest)
        except Refused as refused:
            if refused.code == "rate_limited":
                record.tenant, record.key_id, record.rates = tenant_id, key_id, refused.rates  # type: ignore[attr-defined]
            raise
        record.tenant, record.key_id = tenant_id, key_id
        if tenant.suspended:
            raise Refused("forbidden", "This tenant is suspended.")
        return caller

    async def submit(self, caller: Caller, ask: Ask, control: Control, record: Record) -> Delivery:
        """From what a caller wrote to a finished picture. Raises GatewayError; nothing is charged unless it says so."""
        return await self.obtain(await self.admit(caller, ask, record), control, record)

    async def admit(self, caller: Caller, ask: Ask, record: Record) -> Admitted:
        """What is decided before cache, money and others count: the request is legal and allowed. Raises
        GatewayError."""
        until = monotonic() + self.deadline - (perf_counter() - record.began)
        request = validate(await self.chosen(caller, ask), self.catalog)
        record.operation, record.variant = request.job_type.operation, request.job_type.variant
        job = policy.apply(caller, request)
        record.safety_action = job.safety.action
        plans = self.plans(job)
        if request.user is not None:
            record.rates += await self.ledger.admit_user(caller, request.user)
        return Admitted(job, plans, until)

    async def obtain(
        self, admitted: Admitted, control: Control, record: Record, claim: Claim | None = None
    ) -> Delivery:
        """The picture of an admitted request: from the cache, from a job that somebody else leads, or bought."""
        job, plans, until = admitted.job, admitted.plans, admitted.until
        request, keep = job.request, kept(job, control)
        scope, digest = await self.where(job)
        hit = None
        if keep and control.reuse and request.seed_given:
            hit = await self.results.find_again(scope, digest, job.caller.tenant.cache.ttl_seconds)
        if hit is not None:
            record.cache = "hit"
            self.deliveries.note(job, "cache", hit.price)
            return Delivery(job, hit, "cache", plans, keep)
        record.cache = "miss" if keep and control.reuse else "bypass"
        if control.only_if_cached:
            raise GatewayError("not_cached", "There is no stored result for this request.")
        flight, first = self.flights.alone(scope, digest), True
        if request.seed_given:
            flight, first = self.flights.board(scope, digest)
        fresh = not (keep and control.reuse)
        while first or (landed := await self.flights.follow(flight, until - monotonic())) is None:
            try:
                landed = await self._led(flight, job, plans, until, keep, fresh, record, claim)
                return Delivery(job, landed, "upstream", plans, keep)
            except Elsewhere:
                first = False
        record.cache = "coalesced"
        self.deliveries.note(job, "coalesced", landed.price)
        return Delivery(job, landed, "coalesced", plans, keep)

    async def _led(self, flight: Flight, *how: Any) -> Result:
        """Lead in a task of its own: a caller that goes away cancels it only before dispatch, and if nobody follows."""
        work = asyncio.create_task(self._lead(flight, *how))
        self.at_work.add(work)
        work.add_done_callback(self._done)
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            if not flight.committed and not self.flights.followed(flight):
                work.cancel()
            raise

    async def chosen(self, caller: Caller, ask: Ask, *, uploads_needed: bool = True) -> Ask:
        """The ask with `auto` replaced by a variant; what is left of the budgets is only read where it matters."""
        if not auto.asked(ask):
            return ask
        options = auto.options(caller, ask, self.catalog, self.guidance, uploads_needed=uploads_needed)
        return auto.pick(options, await self.ledger.left(caller, options.user) if len(options.prices) > 1 else None)

    async def _lead(
        self, flight: Flight, job: Job, plans: Mapping[str, Plan], until: float, keep: bool, fresh: bool,
        record: Record, claim: Claim | None,
    ) -> Result:  # fmt: skip
        """The leader's part: make the input conform, lead the flight, hold the money, buy, store, settle, announce."""
        turn = self.turns.turn(job.caller.tenant.id, job.caller.tenant.weight, job.type.type)
        try:
            call = await self._call(job, plans)
            record.job_id = job_id()
            # What is asked of Redis in one turn of the loop travels together: the flight, the money, the place in line.
            leading = self.flights.join(flight, fresh=fresh)
            if flight.pooled:
                await leading
            if at_once := self.turns.slack and not flight.pooled:
                turn.ask()
            for _ in range(2):
                try:
                    async with Hold(
                        self.ledger, job, record.job_id, flight.beside_money, at_once=at_once, claim=claim
                    ) as hold:
                        await leading
                        return await self._make(flight, hold, turn, job, call, until, keep, record)
                except NotLeading:
                    await leading  # says where it is led, or that it is led here by now
            raise LedgerUnavailable("Another replica took this flight over; nothing was dispatched here.")
        except BaseException as error:
            await asyncio.shield(self.flights.failed(flight, error))
            raise
        finally:
            turn.leave()

    async def _make(
        self, flight: Flight, hold: Hold, turn: Turn, job: Job, call: Call, until: float, keep: bool, record: Record
    ) -> Result:
        """Buy it; the bytes first, then the money, then the word to those who wait."""
        bought, picture = await self._buy(flight, hold, turn, job, call, until, record)
        where = flight.digest if keep else claim_digest(record.job_id or "")
        result = bought_result(job, bought, picture, record.job_id or "", flight.scope, where)
        ttl = job.caller.tenant.cache.ttl_seconds if keep else keys.CLAIM_S
        stored = await self.results.store(where, result, ttl)
        announcing = asyncio.create_task(self.flights.landed(flight, result, where if stored else None))
        await self._settle(hold, job, bought, result)  # leaves first, in the same round trip
        await announcing
        return result

    async def _buy(
        self, flight: Flight, hold: Hold, turn: Turn, job: Job, call: Call, until: float, record: Record
    ) -> Bought:
        """Take a turn, dispatch, call; again while the upstream proves that nothing was billed, within one
        reservation."""
        retries = Retries(self.retry_budget)
        while True:
            asked = monotonic()
            if hold.state == "cleared" and not await turn.soon():
                await self._unsent(flight, hold)
            async with turn.taken(timeout=until - asked):
                record.waited += monotonic() - asked
                self.metrics.wait.observe(monotonic() - asked)
                await self._still_allowed(job)
                await self._dispatch(flight, hold)
                try:
                    return await self._attempt(job, call, until - monotonic(), record)
                except Fault as fault:
                    wait = await self._after(fault, hold, job, retries, until - monotonic(), record)
                    await self._unsent(flight, hold)
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
            if hold.state == "dispatching":
                await hold.refund(reason="unsent")  # acknowledged, but certainly not sent
            raise error

    async def _unsent(self, flight: Flight, hold: Hold) -> None:
        """Back to reserved, because nothing was sent or nothing billed: a dead leader may be replaced again."""
        await asyncio.gather(hold.retract(), self.flights.unsent(flight))
        flight.committed = False

    async def _attempt(self, job: Job, call: Call, timeout: float, record: Record) -> Bought:
        began, status = monotonic(), "lost"
        record.attempts += 1
        self.metrics.in_progress.inc()
        try:
            bought = await self.prodia.attempt(call, timeout=timeout)
            try:
                picture = describe(bought.image)
            except ValueError:
                raise Fault("malformed", status=200) from None
            status = "ok"
            return bought, picture
        except Fault as fault:
            status = fault.outcome
            raise
        finally:
            seconds = monotonic() - began
            record.upstream += seconds
            self.metrics.in_progress.dec()
            self.metrics.attempt(job.variant, job.operation, status, seconds)
            if status not in ("busy", "unavailable"):
                self.turns.report(job.type.type, ok=status == "ok" or status in HEALTHY)

    async def _after(
        self, fault: Fault, hold: Hold, job: Job, retries: Retries, remaining: float, record: Record
    ) -> float:
        """Seconds until the next try; where there is none, the end of the money and the caller's error."""
        proven_unbilled = fault.outcome in RETRY and self.money[fault.outcome] == "refund"
        if proven_unbilled and (wait := retries.next_wait(fault, remaining=remaining)) is not None:
            return wait
        if proven_unbilled:
            await hold.retract()  # nothing was dispatched after all: the image does not count either
        money = self.money[fault.outcome]
        record.charged = CHARGED[money]
        error = public_error(fault, CHARGED[money])
        match money:
            case "refund":
                # What may go better the next time is nothing to repeat to a caller.
                again = proven_unbilled or fault.outcome == "misconfigured"
                await hold.refund(None if again else error, reason=fault.outcome)
            case "charge":
                await hold.settle(job.price, error, reason=fault.outcome)
            case "ambiguous":
                await hold.charge_unknown(error, reason=fault.outcome)
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
        now = Caller(tenant, job.caller.key_id, job.caller.token_digest, job.caller.policy)
        if refusal := policy.still_allowed(job, now):
            raise refusal

    def plans(self, job: Job) -> dict[str, Plan]:
        """What is done to make each upload conform. Raises InvalidImage."""
        request, keep = job.request, job.caller.tenant.keep_metadata
        return {
            rule.name: inspect(request.uploads[rule.name].data, rule, fit=request.fit, keep_metadata=keep)
            for rule in job.type.inputs
        }

    async def where(self, job: Job) -> tuple[str, str]:
        """Cache scope and digest of a job."""
        cache = job.caller.tenant.cache.scope
        scope = cache if cache.startswith("pool:") else f"t:{job.caller.tenant.id}"
        secret, keep = scope_secret(self.pepper, scope), job.caller.tenant.keep_metadata

        def digest() -> str:
            return fingerprint(job, secret=secret, gate_version=GATE_VERSION, keep_metadata=keep)

        return scope, await beside_loop(job, digest)

    async def _call(self, job: Job, plans: Mapping[str, Plan]) -> Call:
        """What goes to the wire: the inputs made to conform, under fixed file names, in the catalogue's order."""
        parts = []
        for rule in job.type.inputs:
            upload = job.request.uploads[rule.name]
            ready = await self.gate.prepare(upload.data, plans[rule.name], rule)
            upload.release()
            parts.append(Part(f"{rule.name}.{ready.format}", ready.content_type, await self.spool.keep(ready.data)))
        return Call(job.type.type, job.config, tuple(parts), job.request.output)  # type: ignore[arg-type]

    def _done(self, work: asyncio.Task[Result]) -> None:
        self.at_work.discard(work)
        if not work.cancelled():
            work.exception()  # retrieved: a leader whose caller left has nobody else to tell


def kept(job: Job, control: Control) -> bool:
    """Whether the picture of a job is kept for reuse."""
    return control.keep and job.caller.tenant.cache.scope != "off"


async def beside_loop(job: Job, digest: Callable[[], str]) -> str:
    """A digest over a job's uploads; large ones are not hashed on the event loop."""
    large = sum(upload.size for upload in job.request.uploads.values()) > OFF_LOOP
    return await asyncio.to_thread(digest) if large else digest()
