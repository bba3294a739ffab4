"""Single jobs: `GET /v1/jobs/{id}`, its events, and `DELETE` for one that waits.

Thin: `app.jobs` queues, tells and cancels. A caller sees its own jobs; others are not found.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from time import monotonic
from typing import Annotated

import orjson
from fastapi import APIRouter, Request
from fastapi import Path as PathParameter
from starlette.responses import Response, StreamingResponse

from app.domain.job import Caller
from app.errors import GatewayError, LedgerUnavailable, Refused
from app.jobs.status import Status
from app.surfaces import native_schema
from app.surfaces.deps import AnyCaller, jobs_of, still_welcome
from app.surfaces.dialect import json_response
from app.surfaces.job_document import JOB_ID, LOOK, document, find, percent

router = APIRouter()
JobId = Annotated[str, PathParameter(json_schema_extra={"pattern": JOB_ID})]
BEAT = 15.0  # seconds without news after which a comment says that the connection lives
LOOK_DIRECT = (
    1.0  # seconds between looks at a job that was not queued: it is found among all that its key has lately had
)
STREAMS = 32  # of a key or client token at a time in a process


@router.get("/v1/jobs/{job_id}", **native_schema.job())
async def job(request: Request, job_id: JobId, caller: AnyCaller) -> Response:
    """What became of a job."""
    return json_response(await document(request, caller, await find(request, caller, job_id)))


@router.delete("/v1/jobs/{job_id}", **native_schema.cancel())
async def cancel(request: Request, job_id: JobId, caller: AnyCaller) -> Response:
    """Cancel a job that was not sent; its money is given back."""
    jobs, found = jobs_of(request), await find(request, caller, job_id)
    queued = await jobs.queue.find(caller.tenant.id, job_id) if found.queued else None
    state = await jobs.runner.cancel(queued) if queued is not None and not found.over else found.state
    if state != "cancelled" or not found.queued:
        charged = "no" if found.charged == "no" and found.over else "unknown" if not found.over else found.charged
        raise Refused("not_cancellable", f"This job is {state}.", charged=charged, state=state)
    return json_response(await document(request, caller, await find(request, caller, job_id)))


@router.get("/v1/jobs/{job_id}/events", **native_schema.events())
async def events(request: Request, job_id: JobId, caller: AnyCaller) -> Response:
    """A job's changes as server-sent events, until it has ended."""
    found, seen = await find(request, caller, job_id), request.headers.get("last-event-id", "")
    if found.over and seen == found.state:
        return Response(status_code=204)  # tells a browser's EventSource not to come again
    if jobs_of(request).streams[caller.tenant.id, caller.holder] >= STREAMS:
        text = f"This caller follows {STREAMS} jobs here already; end a stream, or ask for the job itself."
        raise Refused("concurrency_limited", text, retry_after=10, limit=STREAMS)
    stream = _events(request, caller, found, seen)
    return StreamingResponse(stream, media_type="text/event-stream", headers={"Cache-Control": "no-store"})


async def _events(request: Request, caller: Caller, found: Status, seen: str) -> AsyncIterator[bytes]:
    streams, holder = jobs_of(request).streams, (caller.tenant.id, caller.holder)
    streams[holder] += 1
    try:
        async for event in _told(request, caller, found, seen):
            yield event
    finally:
        streams[holder] -= 1
        if not streams[holder]:
            del streams[holder]


async def _told(request: Request, caller: Caller, found: Status, seen: str) -> AsyncIterator[bytes]:
    """`status` at every change of state or place, `progress` while it runs; a comment now and then.

    Ends with the job, and before that for a caller who would not be let in any more.
    """
    told = (found.state, found.place) if seen == found.state else None
    done, spoke, asked, health = -1, monotonic(), monotonic(), request.app.state.health
    while True:
        try:
            changed = (found.state, found.place) != told
            if changed or monotonic() - asked >= BEAT:
                if not await still_welcome(request):
                    return
                asked = monotonic()
            if changed:
                body = orjson.dumps(await document(request, caller, found))
                yield b"event: status\nid: %s\ndata: %s\n\n" % (found.state.encode(), body)
                told, spoke = (found.state, found.place), monotonic()
            if found.over or health.draining:
                return  # from a replica that goes, a client comes back to another
            if found.state == "running" and (now := percent(found)) != done:
                done, spoke = now, monotonic()
                yield b'event: progress\ndata: {"percent": %d}\n\n' % done
            if monotonic() - spoke >= BEAT:
                spoke = monotonic()
                yield b": still here\n\n"
            await asyncio.sleep(LOOK if found.queued else LOOK_DIRECT)
            found = await find(request, caller, found.id)
        except LedgerUnavailable:
            if health.draining:
                return
            await asyncio.sleep(LOOK)
        except GatewayError:
            return
