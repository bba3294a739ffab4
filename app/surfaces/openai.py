"""The OpenAI surface: `POST /v1/images/generations` and `/v1/images/edits`, and one model by its name.

Thin: `openai_fields` reads a body into an `Ask`, the pipeline or, for several pictures, the series makes them, and here
they are written in OpenAI's shape. The list of models is the native one, which has that shape. Errors are OpenAI's too.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import orjson
import pybase64
from fastapi import APIRouter, Request
from starlette.exceptions import HTTPException
from starlette.responses import Response

from app import series
from app.cache.results import Result
from app.domain import policy
from app.domain.job import Caller
from app.domain.pricing import usd
from app.errors import OPENAI, GatewayError, InvalidRequest, Refused
from app.pipeline import Delivery
from app.surfaces import openai_schema
from app.surfaces.body import hold_only
from app.surfaces.deps import AnyCaller, gateway_of, record_of
from app.surfaces.dialect import FORMATS, Dialect, control, json_response, problem
from app.surfaces.openai_fields import Order, read_edit, read_generation
from app.surfaces.walk import GONE, delivery_headers, picture_headers, unless_gone, walk

DEAF = re.compile(r"\bai-sdk[-/]")  # User-Agent of clients that repeat by the status alone, deaf to `x-should-retry`
UNREPEATED = {429: 403}  # what these are answered instead where a repeat is useless or may cost again; else 424
TYPES = {402: "insufficient_quota", 429: "requests"}  # by our status; else by its class
ADDED = {
    "content_moderated": " The request was rejected as a result of the safety system."
}  # LiteLLM goes by the words
PER_PICTURE = ("Gateway-Job-Id", "Gateway-Image-Id", "Gateway-Seed", "Gateway-Source")
PER_CALL = ("Gateway-Variant", "Gateway-Safety", "Gateway-Auto")


class OpenAI(Dialect):
    """A route of this surface."""

    surface = "openai"

    @staticmethod
    def refuse(request: Request, error: GatewayError) -> Response:
        """An error in OpenAI's shape; ours, with limits and what was charged, is its member `gateway`."""
        status, code = OPENAI.get(error.code, (error.status, error.code))
        if not error.repeatable and (status in (409, 429) or status >= 500):
            status = UNREPEATED.get(status, 424) if DEAF.search(request.headers.get("user-agent", "")) else status
        headers = {"x-should-retry": str(error.repeatable).lower()}
        if error.repeatable and error.retry_after is not None:
            headers["Retry-After"] = str(error.retry_after)
        if status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        ours = problem(error, error.replay_of or record_of(request).request_id)
        spelled: dict[str, str] = request.scope["state"].get("spelled", {})
        param = spelled.get(error.field or "", error.field)
        body = {
            "message": error.detail + ADDED.get(error.code, ""),
            "type": TYPES.get(error.status, "server_error" if error.status >= 500 else "invalid_request_error"),
            "param": param,
            "code": code,
            "gateway": {
                name: value for name, value in ours.items() if name not in ("type", "title", "status", "detail")
            },
        }
        return Response(orjson.dumps({"error": body}, default=str), status, headers, media_type="application/json")


router = APIRouter(route_class=OpenAI)


@router.post("/v1/images/generations", **openai_schema.generations())
async def generations(request: Request, caller: AnyCaller) -> Response:
    """Make pictures from a text."""
    record_of(request).operation = "generate"
    policy.admit(caller, "generate")
    return await _serve(request, caller, await read_generation(request, gateway_of(request)))


@router.post("/v1/images/edits", **openai_schema.edits())
async def edits(request: Request, caller: AnyCaller) -> Response:
    """Change a picture as an instruction says."""
    record_of(request).operation = "edit"
    policy.admit(caller, "edit")
    return await _serve(request, caller, await read_edit(request, caller, gateway_of(request)))


@router.api_route("/v1/images/generations", methods=["GET", "DELETE"], include_in_schema=False)
@router.api_route("/v1/images/edits", methods=["GET", "DELETE"], include_in_schema=False)
async def not_a_picture(request: Request, caller: AnyCaller) -> Response:
    """These look like the paths of pictures, and are none."""
    raise HTTPException(405, headers={"Allow": "POST"})


@router.get("/v1/models/{model}", **openai_schema.model())
async def model(request: Request, caller: AnyCaller, model: str) -> Response:
    """One model of the list, with the operations that it has."""
    found = [job for job in gateway_of(request).catalog.enabled.values() if job.model == model]
    if not found:
        raise Refused("not_found", "There is no such model.", field="model")
    own = {"id": model, "object": "model", "created": 0, "owned_by": "prodia"}
    return json_response(own | {"variant": found[0].variant, "operations": [job.operation for job in found]})


async def _serve(request: Request, caller: Caller, order: Order) -> Response:
    request.scope["state"]["spelled"] = order.spelled
    if order.n > 1:
        return await _several(request, caller, order)
    route = f"openai/{order.ask.operation}"
    gateway = gateway_of(request)

    def tell(delivery: Delivery) -> dict[str, Any]:
        return {"created": delivery.result.created, "url": gateway.pictures.link(caller, delivery.result)}

    told = await walk(request, caller, order.ask, route=route, tell=tell)
    if told is None:
        return GONE
    return _written(request, order, [(told.result, told.said["url"])], told.headers)


async def _several(request: Request, caller: Caller, order: Order) -> Response:
    if "idempotency-key" in request.headers:
        text = "`Idempotency-Key` goes with one picture: send `n` = 1, or a `seed`, by which a repeat finds them."
        raise InvalidRequest(text, field="Idempotency-Key")
    gateway, record = gateway_of(request), record_of(request)
    hold_only(request, order.ask.uploads.values())
    asked = control(request.headers.get("cache-control"))
    made = await unless_gone(request, series.submit(gateway, caller, order.ask, order.n, asked, record))
    if made is None:
        record.code = "client_gone"
        return GONE
    each = [picture_headers(one.result) | delivery_headers(one) for one in made.deliveries]
    headers = {name: ", ".join(one[name] for one in each) for name in PER_PICTURE}
    headers |= {name: each[0][name] for name in PER_CALL if name in each[0]}
    headers |= {"Gateway-Cost-Usd": usd(sum(one.cost for one in made.deliveries)), "Cache-Control": "no-store"}
    if made.failures:
        headers["Gateway-Missing"] = ", ".join(error.code for error in made.failures)
    pictures = [(one.result, gateway.pictures.link(caller, one.result)) for one in made.deliveries]
    return _written(request, order, pictures, headers)


def _written(
    request: Request, order: Order, pictures: Sequence[tuple[Result, str]], headers: dict[str, str]
) -> Response:
    """Pictures as bytes in base64, or as links that a client can follow without knowing where it is."""
    first = pictures[0][0]
    if order.reply == "url":
        base = request.app.state.url or f"{request.url.scheme}://{request.headers['host']}"
        data = [{"url": base + link} for _, link in pictures]
    else:
        data = [{"b64_json": pybase64.b64encode(result.image).decode()} for result, _ in pictures]
    body = {"created": first.created, "data": data, "output_format": FORMATS[first.content_type]}
    return Response(orjson.dumps(body), 200, headers, "application/json")
