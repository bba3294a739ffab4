"""Who may call a route, as types: a route declares a role in its signature, and a test fails for one that declares
none.

`KeyCaller` authenticates by API key before the body is read. Every surface uses these and none has authentication of
its own.
"""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Depends
from starlette.requests import Request

from app.domain.job import Caller
from app.errors import Refused
from app.pipeline import Gateway
from app.telemetry.outcome import Outcome

OPEN: dict[str, Any] = {"x-role": "open"}  # in a route's openapi_extra: no key needed, deliberately


def gateway_of(request: Request) -> Gateway:
    """The process's gateway; called, not injected: a dependency costs more than what it would give."""
    gateway: Gateway = request.app.state.gateway
    return gateway


def record_of(request: Request) -> Outcome:
    """The request's event record."""
    record: Outcome = request.scope["state"]["record"]
    return record


def bearer(request: Request) -> str:
    """The token in the one accepted carrier, `Authorization: Bearer`. Raises Refused."""
    carriers = request.headers.getlist("authorization")
    if len(carriers) > 1:
        raise Refused("unauthenticated", "Send one Authorization header.")
    scheme, _, token = (carriers[0] if carriers else "").strip(" \t").partition(" ")
    if scheme.lower() != "bearer" or not token:
        raise Refused("unauthenticated", "Send the key as `Authorization: Bearer kgw_live_...`.")
    return token


async def by_key(request: Request) -> Caller:
    """Authenticate, take a request from the rates, and hold the browser to the tenant's origins. Raises Refused."""
    caller = await gateway_of(request).authenticate(bearer(request), record_of(request))
    request.scope["state"]["origins"] = frozenset(caller.tenant.cors_origins)
    origin = request.headers.get("origin")
    if (
        origin
        and origin not in caller.tenant.cors_origins
        and origin != f"{request.scope['scheme']}://{request.headers.get('host')}"
    ):
        raise Refused("forbidden", "This tenant does not allow calls from this origin.")
    return caller


KeyCaller = Annotated[Caller, Depends(by_key)]
