"""What a request would come to, without making it: the walk's own validation, policy, gate and digest, and the caps.

Called by the reports surface. Spends nothing but requests of the rate: nothing is held, sent or stored. When Redis is
away, `LedgerUnavailable` is raised.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from app.domain import policy
from app.domain.job import Ask, Caller, Job, Request
from app.domain.validate import validate
from app.errors import GatewayError, Refused
from app.pipeline import Control, Gateway
from app.quota.room import room
from app.telemetry.outcome import Outcome as Record


@dataclass(frozen=True, slots=True)
class Quote:
    """What a request would come to. `job` is None where policy refuses it; `refusal` is what a call would be told now.

    `cached` is None where it cannot be known: without a seed, without its inputs, or without a job.
    """

    request: Request
    job: Job | None
    refusal: GatewayError | None
    cached: bool | None
    limits: list[dict[str, Any]]


async def quote(gateway: Gateway, caller: Caller, ask: Ask, control: Control, record: Record) -> Quote:
    """What `Gateway.submit` would say to an ask, whose inputs may be missing.

    Raises GatewayError: what is wrong with the request itself, the end user's rate, or that policy leaves `auto` no
    variant; any other refusal by policy or quota is in the quote.
    """
    chosen = await gateway.chosen(caller, ask, uploads_needed=False)
    request = validate(chosen, gateway.catalog, uploads_needed=False)
    job: Job | None = None
    refusal: GatewayError | None = None
    cached: bool | None = None
    try:
        job = policy.apply(caller, request)
    except Refused as refused:
        refusal = refused
    if job is not None and request.uploads.keys() >= {rule.name for rule in job.type.inputs}:
        gateway.plans(job)
        if request.seed_given:
            scope, digest = await gateway.where(job)
            reuse = control.keep and control.reuse and caller.tenant.cache.scope != "off"
            cached = reuse and await gateway.results.find(scope, digest) is not None
    if job is not None and request.user is not None:
        record.rates += await gateway.ledger.admit_user(caller, request.user)
    limits, full = await room(gateway.ledger, caller, request.user, request.job_type)
    if not cached and refusal is None:
        uncached = GatewayError("not_cached", "There is no stored result for this request.")
        refusal = uncached if control.only_if_cached else full
    return Quote(request, job, refusal, cached, limits)
