"""The walk of a call that has a name (`Idempotency-Key`): made once, and its answer repeated to whoever asks again.

Called by the surfaces in the place of `Gateway.submit`. What is kept is what a surface made of the outcome, so a repeat
is the first answer to the byte; the picture itself lies where every picture does, and is shown only under the policy in
force. When Redis is away, `LedgerUnavailable` is raised and nothing is bought.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from app.cache.results import Result
from app.domain.fingerprint import call_digest, scope_secret
from app.domain.job import Ask, Caller
from app.errors import GatewayError, Refused, UpstreamError
from app.pipeline import Admitted, Control, Delivery, Gateway, beside_loop, kept
from app.quota.names import Claim, Ended, Wanted
from app.store import keys
from app.telemetry.outcome import Outcome as Record

_GONE = "The picture of this name is not stored any more, or may not be shown any more; it was not bought again."
_UNKNOWN = "What became of the first call under this name is unknown; nothing was sent again."


@dataclass(frozen=True, slots=True)
class Reply:
    """What a named call is answered: the picture, and what the surface's `tell` said of it. `delivery` is None where it
    was said before."""

    result: Result
    said: Mapping[str, Any]
    delivery: Delivery | None


async def submit(
    gateway: Gateway,
    caller: Caller,
    ask: Ask,
    control: Control,
    record: Record,
    *,
    route: str,
    name: str,
    tell: Callable[[Delivery], dict[str, Any]],
) -> Reply:
    """As `Gateway.submit`, at most once for a key's name on a route within `keys.IDEMPOTENCY_MS`.

    Args:
        tell: what a caller is told of a picture, without its bytes, as JSON-serialisable members.

    Raises GatewayError; one that is repeated has `replay_of`.
    """
    admitted = await gateway.admit(caller, ask, record)
    job = admitted.job
    secret = scope_secret(gateway.pepper, f"t:{caller.tenant.id}")
    digest = await beside_loop(job, lambda: call_digest(job.request, secret=secret))
    key = keys.idempotency(caller.tenant.id, caller.holder, route, name)
    wanted = Wanted(key, digest, job.request.seed, record.request_id, admitted.until)

    def told(outcome: Result | GatewayError | Delivery) -> dict[str, Any]:
        return answer_of(outcome, reseeded, control, tell)

    while True:
        found = await gateway.names.take(wanted, told, wait=not control.only_if_cached)
        reseeded = admitted.with_seed(found.seed)
        if isinstance(found, Claim):
            return await _first(gateway, found, reseeded, control, record)
        if found.answer is not None:
            return await _again(gateway, caller, found, found.answer, record)
        # Its process died. What it may have stored before is delivered after all; then everyone is told the same.
        picture = await gateway.results.find(*await gateway.where(reseeded.job))
        if picture is None:
            raise _repeated(UpstreamError("upstream_timeout", _UNKNOWN, charged=found.charged), found.request)
        claim = Claim(key, found.seed, told, found.claim, gateway.names.seal)
        await gateway.names.close(key, found.claim, claim.write(picture))


def answer_of(
    outcome: Result | GatewayError | Delivery,
    admitted: Admitted,
    control: Control,
    tell: Callable[[Delivery], dict[str, Any]],
) -> dict[str, Any]:
    """What is kept of a call's outcome, to be told again: `error`, or `image` and what the surface said of it."""
    if isinstance(outcome, GatewayError):
        return written(outcome)
    if isinstance(outcome, Result):
        outcome = Delivery(admitted.job, outcome, "upstream", admitted.plans, kept(admitted.job, control))
    return {"image": outcome.result.image_id, "said": tell(outcome)}


async def _first(gateway: Gateway, claim: Claim, admitted: Admitted, control: Control, record: Record) -> Reply:
    """Make the call. What ended before anything was sent leaves the name free, unless nobody knows what it cost."""
    try:
        delivery = await gateway.obtain(admitted, control, record, claim)
    except BaseException as error:
        unknown = isinstance(error, GatewayError) and error.charged == "unknown"
        answer = claim.write(error) if unknown else b""
        await asyncio.shield(gateway.names.close(claim.key, claim.id, answer))
        raise
    if claim.answer is None:  # from the cache, or from a job that somebody else led
        await asyncio.shield(gateway.names.close(claim.key, claim.id, claim.write(delivery)))
    assert claim.answer is not None  # noqa: S101
    return Reply(delivery.result, claim.answer["said"], delivery)


async def _again(gateway: Gateway, caller: Caller, ended: Ended, answer: dict[str, Any], record: Record) -> Reply:
    record.cache = "replay"
    if "error" in answer:
        raise _repeated(error_of(answer), ended.request)
    try:
        result = await gateway.pictures.by_key(caller, answer["image"])
    except Refused:
        raise Refused("idempotency_gone", _GONE, charged=ended.charged, field="Idempotency-Key") from None
    record.job_id = result.job_id
    return Reply(result, answer["said"], None)


def _repeated(error: GatewayError, request: str) -> GatewayError:
    error.replay_of = request
    return error


def written(error: GatewayError) -> dict[str, Any]:
    """An error as it is kept."""
    members = ("code", "detail", "field", "retry_after", "charged", "status", "extra")
    return {"error": {name: getattr(error, name) for name in members}}


def error_of(answer: Mapping[str, Any]) -> GatewayError:
    """The error in a kept answer."""
    kept = dict(answer["error"])
    return GatewayError(kept.pop("code"), kept.pop("detail"), **kept.pop("extra"), **kept)
