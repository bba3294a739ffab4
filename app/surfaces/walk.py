"""What every paid call of a surface does with its ask: walk while watching the client, and say in headers what came.

Called by the surfaces that sell pictures, which own nothing but their wire form. A client that goes away is not waited
for; a call with an `Idempotency-Key` is made once, and its first answer repeated.
"""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response

from app import named
from app.cache.results import Result
from app.domain.job import Ask, Caller
from app.domain.pricing import usd
from app.named import Reply
from app.pipeline import Delivery
from app.surfaces.body import hold_only
from app.surfaces.deps import gateway_of, record_of
from app.surfaces.dialect import REPLAYED, control, idempotency_key

GONE = Response(status_code=499)
T = TypeVar("T")
Tell = Callable[[Delivery], dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Told:
    """A picture on its way out: `said` is what the surface's `tell` said of it, now or in the first answer under its
    name."""

    result: Result
    said: dict[str, Any]
    headers: dict[str, str]


async def walk(request: Request, caller: Caller, ask: Ask, *, route: str, tell: Tell) -> Told | None:
    """The walk of one call, with a name or without; None when the client closed the connection first.

    Args:
        route: what the names of this call are apart from those of others.
        tell: what a caller is told of a picture beside its bytes and headers, JSON-serialisable.

    Raises GatewayError.
    """
    record = record_of(request)
    hold_only(request, ask.uploads.values())
    reply = await unless_gone(request, _reply(request, caller, ask, route, tell))
    if reply is None:
        record.code = "client_gone"
        return None
    headers = {**reply.said["headers"], "Cache-Control": "no-store"}
    if reply.delivery is None:
        headers[REPLAYED] = "true"
    else:
        record.job_id, record.source = reply.result.job_id, reply.delivery.source
        record.cost, record.saved = reply.delivery.cost, reply.delivery.saved
    return Told(reply.result, dict(reply.said["told"]), headers)


async def _reply(request: Request, caller: Caller, ask: Ask, route: str, tell: Tell) -> Reply:
    gateway, record = gateway_of(request), record_of(request)
    asked = control(request.headers.get("cache-control"))

    def said(delivery: Delivery) -> dict[str, Any]:
        return said_of(delivery, tell(delivery))

    name = idempotency_key(request.headers.getlist("idempotency-key"))
    if name is not None:
        return await named.submit(gateway, caller, ask, asked, record, route=route, name=name, tell=said)
    delivery = await gateway.submit(caller, ask, asked, record)
    return Reply(delivery.result, said(delivery), delivery)


def said_of(delivery: Delivery, told: dict[str, Any]) -> dict[str, Any]:
    """What is kept of a picture to be said again: its headers, and what a surface told of it."""
    return {"headers": picture_headers(delivery.result) | delivery_headers(delivery), "told": told}


async def unless_gone(request: Request, walk: Coroutine[Any, Any, T]) -> T | None:
    """What a walk comes to, or None when the client closed the connection first; the walk is then cancelled."""
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


def picture_headers(result: Result) -> dict[str, str]:
    """Headers of a stored picture, whoever it was made for."""
    return {
        "ETag": f'"{result.sha256}"',
        "Repr-Digest": f"sha-256=:{base64.b64encode(bytes.fromhex(result.sha256)).decode()}:",
        "Gateway-Image-Id": result.image_id,
    }


def delivery_headers(delivery: Delivery) -> dict[str, str]:
    """Headers of one picture for one caller: what it is, what it cost, and where it came from."""
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
