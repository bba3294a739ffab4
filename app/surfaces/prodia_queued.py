"""How a queued job is told of in Prodia's wire form: its document, its state and its outputs.

Used by the Prodia surface alone. Pure translation of what `app.jobs.status` reads; a caller sees its own jobs, and
others are not found.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response

from app.cache.results import Result
from app.domain.ids import as_uuid, job_of
from app.domain.job import Caller
from app.errors import GatewayError, LedgerUnavailable, Refused
from app.jobs.intake import Put
from app.jobs.status import Status, plain_error
from app.named import error_of
from app.store.keys import JOB_MS
from app.surfaces import prodia_wire as wire
from app.surfaces.deps import gateway_of
from app.surfaces.dialect import REPLAYED
from app.surfaces.job_document import document as native
from app.surfaces.job_document import find as find_native

NO_STORE = {"Cache-Control": "no-store"}


def pack(config: Mapping[str, Any], *, priced: bool) -> bytes:
    """What is kept of a job to be said again: its config as it is sent, and whether its price was asked for. It is kept
    for a day, also of a job that cost nothing, so it is made small."""
    return zlib.compress(wire.to_json({"config": config, "priced": priced}))


async def accepted(request: Request, caller: Caller, put: Put, kind: str) -> Response:
    """201: the job is in the queue. It is there even if the ledger is away by now, and nothing more is known of it."""
    try:
        told = await document(request, caller, await find(request, caller, as_uuid(put.job_id)), priced=False)
    except LedgerUnavailable:
        told = wire.head(kind, put.job_id, datetime.now(UTC)) | {"state": wire.state("processing")}
        told["gateway"] = {"id": put.job_id, "object": "kontext.job", "state": "queued", "charged": "unknown"}
    headers = NO_STORE | {
        "Location": f"/v2/job/async/{told['id']}/job.json",
        "Gateway-Job-Id": put.job_id,
    }
    headers |= {REPLAYED: "true"} if put.repeated else {}
    return Response(wire.to_json(told), 201, headers, "application/json")


async def find(request: Request, caller: Caller, name: str) -> Status:
    """A queued job of this caller by its UUID. Raises Refused: not_found."""
    found = await find_native(request, caller, job_of(name))
    if not found.queued:
        raise Refused("not_found", "There is no such job.")
    return found


async def document(request: Request, caller: Caller, found: Status, *, priced: bool) -> dict[str, Any]:
    """The job document as it is now. Its time is up when it is not told of any more, or not before that."""
    kept = orjson.loads(zlib.decompress(found.echo)) if found.echo else {}
    config = {"config": kept["config"]} if "config" in kept else {}  # unless the tenant's content was deleted
    created, updated = found.created, max(found.created, found.started, found.ended)
    stamps = (datetime.fromtimestamp(at / 1000, UTC) for at in (created, updated, (found.ended or created) + JOB_MS))
    told = wire.head(found.job_type, found.id, *stamps)
    if (current := current_of(found)) == "failed":
        told |= wire.failed(kept.get("config"), wire.words(_error(found), {}, None))
    else:
        told |= {"state": wire.state(current)} | config
    if found.started and found.ended:
        told["metrics"] = {"elapsed": (found.ended - found.started) / 1000}
    if current == "processed" and (priced or kept.get("priced")):
        told["price"] = wire.price(found.job_type, found.paid)
    return told | {"gateway": await native(request, caller, found)}


def current_of(found: Status) -> str:
    """`job.state.current`: processing, processed or failed."""
    return wire.STATES.get(found.state, "failed")


async def outputs(request: Request, caller: Caller, found: Status) -> list[str]:
    """File names of the pictures that there are. Raises Refused: not_found, where it is not stored any more."""
    if current_of(found) != "processed":
        return []
    head = (await gateway_of(request).pictures.heads(caller, [found.image])).get(found.image)
    if head is None:
        raise _gone()
    return [wire.filename(head[0].content_type)]


async def output(request: Request, caller: Caller, found: Status, filename: str) -> Response:
    """The picture under its file name. Raises Refused: not_found."""
    if filename not in await outputs(request, caller, found):
        raise _gone()
    picture: Result = await gateway_of(request).pictures.by_key(caller, found.image)
    headers: dict[str, str] = found.answer["said"]["headers"]
    return Response(picture.image, 200, headers | NO_STORE, picture.content_type)


def _error(found: Status) -> GatewayError:
    if "error" in found.answer:
        return error_of(found.answer)
    return plain_error(found.code or "job_cancelled", found.charged)


def _gone() -> Refused:
    return Refused("not_found", "There is no such output.")
