"""What a tenant and its key may ask, and what is applied: operations, variants, the safety ceiling, the price.

Pure. Called by the pipeline after validation, and again at dispatch and whenever a stored picture is read, because a
policy may have become stricter in between.
"""

from __future__ import annotations

from dataclasses import replace

from app.domain.catalog import JobType
from app.domain.job import Ask, Caller, Job, Request, SafetyDecision
from app.domain.tenant import Tenant
from app.errors import GatewayError, InvalidRequest, Refused


def apply(caller: Caller, request: Request) -> Job:
    """The job that this caller may buy for this request, its safety tolerance explicit.

    Raises:
        Refused: forbidden, safety_ceiling or price_unknown.
        InvalidRequest: limits per end user need a `user`.
    """
    job_type, tenant = request.job_type, caller.tenant
    allow(caller, job_type.operation, job_type.variant)
    if not tenant.per_user.empty and request.user is None:
        raise InvalidRequest("`user` is required: this tenant has limits per end user.", field="user")
    safety = decide(tenant, request)
    if job_type.price is None:
        raise Refused("price_unknown", f"{job_type.variant} has no price in the catalogue; nothing was sent.")
    config = dict(request.parameters)
    if (knob := job_type.role("safety")) and safety.applied is not None:
        config[knob[0]] = safety.applied
    if knob := job_type.role("seed"):
        config[knob[0]] = request.seed
    return Job(caller=caller, request=request, safety=safety, config=config, price=job_type.price)


def usable(caller: Caller, job_type: JobType) -> bool:
    """Whether a caller may use a job type at all, whatever it asks of it."""
    try:
        allow(caller, job_type.operation, job_type.variant)
    except Refused:
        return False
    safety = caller.tenant.safety
    held = job_type.role("safety") is not None or safety.limit(job_type.operation) is None
    return held or job_type.variant in safety.allow_without_knob


def ceiling_of(tenant: Tenant, job_type: JobType) -> int | None:
    """The highest `safety_tolerance` that a tenant's jobs of a type may have; None for a type without the knob."""
    if (knob := job_type.role("safety")) is None:
        return None
    limit = tenant.safety.limit(job_type.operation, int(knob[1].default or 0))
    return min(limit or 0, int(knob[1].maximum or 0))


def bound(caller: Caller, ask: Ask) -> Ask:
    """The ask in the name of the end user that a client token stands for. Raises InvalidRequest: of another's."""
    client = caller.client
    if client is None or ("user" not in ask.fields and client.user is None):
        return ask
    if ask.fields.get("user", client.user) != client.user:
        raise InvalidRequest("`user` is not the one that this client token was minted for.", field="user")
    return replace(ask, fields={**ask.fields, "user": client.user})


def admit(caller: Caller, operation: str) -> None:
    """Refuse, before anything of the request is read, a suspended tenant and an operation that the key may not use."""
    key = caller.policy
    if caller.tenant.suspended:
        raise Refused("forbidden", "This tenant is suspended.")
    if key.operations is not None and operation not in key.operations:
        raise Refused("forbidden", f"This key may not {operation}.", field="operation", allowed=list(key.operations))


def allow(caller: Caller, operation: str, variant: str) -> None:
    """Refuse a suspended tenant, and an operation or variant that tenant or key may not use."""
    admit(caller, operation)
    tenant, key = caller.tenant, caller.policy
    for allowed in (None if tenant.variants is None else tenant.variants.get(operation, ()), key.variants):
        if allowed is not None and variant not in allowed:
            raise Refused(
                "forbidden", f"The variant {variant} is not allowed here.", field="variant", allowed=list(allowed)
            )


def decide(tenant: Tenant, request: Request) -> SafetyDecision:
    """The safety tolerance that applies to a request under a tenant's policy; lower is stricter.

    Raises:
        Refused: safety_ceiling, in `reject` mode, or for a type without the knob that is not allowed by name.
    """
    job_type = request.job_type
    rule = tenant.safety.rules.get(job_type.operation)
    limit = tenant.safety.limit(job_type.operation)
    knob = job_type.role("safety")
    if knob is None:
        if limit is not None and job_type.variant not in tenant.safety.allow_without_knob:
            raise Refused(
                "safety_ceiling",
                f"{job_type.variant} has no safety_tolerance, so the ceiling of {limit} cannot be held; "
                "the policy does not name it in safety.allow_without_knob.",
                field="variant",
                ceiling=limit,
            )
        return SafetyDecision(None, None, limit, "no_knob")
    lowest, default, ceiling = int(knob[1].minimum or 0), int(knob[1].default or 0), ceiling_of(tenant, job_type) or 0
    if ceiling < lowest:
        text = f"{job_type.variant} takes no `{knob[0]}` below {lowest}, so the ceiling of {ceiling} cannot be held."
        raise Refused("safety_ceiling", text, field="variant", ceiling=ceiling)
    if request.safety_asked is None:
        preferred = rule.default if rule and rule.default is not None else default
        return SafetyDecision(None, max(lowest, min(preferred, ceiling)), ceiling, "defaulted")
    if request.safety_asked <= ceiling:
        return SafetyDecision(request.safety_asked, request.safety_asked, ceiling, "requested")
    if tenant.safety.mode == "reject":
        raise Refused(
            "safety_ceiling",
            f"`{knob[0]}` {request.safety_asked} is above this tenant's ceiling of {ceiling}.",
            field=knob[0],
            requested=request.safety_asked,
            ceiling=ceiling,
        )
    return SafetyDecision(request.safety_asked, ceiling, ceiling, "clamped")


def still_allowed(job: Job, now: Caller) -> GatewayError | None:
    """Why a job that was allowed may no longer be sent under the policy in force now, or None."""
    try:
        allow(now, job.operation, job.variant)
        decided = decide(now.tenant, job.request)
    except GatewayError as refusal:
        return refusal
    if job.safety.applied is not None and decided.ceiling is not None and job.safety.applied > decided.ceiling:
        return Refused("safety_ceiling", "The safety ceiling was lowered meanwhile.", ceiling=decided.ceiling)
    return None


def readable(tenant: Tenant, operation: str, variant: str, applied: int | None, default: int | None) -> bool:
    """Whether a stored picture may still be read under the tenant's ceiling.

    Args:
        applied: the tolerance the picture was made with, None for a type without the knob.
        default: the type's own default, which is the ceiling where the policy sets none.
    """
    if tenant.suspended:
        return False
    if applied is None:
        return tenant.safety.limit(operation) is None or variant in tenant.safety.allow_without_knob
    ceiling = tenant.safety.limit(operation, default)
    return ceiling is None or applied <= ceiling
