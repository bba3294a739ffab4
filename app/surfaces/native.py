"""The native surface: `POST /v1/generate` and `/v1/edit`, stored pictures, the model list, and a caller's own limits.

Thin: it reads what a caller wrote into an `Ask`, hands it to the pipeline, and writes the delivery as bytes or JSON. It
decides nothing about policy, money or cache.
"""

from __future__ import annotations

import asyncio
import base64
import re
import time
from collections.abc import Coroutine
from dataclasses import asdict
from typing import Annotated, Any

import orjson
import pybase64
from fastapi import APIRouter, Request
from fastapi import Path as PathParameter
from starlette.responses import Response

from app import named
from app.cache.results import Result
from app.domain import policy
from app.domain.advice import advise
from app.domain.job import Ask, Caller
from app.domain.pricing import usd
from app.domain.tenant import Limits
from app.errors import Refused
from app.named import Reply
from app.pipeline import Delivery, Gateway
from app.surfaces import native_schema
from app.surfaces.asks import IMAGE_ID, read_edit, read_generate
from app.surfaces.body import hold_only
from app.surfaces.deps import KeyCaller, by_key, gateway_of, record_of
from app.surfaces.dialect import REPLAYED, accepted, control, idempotency_key, json_response, picture_document

router = APIRouter()
_GONE = Response(status_code=499)


@router.post("/v1/generate", **native_schema.generate())
async def generate(request: Request, caller: KeyCaller) -> Response:
    """Make a picture from a text."""
    gateway = gateway_of(request)
    record_of(request).operation = "generate"
    policy.admit(caller, "generate")
    fields = await read_generate(request)
    return await _serve(request, caller, gateway, Ask("generate", fields, accepted_format=_accepted(request).format))


@router.post("/v1/edit", **native_schema.edit())
async def edit(request: Request, caller: KeyCaller) -> Response:
    """Change a picture as an instruction says."""
    gateway = gateway_of(request)
    record_of(request).operation = "edit"
    policy.admit(caller, "edit")
    fields, uploads, textual = await read_edit(request, caller, gateway)
    ask = Ask("edit", fields, uploads, textual=textual, accepted_format=_accepted(request).format)
    return await _serve(request, caller, gateway, ask)


@router.get("/v1/images/{image_id}", **native_schema.image())
async def image(
    request: Request,
    image_id: Annotated[str, PathParameter(json_schema_extra={"pattern": IMAGE_ID})],
    t: str | None = None,
    k: str | None = None,
    e: str | None = None,
    s: str | None = None,
) -> Response:
    """A stored picture: with the key, or with the signed link that a reply gave."""
    gateway = gateway_of(request)
    if s is not None and "authorization" not in request.headers:
        legal = t and k and e and e.isascii() and e.isdecimal() and re.fullmatch(r"[0-9a-f]{64}", s)
        if not legal or not re.fullmatch(IMAGE_ID, image_id):
            raise Refused("not_found", "There is no such picture.")
        found = await gateway.pictures.by_link(image_id, t or "", k or "", int(e or "0"), s)
    else:
        caller = await by_key(request)
        if not re.fullmatch(IMAGE_ID, image_id):
            raise Refused("not_found", "There is no such picture.")
        found = await gateway.pictures.by_key(caller, image_id)
    headers = _picture_headers(found) | {"Cache-Control": "private, max-age=3600"}
    if f'"{found.sha256}"' in [
        tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")
    ]:
        return Response(status_code=304, headers=headers)
    return Response(found.image, headers=headers, media_type=found.content_type)


@router.get("/v1/models", **native_schema.models())
async def models(request: Request, caller: KeyCaller) -> Response:
    """The catalogue in the OpenAI list shape, with parameters, prices and times."""
    gateway = gateway_of(request)
    data = [
        {
            "id": f"flux-kontext-{job.variant}" if job.type.startswith("inference.flux") else job.variant,
            "object": "model", "created": 0, "owned_by": "prodia",
            "variant": job.variant, "operation": job.operation, "job_type": job.type,
            "price": None if job.price is None else {"micro_usd": job.price, "usd": usd(job.price)},
            "typical_seconds": job.typical_seconds,
            "parameters": {name: parameter.facts() for name, parameter in job.parameters.items()},
            "inputs": [asdict(rule) for rule in job.inputs],
        }
        for job in gateway.catalog.enabled.values()
    ]  # fmt: skip
    return json_response({"object": "list", "data": data})


@router.get("/v1/me", **native_schema.me())
async def me(request: Request, caller: KeyCaller) -> Response:
    """The caller's tenant, what it may use, its limits and what remains of them."""
    gateway = gateway_of(request)
    tenant, key = caller.tenant, caller.policy
    allowed: dict[str, list[str]] = {"generate": [], "edit": []}
    for job in gateway.catalog.enabled.values():
        if policy.usable(caller, job):
            allowed[job.operation].append(job.variant)
    return json_response(
        {
            "object": "kontext.caller", "tenant": tenant.id, "name": tenant.name, "key_id": caller.key_id,
            "variants": allowed,
            "safety": {
                "mode": tenant.safety.mode,
                **{name: asdict(rule) for name, rule in tenant.safety.rules.items()},
                "allow_without_knob": sorted(tenant.safety.allow_without_knob),
            },
            "rates": {"tenant": _rate(tenant.limits), "key": _rate(key.limits), "user": _rate(tenant.per_user)},
            "concurrency": {
                "tenant": tenant.limits.concurrency, "key": key.limits.concurrency, "user": tenant.per_user.concurrency,
            },
            "user_required": not tenant.per_user.empty,
            "limits": await gateway.ledger.usage(caller, None),
            "timezone": tenant.timezone,
            "cache": {"scope": tenant.cache.scope, "ttl_seconds": tenant.cache.ttl_seconds},
        }
    )  # fmt: skip


def _rate(limits: Limits) -> dict[str, int] | None:
    return None if limits.requests is None else asdict(limits.requests)


def _accepted(request: Request) -> Any:
    return accepted(request.headers.get("accept"))


async def _serve(request: Request, caller: Caller, gateway: Gateway, ask: Ask) -> Response:
    """Run the walk while watching the client: one that goes away is not waited for."""
    record, json = record_of(request), _accepted(request).json
    hold_only(request, ask.uploads.values())
    walk = _walk(request, caller, gateway, ask, whole=json)
    reply = await _unless_gone(request, walk)
    if reply is None:
        record.code = "client_gone"
        return _GONE
    result, headers = reply.result, {**reply.said["headers"], "Cache-Control": "no-store"}
    if reply.delivery is None:
        headers[REPLAYED] = "true"
    else:
        record.job_id, record.source = result.job_id, reply.delivery.source
        record.cost, record.saved = reply.delivery.cost, reply.delivery.saved
    if json:
        document = reply.said["document"]
        if ask.fields.get("response_format") == "b64_json":
            document["image"]["b64_json"] = pybase64.b64encode(result.image).decode()
        return Response(orjson.dumps(document), 200, headers, "application/json")
    return Response(result.image, 200, headers, result.content_type)


async def _walk(request: Request, caller: Caller, gateway: Gateway, ask: Ask, *, whole: bool) -> Reply:
    """The walk of a call, with a name or without; without one a document is only made where it is wanted."""
    record, asked = record_of(request), control(request.headers.get("cache-control"))

    def tell(delivery: Delivery) -> dict[str, Any]:
        headers = _picture_headers(delivery.result) | _delivery_headers(delivery)
        return {"headers": headers} | ({"document": _document(delivery, gateway, record.request_id)} if whole else {})

    name = idempotency_key(request.headers.getlist("idempotency-key"))
    if name is not None:
        whole = True  # a repeat may want another form
        return await named.submit(gateway, caller, ask, asked, record, route=ask.operation, name=name, tell=tell)
    delivery = await gateway.submit(caller, ask, asked, record)
    return Reply(delivery.result, tell(delivery), delivery)


async def _unless_gone(request: Request, walk: Coroutine[Any, Any, Reply]) -> Reply | None:
    """The walk's reply, or None when the client closed the connection first; the walk is then cancelled."""
    walking, over = asyncio.current_task(), False

    def leave(_: asyncio.Task[None]) -> None:
        if walking is not None and not over:
            walking.cancel()

    gone = asyncio.create_task(_disconnect(request))
    gone.add_done_callback(leave)
    try:
        return await walk
    except asyncio.CancelledError:
        if walking is None or not gone.done() or walking.uncancel():
            raise
        return None
    finally:
        over = True
        gone.cancel()


async def _disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _picture_headers(result: Result) -> dict[str, str]:
    return {
        "ETag": f'"{result.sha256}"',
        "Repr-Digest": f"sha-256=:{base64.b64encode(bytes.fromhex(result.sha256)).decode()}:",
        "Gateway-Image-Id": result.image_id,
    }


def _delivery_headers(delivery: Delivery) -> dict[str, str]:
    result, safety = delivery.result, delivery.job.safety
    applied = "none" if safety.applied is None else safety.applied  # none: the variant has no such parameter
    decided = {"applied": applied, "ceiling": safety.ceiling, "requested": safety.requested}
    chosen = delivery.job.request.chosen
    told = {"Gateway-Auto": f'{chosen.variant}; because="{chosen.because}"'} if chosen else {}
    return told | {
        "Gateway-Job-Id": result.job_id,
        "Gateway-Seed": str(result.seed),
        "Gateway-Variant": result.variant,
        "Gateway-Source": delivery.source,
        "Gateway-Cost-Usd": usd(delivery.cost),
        "Gateway-Safety": ", ".join(f"{name}={value}" for name, value in decided.items() if value is not None),
        "Cache-Status": _cache_status(delivery),
    }


def _cache_status(delivery: Delivery) -> str:
    """RFC 9211: where the picture came from, and whether it is kept."""
    kept = delivery.job.caller.tenant.cache
    match delivery.source:
        case "cache":
            return f"kontext-gateway;hit;ttl={max(0, delivery.result.created + kept.ttl_seconds - int(time.time()))}"
        case "coalesced":
            return "kontext-gateway;fwd=uri-miss;collapsed"
    return "kontext-gateway;fwd=bypass" if not delivery.kept else "kontext-gateway;fwd=uri-miss;stored"


def _document(delivery: Delivery, gateway: Gateway, request_id: str) -> dict[str, Any]:
    """A JSON reply, but for the picture's own bytes."""
    job, result, safety = delivery.job, delivery.result, delivery.job.safety
    picture = picture_document(result, len(result.image))
    if job.request.response_format == "url":
        picture["url"] = gateway.pictures.link(job.caller, result)
    body: dict[str, Any] = {
        "id": result.job_id, "object": "kontext.result", "created": result.created,
        "operation": job.operation, "variant": job.variant, "job_type": job.type.type, "seed": result.seed,
        "source": delivery.source,
        "safety": asdict(safety),
        "image": picture,
        "cost": {"micro_usd": delivery.cost, "usd": usd(delivery.cost), "saved_micro_usd": delivery.saved},
        "advice": advise(job, gateway.catalog, gateway.guidance),
        "request_id": request_id,
    }  # fmt: skip
    if job.request.chosen:
        body["auto"] = asdict(job.request.chosen)
    inputs = {
        name: {
            "sha256": delivery.digests[name], "width": plan.width, "height": plan.height, "fitted": plan.fitted,
            "actions": list(plan.actions),
        }
        for name, plan in delivery.plans.items()
    }  # fmt: skip
    if len(inputs) == 1:
        body["input"] = next(iter(inputs.values()))
    elif inputs:
        body["inputs"] = inputs
    return body
