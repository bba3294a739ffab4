"""The only composition root: settings in, two ASGI applications out, and the life of everything behind them.

`create_app` wires the parts; `Application.start` and `stop` open and close them; the commands serve `public` and `ops`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from time import monotonic
from typing import Any

import httpx2
import structlog
from fastapi import FastAPI

from app.cache.flight import Flights
from app.cache.lineage import Lineage
from app.cache.results import Results
from app.domain import guidance
from app.domain.ids import request_id
from app.domain.tenant import Tenant
from app.health import Health
from app.images.gate import Gate
from app.installation import load_catalog, offered
from app.jobs.courier import Courier
from app.jobs.desk import Jobs
from app.jobs.hooks import Hooks
from app.jobs.intake import Bounds
from app.jobs.intake import Intake as QueueIntake
from app.jobs.queue import Queue
from app.jobs.run import Runner
from app.jobs.worker import Worker
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
from app.store.seal import Seal
from app.surfaces import client_tokens, native, openai, openai_schema, prodia, prodia_schema, references, reports
from app.surfaces import jobs as jobs_surface
from app.surfaces import ops as ops_surface
from app.surfaces.dialect import methods_by_path
from app.surfaces.direct import Direct, short
from app.surfaces.intake import Intake
from app.surfaces.native_schema import complete
from app.telemetry.access import Access
from app.telemetry.metrics import Metrics
from app.tenants import Keyring, Tenants

# The first whose path and method fit has the call.
SURFACES = (openai, native, prodia, reports, references, client_tokens, jobs_surface)
VERSION = metadata.version("kontext-gateway")


@dataclass(slots=True)
class Application:
    """One process: `public` and `ops` are ASGI applications over the same gateway."""

    public: Access
    ops: Access
    api: FastAPI
    gateway: Gateway
    health: Health
    jobs: Jobs
    stores: tuple[Store, ...]

    async def start(self) -> None:
        """Open what must be open before the first request. Raises NoLedger, TenantsFileError, OSError."""
        await self.health.start()
        self.jobs.worker.start()
        self.jobs.courier.start()

    async def stop(self, *, timeout: float) -> None:
        """Finish the jobs under way within `timeout` seconds, settle, and close."""
        until = monotonic() + timeout
        await self.jobs.worker.stop(timeout=timeout)
        await self.jobs.courier.stop()
        if self.gateway.at_work:
            await asyncio.wait(set(self.gateway.at_work), timeout=max(0.0, until - monotonic()))
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
    links = _secret(settings.gateway_link_secret or settings.gateway_key_pepper)

    tenants = Tenants(settings.gateway_tenants_file, offered(catalog), built_in=built_in_tenants)
    incarnation = Incarnation(ledger_store)
    epoch = Epoch(ledger_store)
    ledger = Ledger(ledger_store, epoch, incarnation.id, moved=lambda move: _count(metrics, move))
    seal = Seal(pepper)
    results = Results(cache_store, seal, hot=settings.gateway_hot_cache_bytes)
    lineage = Lineage(ledger_store, pepper, ttl=int(settings.gateway_lineage_ttl))
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
        lineage=lineage,
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
            lineage=lineage,
            secrets=[one.encode() for one in (links, _secret(settings.gateway_link_secret_second)) if one],
            link_ttl=settings.gateway_image_url_ttl,
        ),
        deliveries=Deliveries(ledger),
        names=Names(ledger_store, incarnation, seal),
        deadline=settings.gateway_upstream_deadline,
        client_token_ttl=int(settings.gateway_client_token_ttl),
        client_token_max_ttl=int(settings.gateway_client_token_max_ttl),
        at_work=set(),
    )
    health = Health(gateway, incarnation, epoch, log, strict=not settings.gateway_accept_volatile_ledger)
    jobs = _jobs(settings, gateway, incarnation, log, health)
    intake = Intake(settings.gateway_body_memory)
    public, api = _listener(gateway, health, jobs, intake), _listener(gateway, health, jobs, intake, ops=True)
    public.state.url = api.state.url = settings.gateway_public_url.rstrip("/")

    def wrap(app: FastAPI, **more: frozenset[str]) -> Access:
        origins = lambda: tenants.current.cors_origins  # noqa: E731
        return Access(app, metrics=metrics, log=log, origins=origins, new_id=request_id, **more)

    return Application(
        public=wrap(public, hosts=settings.hosts),
        ops=wrap(api, quiet=frozenset({"/metrics", "/healthz", "/readyz"})),
        api=api,
        gateway=gateway,
        health=health,
        jobs=jobs,
        stores=(ledger_store, cache_store) if separate else (ledger_store,),
    )


def _jobs(
    settings: Settings,
    gateway: Gateway,
    incarnation: Incarnation,
    log: structlog.typing.FilteringBoundLogger,
    health: Health,
) -> Jobs:
    """The queue and its worker. Jobs are told of as the native surface tells of pictures."""
    queue, ttl = Queue(gateway.ledger, incarnation, gateway.names.seal), settings.gateway_queue_ttl
    runner = Runner(gateway, queue, native.said, ttl=ttl)
    hooks = Hooks(gateway.ledger.store, gateway.pepper, loopback=settings.gateway_webhook_loopback)
    courier = Courier(hooks, gateway.tenants, gateway.metrics, log, pauses=settings.webhook_pauses)
    worker = Worker(
        gateway, queue, runner, log,
        seats=settings.gateway_queue_seats, ttl=ttl, draining=lambda: health.draining,
    )  # fmt: skip
    bounds = Bounds(ttl, settings.gateway_queue_jobs, settings.gateway_queue_tenant_bytes, settings.gateway_queue_bytes)
    worker.intake = QueueIntake(gateway, queue, bounds, worker.kick)
    return Jobs(worker.intake, queue, runner, worker, hooks, courier)


def _listener(gateway: Gateway, health: Health, jobs: Jobs, intake: Intake, *, ops: bool = False) -> FastAPI:
    app = Direct(
        title="Kontext Gateway",
        version=VERSION,
        openapi_url="/openapi.json" if ops else None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.gateway, app.state.health, app.state.jobs, app.state.intake = gateway, health, jobs, intake
    for surface in SURFACES:
        app.include_router(surface.router)
    routes = [route for surface in SURFACES for route in surface.router.routes]
    app.state.methods, app.short = methods_by_path(routes), short(routes)
    if ops:
        app.include_router(ops_surface.router)
        made = app.openapi

        def described() -> dict[str, Any]:
            schema = complete(made(), gateway.catalog, gateway.guidance.auto.order)
            return openai_schema.complete(prodia_schema.complete(schema, gateway.catalog), gateway.catalog)

        app.openapi = described  # type: ignore[method-assign]
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
