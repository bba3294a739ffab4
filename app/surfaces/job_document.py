"""How a job is told of, and the 202 of one that was queued. Used by the surfaces that queue jobs and that show them.

Pure translation of what `app.jobs.status` reads.
"""

from __future__ import annotations

import asyncio
import re
from time import monotonic, time
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from app.domain.job import Caller
from app.domain.pricing import usd
from app.errors import CODES, LedgerUnavailable, Refused
from app.jobs.status import Status, read
from app.named import error_of
from app.store import keys
from app.surfaces.deps import gateway_of, jobs_of, record_of
from app.surfaces.dialect import REPLAYED, json_response, picture_document, problem

JOB_ID = "^job_[0-9A-HJKMNP-TV-Z]{26}$"
LOOK = 0.25  # seconds between looks at a job that somebody waits for
NEARLY = 0.95  # of the typical time: what is not over is not told to be


async def document(request: Request, caller: Caller, found: Status) -> dict[str, Any]:
    """A job as it is told of. Times in Unix seconds."""
    gateway = gateway_of(request)
    body: dict[str, Any] = {
        "id": found.id, "object": "kontext.job", "state": found.state, "created": found.created // 1000,
        "operation": found.operation, "variant": found.variant, "job_type": found.job_type, "seed": found.seed,
        "cost": {"micro_usd": found.paid, "usd": usd(found.paid)}, "charged": found.charged, "image": None,
        "events": f"/v1/jobs/{found.id}/events",
    }  # fmt: skip
    if found.state == "queued" and found.queued:
        place = 0 if found.place is None else found.place + 1
        body |= {"position": place, "expected_wait_seconds": await _expected(request, caller, found, place)}
    if found.state == "running":
        body["progress"] = {"percent": percent(found), "typical_seconds": found.typical}
    for name, moment in (("started", found.started), ("ended", found.ended)):
        if moment:
            body[name] = moment // 1000
    if found.image:
        heads = await gateway.pictures.heads(caller, [found.image])
        if (head := heads.get(found.image)) is not None:
            body["image"] = picture_document(*head) | {"url": gateway.pictures.link(caller, head[0])}
        else:
            body["image_unavailable"] = True  # it was made, and is not stored any more, or may not be shown
    if found.state == "succeeded" and "said" in found.answer:
        result = found.answer["said"]["told"]["document"]
        if body["image"] is not None:
            result["image"] |= {"url": body["image"]["url"]} if "url" in result["image"] else {}
        body["result"] = result
    if found.state in ("failed", "cancelled") and "error" in found.answer:
        body["error"] = problem(error_of(found.answer), record_of(request).request_id)
    elif found.state == "failed":
        body["error"] = {"code": found.code, "title": CODES[found.code].title}
    return body


async def accepted(request: Request, caller: Caller, job_id: str, applied: str, *, repeated: bool) -> Response:
    """202: the job is in the queue. It is there even if the ledger is away by now, and nothing more is known of it."""
    try:
        body = await document(request, caller, await find(request, caller, job_id))
    except LedgerUnavailable:
        body = {"id": job_id, "object": "kontext.job", "state": "queued", "charged": "unknown"}
        body["events"] = f"/v1/jobs/{job_id}/events"
    answer = json_response(body)
    answer.status_code = 202
    answer.headers["Location"] = f"/v1/jobs/{job_id}"
    answer.headers["Preference-Applied"] = applied
    answer.headers["Gateway-Job-Id"] = job_id
    if repeated:
        answer.headers[REPLAYED] = "true"
    return answer


async def until_over(request: Request, caller: Caller, job_id: str, seconds: float) -> Status | None:
    """The end of a job, or None where it does not end within so many seconds, or this replica goes before.

    A ledger that is away is asked again: the job lives.
    """
    until, pause = monotonic() + seconds, 0.05
    while (left := until - monotonic()) > 0 and not request.app.state.health.draining:
        await asyncio.sleep(min(left, pause))
        pause = min(LOOK, pause * 1.2)
        try:
            found = await read(jobs_of(request).queue, caller.tenant.id, caller.holder, job_id)
        except LedgerUnavailable:
            continue
        if found is not None and found.over and found.answer:
            return found
    return None


async def find(request: Request, caller: Caller, job_id: str) -> Status:
    """A job of this caller. Raises Refused: not_found."""
    found = None
    if re.fullmatch(JOB_ID, job_id):
        found = await read(jobs_of(request).queue, caller.tenant.id, caller.holder, job_id)
    if found is None:
        raise Refused("not_found", "There is no such job.")
    return found


def percent(found: Status) -> int:
    """How far a job that runs should be, by the time that it typically takes."""
    gone = time() - found.started / 1000
    return int(100 * min(NEARLY, max(0.0, gone / found.typical))) if found.started and found.typical else 0


async def _expected(request: Request, caller: Caller, found: Status, place: int) -> float:
    """Seconds until it is sent, if every job takes its typical time and nobody else asks for anything."""
    gateway, tenant = gateway_of(request), caller.tenant
    at_once = min(gateway.buyer.turns.total, tenant.limits.concurrency or gateway.buyer.turns.total)
    busy = int(await gateway.ledger.store.command("SCARD", keys.concurrency(tenant.id, "tenant", "all")))
    return round(max(0, place + busy - at_once) / at_once * found.typical, 1)
