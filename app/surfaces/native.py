"""The native surface: `POST /v1/generate` and `/v1/edit`, stored pictures, the model list, and a caller's own limits.

Thin: it reads what a caller wrote into an `Ask`, hands it to the pipeline, and writes the delivery as bytes or JSON. It
decides nothing about policy, money or cache.
"""

from __future__ import annotations

import re
from dataclasses import asdict
from typing import Annotated, Any

import orjson
import pybase64
from fastapi import APIRouter, Request
from fastapi import Path as PathParameter
from starlette.responses import Response

from app.domain import policy
from app.domain.job import Ask, Caller
from app.domain.pricing import usd
from app.domain.tenant import Limits
from app.errors import Refused
from app.pipeline import Delivery, Gateway
from app.surfaces import native_schema
from app.surfaces.asks import IMAGE_ID, read_edit, read_generate
from app.surfaces.deps import AnyCaller, KeyCaller, by_any, gateway_of, record_of
from app.surfaces.dialect import Dialect, accepted, json_response
from app.surfaces.documents import result_document
from app.surfaces.queued import take_its_time
from app.surfaces.walk import GONE, picture_headers, said_of, walk

router = APIRouter(route_class=Dialect)


@router.post("/v1/generate", **native_schema.generate())
async def generate(request: Request, caller: AnyCaller) -> Response:
    """Make a picture from a text."""
    gateway = gateway_of(request)
    record_of(request).operation = "generate"
    policy.admit(caller, "generate")
    fields = await read_generate(request)
    return await _serve(request, caller, gateway, Ask("generate", fields, accepted_format=_accepted(request).format))


@router.post("/v1/edit", **native_schema.edit())
async def edit(request: Request, caller: AnyCaller) -> Response:
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
    """A stored picture: with the key or a client token, or with the signed link that a reply gave."""
    gateway = gateway_of(request)
    if s is not None and "authorization" not in request.headers:
        legal = t and k and e and re.fullmatch(r"[0-9]{1,12}", e, re.ASCII) and re.fullmatch(r"[0-9a-f]{64}", s)
        if not legal or not re.fullmatch(IMAGE_ID, image_id):
            raise Refused("not_found", "There is no such picture.")
        found = await gateway.pictures.by_link(image_id, t or "", k or "", int(e or "0"), s)
    else:
        caller = await by_any(request)
        if not re.fullmatch(IMAGE_ID, image_id):
            raise Refused("not_found", "There is no such picture.")
        found = await gateway.pictures.by_key(caller, image_id)
    headers = picture_headers(found) | {"Cache-Control": "private, max-age=3600"}
    if f'"{found.sha256}"' in [
        tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")
    ]:
        return Response(status_code=304, headers=headers)
    return Response(found.image, headers=headers, media_type=found.content_type)


@router.get("/v1/models", **native_schema.models())
async def models(request: Request, caller: AnyCaller) -> Response:
    """The catalogue in the OpenAI list shape, with parameters, prices and times."""
    gateway = gateway_of(request)
    data = [
        {
            "id": job.model,
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
    """Walk, and write what came; a document is only made where it is wanted, now or by a repeat under the same name. A
    job that may take its time goes into the queue."""
    record, json = record_of(request), _accepted(request).json
    whole = json or "idempotency-key" in request.headers

    def tell(delivery: Delivery) -> dict[str, Any]:
        return {"document": result_document(delivery, gateway, record.request_id)} if whole else {}

    told = await take_its_time(request, caller, ask) or await walk(request, caller, ask, route=ask.operation, tell=tell)
    if told is None:
        return GONE
    if isinstance(told, Response):
        return told
    if json:
        document = told.said["document"]
        if ask.fields.get("response_format") == "b64_json":
            document["image"]["b64_json"] = pybase64.b64encode(told.result.image).decode()
        return Response(orjson.dumps(document), 200, told.headers, "application/json")
    return Response(told.result.image, 200, told.headers, told.result.content_type)


def said(gateway: Gateway, delivery: Delivery, request_id: str) -> dict[str, Any]:
    """All that is said of a picture but its bytes, where its caller does not wait and may want any form of it."""
    return said_of(delivery, {"document": result_document(delivery, gateway, request_id)})
