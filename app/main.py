"""The only composition root: settings in, two ASGI applications out, and the life of everything behind them.

`create_app` wires the parts; `Application.start` and `stop` open and close them; the commands serve `public` and `ops`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata

import httpx2
import structlog
from fastapi import FastAPI
from starlette.exceptions import HTTPException

from app.cache.flight import Flights
from app.cache.results import Results
from app.domain import catalog as catalogue
from app.domain import guidance
from app.domain.ids import request_id
from app.domain.tenant import Tenant
from app.errors import GatewayError
from app.health import Health
from app.images.gate import Gate
from app.pictures import Pictures
from app.pipeline import Gateway
from app.prodia.client import Prodia
from app.prodia.faults import Moderation, parse_money
from app.prodia.retry import RetryBudget
from app.prodia.turns import Turns
from app.purchase import Buyer
from app.quota.deliveries import Deliveries
from app.quota.epoch import Epoch
from app.quota.ledger import Ledger, Moved
from app.quota.names import Names
from app.settings import Settings
from app.store.blobs import Spool
from app.store.lease import Incarnation
from app.store.redis import Store
from app.surfaces import native, reports
from app.surfaces import ops as ops_surface
from app.surfaces.dialect import on_crash, on_error, on_http_error
from app.surfaces.intake import Intake
from app.surfaces.native_schema import complete
from app.telemetry.access import Access
from app.telemetry.metrics import Metrics
from app.tenants import Keyring, Tenants

SURFACES = (native, reports)
VERSION = metadata.version("kontext-gateway")


@dataclass(slots=True)
class Application:
    """One process: `public` and `ops` are ASGI applications over the same gateway."""

    public: Access
    ops: Access
    api: FastAPI
    gateway: Gateway
    health: Health
    stores: tuple[Store, ...]

    async def start(self) -> None:
        """Open what must be open before the first request. Raises NoLedger, TenantsFileError, OSError."""
        await self.health.start()

    async def stop(self, *, timeout: float) -> None:
        """Finish the jobs under way within `timeout` seconds, settle, and close."""
        if self.gateway.at_work:
            await asyncio.wait(set(self.gateway.at_work), timeout=timeout)
        await self.health.stop()
        await self.gateway.buyer.gate.aclose()
        await self.gateway.buyer.prodia.aclose()
        for store in self.stores:
            await store.aclose()


def create_app(
    settings: Settings,
    *,
    transport: httpx2.AsyncBaseTransport | None = None,
    log: structlog.typing.FilteringBoundLogger | None = None,
    built_in_tenants: Mapping[str, Tenant] | None = None,
) -> Application:
    """Wire one process.

    Args:
        transport: what carries requests to the upstream; a pool of connections by default.
        built_in_tenants: tenants that exist without being in the file (the sandbox's).

    Raises:
        CatalogError: the operator's catalogue file is wrong.
    """
    log = log or structlog.get_logger()
    catalog = load_catalog(settings)
    metrics = Metrics(version=VERSION, variants={variant for _, variant in catalog.enabled})
    ledger_store = _store(settings, settings.redis_url, metrics)
    separate = settings.cache_redis_url is not None and settings.cache_redis_url != settings.redis_url
    cache_store = _store(settings, settings.cache_redis_url, metrics) if separate else ledger_store
    pepper = _secret(settings.gateway_key_pepper).encode()

    tenants = Tenants(settings.gateway_tenants_file, offered(catalog), built_in=built_in_tenants)
    incarnation = Incarnation(ledger_store)
    epoch = Epoch(ledger_store)
    ledger = Ledger(ledger_store, epoch, incarnation.id, moved=lambda move: _count(metrics, move))
    results = Results(cache_store, hot=settings.gateway_hot_cache_bytes)
    turns = Turns(
        ledger_store,
        incarnation.id,
        total=settings.gateway_upstream_concurrency,
        caps={job.type: job.concurrency for job in catalog.jobs if job.concurrency is not None},
        probe_seconds=settings.gateway_upstream_deadline,
    )
    keyring = Keyring(ledger_store, pepper)
    flights = Flights(ledger_store, results, incarnation, deadline=settings.gateway_upstream_deadline)
    buyer = Buyer(
        tenants=tenants,
        ledger=ledger,
        flights=flights,
        results=results,
        turns=turns,
        prodia=Prodia(
            base_url=settings.prodia_base_url,
            token=_secret(settings.prodia_token),
            transport=transport,
            patterns=Moderation(patterns=settings.moderation_patterns),
            max_connections=settings.gateway_upstream_concurrency,
        ),
        gate=Gate(),
        spool=Spool(settings.gateway_data_dir),
        metrics=metrics,
        retry_budget=RetryBudget(),
        money=parse_money(settings.gateway_outcomes),
    )
    gateway = Gateway(
        catalog=catalog,
        guidance=guidance.load(),
        tenants=tenants,
        keyring=keyring,
        ledger=ledger,
        flights=flights,
        results=results,
        buyer=buyer,
        metrics=metrics,
        pepper=pepper,
        pictures=Pictures(
            catalog=catalog,
            tenants=tenants,
            keyring=keyring,
            results=results,
            pepper=pepper,
            link_ttl=settings.gateway_image_url_ttl,
        ),
        deliveries=Deliveries(ledger),
        names=Names(ledger_store, incarnation),
        deadline=settings.gateway_upstream_deadline,
        at_work=set(),
    )
    health = Health(gateway, incarnation, epoch, log, strict=not settings.gateway_accept_volatile_ledger)
    intake = Intake(settings.gateway_body_memory)
    public, api = _listener(gateway, health, intake), _listener(gateway, health, intake, ops=True)

    def wrap(app: FastAPI, **more: frozenset[str]) -> Access:
        origins = lambda: tenants.current.cors_origins  # noqa: E731
        return Access(app, metrics=metrics, log=log, origins=origins, new_id=request_id, **more)

    return Application(
        public=wrap(public, hosts=settings.hosts),
        ops=wrap(api, quiet=frozenset({"/metrics", "/healthz", "/readyz"})),
        api=api,
        gateway=gateway,
        health=health,
        stores=(ledger_store, cache_store) if separate else (ledger_store,),
    )


def load_catalog(settings: Settings) -> catalogue.Catalog:
    """The catalogue with the operator's file. Raises CatalogError, OSError."""
    path = settings.gateway_catalog_file
    try:
        return catalogue.load(None if path is None else path.read_text("utf-8"), file=str(path))
    except UnicodeDecodeError:
        raise catalogue.CatalogError([f"{path}:1: is not UTF-8 text"]) from None


def offered(catalog: catalogue.Catalog) -> dict[str, frozenset[str]]:
    """Operation -> variants, for the tenants file."""
    return {operation: frozenset(catalog.variants(operation)) for operation in ("generate", "edit")}


def _listener(gateway: Gateway, health: Health, intake: Intake, *, ops: bool = False) -> FastAPI:
    app = FastAPI(
        title="Kontext Gateway",
        version=VERSION,
        openapi_url="/openapi.json" if ops else None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.gateway, app.state.health, app.state.intake = gateway, health, intake
    for surface in SURFACES:
        app.include_router(surface.router)
    if ops:
        app.include_router(ops_surface.router)
        made = app.openapi
        app.openapi = lambda: complete(made(), gateway.catalog, gateway.guidance.auto.order)  # type: ignore[method-assign]
    app.add_exception_handler(GatewayError, on_error)
    app.add_exception_handler(HTTPException, on_http_error)
    app.add_exception_handler(Exception, on_crash)
    return app


def _store(settings: Settings, url: object, metrics: Metrics) -> Store:
    return Store(
        _secret(url),
        timeout=settings.gateway_redis_timeout,
        connect_timeout=settings.gateway_redis_connect_timeout,
        observe=metrics.redis,
    )


def _secret(value: object) -> str:
    return value.get_secret_value() if hasattr(value, "get_secret_value") else ""


def _count(metrics: Metrics, move: Moved) -> None:
    metrics.moved(
        end=move.end,
        came_from=move.came_from,
        delta=move.delta,
        tenant=str(move.facts.get("tenant")),
        operation=str(move.facts.get("operation")),
        variant=str(move.facts.get("variant")),
    )
    if move.facts.get("reason") == "reaped":
        metrics.reaped.inc()
