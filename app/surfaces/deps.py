"""Who may call a route, as types: a route declares a role in its signature, and a test fails for one that declares
none.

`KeyCaller` authenticates by API key before the body is read; `AnyCaller` takes a client token too, which only ever sees
what is its own. Every surface uses these and none has authentication of its own.
"""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Depends
from starlette.requests import Request

from app.domain.job import Caller
from app.errors import Refused
from app.jobs.desk import Jobs
from app.pipeline import Gateway
from app.telemetry.outcome import Outcome

OPEN: dict[str, Any] = {"x-role": "open"}  # in a route's openapi_extra: no key needed, deliberately


def gateway_of(request: Request) -> Gateway:
    """The process's gateway; called, not injected: a dependency costs more than what it would give."""
    gateway: Gateway = request.app.state.gateway
    return gateway


def jobs_of(request: Request) -> Jobs:
    """The process's asynchronous side."""
    jobs: Jobs = request.app.state.jobs
    return jobs


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


async def by_any(request: Request) -> Caller:
    """Authenticate, take a request from the rates, and hold the browser to the origins of tenant and client token.
    Raises Refused."""
    caller = await gateway_of(request).authenticate(bearer(request), record_of(request))
    bound = caller.client.origins if caller.client else ()
    allowed = frozenset(caller.tenant.cors_origins) & frozenset(bound or caller.tenant.cors_origins)
    request.scope["state"]["origins"] = allowed
    origin = request.headers.get("origin")
    if bound and origin not in bound:
        raise Refused(
            "forbidden", "This client token is only for pages of its own origins, which a browser names in `Origin`."
        )
    if origin and origin not in allowed and origin != f"{request.scope['scheme']}://{request.headers.get('host')}":
        raise Refused("forbidden", "This tenant does not allow calls from this origin.")
    return caller


async def by_key(request: Request) -> Caller:
    """As `by_any`, but for keys only. Raises Refused."""
    caller = await by_any(request)
    if caller.client is not None:
        raise Refused("forbidden", "A client token may not do this; it takes the key.")
    return caller


async def still_welcome(request: Request) -> bool:
    """Whether the one who made a request that is still being answered would be let in now. Takes nothing from the
    rates. Raises LedgerUnavailable."""
    gateway = gateway_of(request)
    try:
        found = await gateway.keyring.resolve(bearer(request))
    except Refused:
        return False
    tenant = (await gateway.tenants.refresh()).tenants.get(found.tenant)
    if tenant is None or tenant.suspended or not await gateway.keyring.valid(found.tenant, found.key_id):
        return False
    now, ends = await gateway.keyring.lifetime(found.tenant, found.key_id, found.digest)
    return not ends or now < ends


KeyCaller = Annotated[Caller, Depends(by_key)]
AnyCaller = Annotated[Caller, Depends(by_any)]
