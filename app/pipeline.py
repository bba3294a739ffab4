"""THE walk of one request, on one page.

Every surface calls `Gateway.authenticate` and then `Gateway.submit`; whatever must hold for all of them holds here.
Policy is pure and comes first; then the cache is asked, then the flight is joined, and only its leader buys, which is
told in `app.purchase`. The work of a leader is a task of its own: a caller that goes away cancels it only before
dispatch.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from time import monotonic, perf_counter
from typing import Literal

from app.cache.flight import Elsewhere, Flights
from app.cache.results import Result, Results
from app.domain import auto, policy
from app.domain.catalog import Catalog
from app.domain.fingerprint import fingerprint, scope_secret
from app.domain.guidance import Guidance
from app.domain.job import Ask, Caller, Job
from app.domain.validate import validate
from app.errors import GatewayError, Refused
from app.images.gate import GATE_VERSION, Plan, inspect
from app.pictures import Pictures
from app.prodia.wire import Part
from app.purchase import Buyer, Purchase
from app.quota.deliveries import Deliveries
from app.quota.ledger import Ledger
from app.quota.names import Claim, Names
from app.quota.party import Guest
from app.quota.seat import Seat
from app.telemetry.metrics import Metrics
from app.telemetry.outcome import Outcome as Record
from app.tenants import Keyring, Tenants

OFF_LOOP = 1024 * 1024  # bytes from which hashing leaves the event loop: below, a thread's wake-up costs more than it


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

    def with_seed(self, seed: int) -> Admitted:
        """The same call with another seed."""
        job = self.job
        if seed == job.request.seed:
            return self
        return replace(self, job=policy.apply(job.caller, replace(job.request, seed=seed)))


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
    buyer: Buyer
    metrics: Metrics
    pepper: bytes
    pictures: Pictures
    deliveries: Deliveries
    names: Names
    deadline: float
    client_token_ttl: int
    client_token_max_ttl: int
    at_work: set[asyncio.Task[Result]]

    async def authenticate(self, token: str, record: Record) -> Caller:
        """Who this is, with one request taken from the rates of tenant and key. Raises Refused, LedgerUnavailable.

        The record names tenant and key only where the key was found valid, which is before the rates are asked.
        """
        bearer = await self.keyring.resolve(token)
        tenant_id, key_id = bearer.tenant, bearer.key_id
        tenant = (await self.tenants.refresh()).tenants.get(tenant_id)
        if tenant is None:
            raise Refused("forbidden", "This key's tenant is not configured here.")
        try:
            caller, record.rates = await self.ledger.admit(tenant, key_id, bearer.digest)
        except Refused as refused:
            if refused.code == "rate_limited":
                record.tenant, record.key_id, record.rates = tenant_id, key_id, refused.rates  # type: ignore[attr-defined]
            raise
        record.tenant, record.key_id = tenant_id, key_id
        if tenant.suspended:
            raise Refused("forbidden", "This tenant is suspended.")
        return caller if bearer.client is None else caller.narrowed(bearer.client)

    async def submit(self, caller: Caller, ask: Ask, control: Control, record: Record) -> Delivery:
        """From what a caller wrote to a finished picture. Raises GatewayError; nothing is charged unless it says so."""
        return await self.obtain(await self.admit(caller, ask, record), control, record)

    async def admit(self, caller: Caller, ask: Ask, record: Record, *, pictures: int = 1) -> Admitted:
        """What is decided before cache, money and others count: the request is legal and allowed, `pictures` of it.
        Raises GatewayError."""
        until = monotonic() + self.deadline - (perf_counter() - record.began)
        request = validate(await self.chosen(caller, ask, pictures=pictures), self.catalog)
        record.operation, record.variant = request.job_type.operation, request.job_type.variant
        job = policy.apply(caller, request)
        record.safety_action = job.safety.action
        plans = self.plans(job)
        if request.user is not None:
            record.rates += await self.ledger.admit_user(caller, request.user)
        return Admitted(job, plans, until)

    async def obtain(
        self,
        admitted: Admitted,
        control: Control,
        record: Record,
        claim: Claim | None = None,
        guest: Guest[tuple[Part, ...]] | None = None,
        seat: Seat | None = None,
    ) -> Delivery:
        """The picture of an admitted request: from the cache, from a job that somebody else leads, or bought.

        Args:
            guest: its place among the pictures of the same call.
            seat: of a queued job, whose money is held already.
        """
        job, plans, until = admitted.job, admitted.plans, admitted.until
        request, keep = job.request, kept(job, control)
        scope, digest = await self.where(job)
        hit = None
        if keep and control.reuse and request.seed_given:
            hit = await self.results.find_again(scope, digest, job.caller.tenant.cache.ttl_seconds)
        if hit is not None:
            record.cache = "hit"
            await self._had_for_nothing(job, hit, "cache")
            return Delivery(job, hit, "cache", plans, keep)
        record.cache = "miss" if keep and control.reuse else "bypass"
        if control.only_if_cached:
            raise GatewayError("not_cached", "There is no stored result for this request.")
        flight, first = self.flights.alone(scope, digest), True
        if request.seed_given:
            flight, first = self.flights.board(scope, digest)
        fresh = not (keep and control.reuse)
        if guest is not None and not first:
            guest.needs_nothing()
        call = None
        while first or (landed := await self.flights.follow(flight, until - monotonic())) is None:
            purchase = Purchase(flight, job, plans, until, keep, fresh, record, claim, guest, seat, call=call)
            try:
                return Delivery(job, await self._led(purchase), "upstream", plans, keep)
            except Elsewhere:
                first, call = False, purchase.call  # the uploads were let go of
                if guest is not None:
                    guest.needs_nothing()
        record.cache = "coalesced"
        await self._had_for_nothing(job, landed, "coalesced")
        return Delivery(job, landed, "coalesced", plans, keep)

    async def _had_for_nothing(self, job: Job, result: Result, source: Literal["cache", "coalesced"]) -> None:
        """Count it; and where another tenant of a pool may have made it, note for this one how it came to be."""
        self.deliveries.note(job, source, result.price)
        if result.scope.startswith("pool:"):
            await self.buyer.lineage.note(job, result, made=False)

    async def _led(self, purchase: Purchase) -> Result:
        """Lead in a task of its own: a caller that goes away cancels it only before dispatch, and if nobody follows."""
        work = asyncio.create_task(self.buyer.lead(purchase))
        self.at_work.add(work)
        work.add_done_callback(self._done)
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            if not purchase.flight.committed and not self.flights.followed(purchase.flight):
                work.cancel()
            raise
        finally:
            del work  # its error's traceback refers to this frame: the cycle would keep an answer's bytes

    async def chosen(self, caller: Caller, ask: Ask, *, uploads_needed: bool = True, pictures: int = 1) -> Ask:
        """The ask as its caller may make it, with `auto` replaced by a variant; what is left of the budgets is only
        read where it matters."""
        ask = policy.bound(caller, ask)
        if not auto.asked(ask):
            return ask
        options = auto.options(caller, ask, self.catalog, self.guidance, uploads_needed=uploads_needed)
        left = await self.ledger.left(caller, options.user) if len(options.prices) > 1 else None
        return auto.pick(options, None if left is None else left // pictures)

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
