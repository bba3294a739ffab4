"""Calls that do not wait: `Prefer: respond-async` and `Prefer: wait=n` on a paid call, and calls that always queue.

Called by the surfaces that have them. The job is queued; a caller that waits is answered like any other if the job ends
in time, and else with the job.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from app.domain.job import Ask, Caller, Job
from app.errors import InvalidRequest, Refused
from app.jobs.hooks import FIELD
from app.jobs.intake import Beside, Put
from app.named import error_of
from app.surfaces.body import hold_only
from app.surfaces.deps import gateway_of, jobs_of, record_of
from app.surfaces.dialect import REPLAYED, control, idempotency_key
from app.surfaces.job_document import accepted, until_over
from app.surfaces.prefer import preference
from app.surfaces.walk import Told


async def take_its_time(request: Request, caller: Caller, ask: Ask) -> Response | Told | None:
    """The answer to a call that prefers not to wait, or not for long; None for one that waits as long as it takes.

    Raises like `Gateway.submit`, and Refused: queue_full; GatewayError: overloaded.
    """
    gateway = gateway_of(request)
    wish = preference(request.headers.getlist("prefer"), most=gateway.deadline)
    asked = control(request.headers.get("cache-control"))
    hook = ask.fields.pop(FIELD, None)  # type: ignore[attr-defined]
    if wish is None or asked.only_if_cached:
        if hook is not None:
            raise InvalidRequest(f"`{FIELD}` needs the header `Prefer: respond-async`.", field=FIELD)
        return None
    put = await enqueue(request, caller, ask, route=ask.operation, hook=hook)
    if put is None:
        return None  # the call that has the name is over: its answer is here already
    over = await until_over(request, caller, put.job_id, wish.wait) if wish.wait else None
    if over is None:
        return await accepted(request, caller, put.job_id, wish.applied, repeated=put.repeated)
    if "error" in over.answer:
        error = error_of(over.answer)
        error.replay_of = over.request if put.repeated else None
        raise error
    try:
        result = await gateway.pictures.by_key(caller, over.image)
    except Refused:
        text = "The job succeeded, and its picture is not stored any more, or may not be shown."
        raise Refused("idempotency_gone", text, charged=over.charged, job=over.id) from None
    said: dict[str, Any] = over.answer["said"]
    headers = said["headers"] | {"Cache-Control": "no-store"} | ({REPLAYED: "true"} if put.repeated else {})
    return Told(result, dict(said["told"]), headers)


async def enqueue(
    request: Request,
    caller: Caller,
    ask: Ask,
    *,
    route: str,
    hook: object = None,
    echo: Callable[[Job], bytes] = lambda _: b"",
) -> Put | None:
    """Queue what is asked; None where the call that has its name has ended.

    Args:
        route: what the names of this call are apart from those of others.
        hook: the URL that is told of the end, as the caller wrote it.
        echo: of the job as it will be sent, what is said of it again.

    Raises like `Gateway.admit` and `Intake.put`.
    """
    gateway, jobs, record = gateway_of(request), jobs_of(request), record_of(request)
    asked = control(request.headers.get("cache-control"))
    if asked.only_if_cached:
        raise InvalidRequest("`only-if-cached` never waits, so it cannot be queued.", field="Cache-Control")
    name = idempotency_key(request.headers.getlist("idempotency-key"))
    hold_only(request, ask.uploads.values())
    admitted = await gateway.admit(caller, ask, record)
    if hook is not None and caller.client is not None:
        raise Refused("forbidden", "A client token may not have a webhook; it takes the key.", field=FIELD)
    url = "" if hook is None else await jobs.hooks.accept(caller.tenant, hook)
    return await jobs.intake.put(admitted, asked, record, route=route, name=name, beside=Beside(url, echo))
