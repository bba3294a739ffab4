"""What a caller may know before and after it spends: `POST /v1/quote`, `GET /v1/usage` and `GET /v1/jobs`.

Thin: the pipeline quotes, the quota side reads roll-ups and reservations, and here they are written as JSON or CSV. A
key sees its tenant's whole usage and its own recent jobs; nobody sees another tenant's.
"""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from app.cache.results import Result
from app.domain.job import Caller
from app.domain.pricing import usd
from app.domain.usage import parse_query
from app.domain.windows import local_date
from app.errors import CODES, InvalidRequest
from app.pipeline import Gateway
from app.prodia.faults import code_of
from app.quota.recent import Recent, recent
from app.quota.usage import read
from app.quote import Quote
from app.quote import quote as quoted
from app.store.keys import RECENT
from app.surfaces import native_schema
from app.surfaces.asks import read_quote
from app.surfaces.deps import AnyCaller, KeyCaller, gateway_of, record_of
from app.surfaces.dialect import Dialect, accepted, control, json_response, picture_document, prefers_csv, problem

router = APIRouter(route_class=Dialect)


@router.post("/v1/quote", **native_schema.quote())
async def quote(request: Request, caller: KeyCaller) -> Response:
    """What a generation or edit would cost, what policy makes of it, and whether it would be admitted now."""
    gateway = gateway_of(request)
    ask = await read_quote(request, caller, gateway, accepted(request.headers.get("accept")).format)
    record = record_of(request)
    found = await quoted(gateway, caller, ask, control(request.headers.get("cache-control")), record)
    return json_response(_quote(found, record.request_id))


@router.get("/v1/usage", **native_schema.usage())
async def usage(request: Request, caller: KeyCaller) -> Response:
    """Spend of the caller's tenant, by window and group."""
    tenant, ledger = caller.tenant, gateway_of(request).ledger
    query = parse_query(request.query_params.multi_items(), today=local_date(tenant.timezone, ledger.now()))
    report = await read(ledger.store, tenant.id, tenant.timezone, query)
    if prefers_csv(request.headers.get("accept")):
        text = await asyncio.to_thread(report.csv)
        return Response(text, media_type="text/csv", headers={"Cache-Control": "no-store"})
    return json_response(await asyncio.to_thread(report.document))


@router.get("/v1/jobs", **native_schema.jobs())
async def jobs(request: Request, caller: AnyCaller) -> Response:
    """The recent jobs of the calling key or client token, newest first, with the pictures that are still there."""
    gateway = gateway_of(request)
    found = await recent(gateway.ledger.store, caller.tenant.id, caller.holder, limit=_limit(request))
    heads = await gateway.pictures.heads(caller, [job.image for job in found if job.image])
    data = [_job(job, heads.get(job.image), gateway, caller) for job in found]
    return json_response({"object": "list", "data": data})


def _quote(quote: Quote, request_id: str) -> dict[str, Any]:
    kind = quote.request.job_type
    cost = 0 if quote.cached else kind.price
    body: dict[str, Any] = {
        "object": "kontext.quote", "operation": kind.operation, "variant": kind.variant, "job_type": kind.type,
        "price": _amount(kind.price), "cost": _amount(cost), "typical_seconds": kind.typical_seconds,
        "safety": _safety(quote), "cached": quote.cached, "allowed": quote.refusal is None,
        "limits": quote.limits, "request_id": request_id,
    }  # fmt: skip
    if quote.request.chosen is not None:
        body["auto"] = asdict(quote.request.chosen)
    if quote.refusal is not None:
        body["error"] = problem(quote.refusal, request_id)
    return body


def _safety(quote: Quote) -> dict[str, Any] | None:
    """The decision; of a request that the ceiling refuses, what it asked for; None where policy did not come so far."""
    if quote.job is not None:
        return asdict(quote.job.safety)
    if quote.refusal is not None and quote.refusal.code == "safety_ceiling":
        asked, ceiling = quote.request.safety_asked, quote.refusal.extra.get("ceiling")
        return {"requested": asked, "applied": None, "ceiling": ceiling, "action": "rejected"}
    return None


def _job(job: Recent, head: tuple[Result, int] | None, gateway: Gateway, caller: Caller) -> dict[str, Any]:
    body: dict[str, Any] = {
        "id": job.id, "object": "kontext.job", "state": job.state, "created": job.created,
        "operation": job.operation, "variant": job.variant, "job_type": job.job_type, "seed": job.seed,
        "cost": _amount(job.paid), "charged": job.charged, "image": None,
    }  # fmt: skip
    if head is not None:
        body["image"] = picture_document(*head) | {"url": gateway.pictures.link(caller, head[0])}
    if job.state == "failed":
        code = code_of(job.reason, charged=job.charged)
        body["error"] = {"code": code, "title": CODES[code].title}
    return body


def _amount(micro_usd: int | None) -> dict[str, Any] | None:
    return None if micro_usd is None else {"micro_usd": micro_usd, "usd": usd(micro_usd)}


def _limit(request: Request) -> int:
    given = request.query_params.multi_items()
    if name := next((name for name, _ in given if name != "limit"), None):
        shown = name[:64].encode("ascii", "backslashreplace").decode()
        raise InvalidRequest(f"`{shown}` is not a parameter of this list.", field=shown)
    if not given:
        return RECENT
    text = given[0][1]
    if len(given) > 1 or not (text.isascii() and text.isdecimal() and 1 <= int(text[:9]) <= RECENT):
        text = f"`limit` must be one whole number from 1 to {RECENT}."
        raise InvalidRequest(text, field="limit", minimum=1, maximum=RECENT)
    return int(text)
