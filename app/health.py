"""The process's heartbeat: lease, reaper, unwritten settlements, names to free, counts of free deliveries, tenants
file, and what readiness and gauges say.

Runs beside the listeners, once a second. When Redis is away it keeps trying, says so in readiness, and logs one line
per change.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress

import structlog

from app.domain.job import Caller
from app.domain.pricing import MICRO
from app.domain.tenant import KeyPolicy, Limits
from app.errors import LedgerUnavailable
from app.pipeline import Gateway
from app.quota.epoch import Epoch
from app.quota.reaper import reap
from app.store.lease import Incarnation

BEAT = 1.0
REAP_EVERY = 2
CHECK_EVERY = 20  # beats; an alarm has to come within a minute, and a beat may be late


class VolatileLedger(Exception):
    """The ledger's Redis may evict keys or does not persist them; GATEWAY_ACCEPT_VOLATILE_LEDGER accepts that."""


class Health:
    """State of one process, and the task that keeps it true."""

    def __init__(
        self,
        gateway: Gateway,
        incarnation: Incarnation,
        epoch: Epoch,
        log: structlog.typing.FilteringBoundLogger,
        *,
        strict: bool,
    ) -> None:
        self._gateway = gateway
        self._incarnation = incarnation
        self._epoch = epoch
        self._log = log
        self._strict = strict
        self._checked = False  # the ledger was found to keep what it is told; until then it is not used
        self._task: asyncio.Task[None] | None = None
        self._ledger_ok: bool | None = None
        self._reload_ok = True
        self._loads = 0
        self._frozen = False
        self.draining = False

    @property
    def not_ready(self) -> str | None:
        """Why this process should get no requests, or None."""
        if self.draining:
            return "draining"
        if self._epoch.frozen:
            return "ledger_frozen"
        if not self._ledger_ok:
            return "ledger_unavailable"
        return "no_ledger" if self._epoch.id is None else None

    async def start(self) -> None:
        """Read the tenants, look at the ledger, start the heartbeat.

        A Redis that is away is no reason not to start: the process becomes ready when it is back.

        Raises:
            TenantsFileError, OSError: the tenants file.
            NoLedger: the Redis answers and holds no ledger.
            VolatileLedger: the Redis may lose the ledger.
        """
        self._gateway.tenants.load()
        self._loads = self._gateway.tenants.loads
        self._name_tenants()
        with suppress(LedgerUnavailable):
            await self._gateway.ledger.store.open()
            await self._check_ledger()
            await self._epoch.open()
            await self._incarnation.beat()
            self._ledger_ok = True
        self._task = asyncio.create_task(self._beat())

    async def stop(self) -> None:
        """Write what is unwritten, give up the lease, end the heartbeat."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
        with suppress(LedgerUnavailable):
            await self._gateway.ledger.write_unwritten()
            await self._gateway.names.free()
            await self._gateway.deliveries.flush()
            if not self._gateway.ledger.unwritten and not self._gateway.at_work:
                await self._incarnation.leave()

    async def read_gauges(self) -> None:
        """Bring the gauges up to date for a scrape."""
        gateway, metrics = self._gateway, self._gateway.metrics
        metrics.queued.set(gateway.buyer.turns.waiting)
        metrics.queue_age.set(gateway.buyer.turns.oldest_wait)
        metrics.unwritten.set(len(gateway.ledger.unwritten))
        metrics.frozen.set(self._epoch.frozen)
        metrics.reload_ok.set(gateway.tenants.healthy)
        with suppress(LedgerUnavailable):
            for tenant in gateway.tenants.current.tenants.values():
                caller = Caller(tenant, "", "", KeyPolicy(Limits(), None, None))
                for cap in await gateway.ledger.usage(caller, None):
                    if cap["kind"] == "budget":
                        metrics.budget_limit.labels(tenant.id, cap["per"]).set(cap["limit_micro_usd"] / MICRO)
                        metrics.budget_spent.labels(tenant.id, cap["per"]).set(cap["spent_micro_usd"] / MICRO)
                        metrics.budget_reserved.labels(tenant.id, cap["per"]).set(cap["reserved_micro_usd"] / MICRO)
                    else:
                        metrics.quota_remaining.labels(tenant.id, f"images-{cap['per']}").set(cap["remaining"])
            states = await gateway.buyer.turns.breakers()
            for job in gateway.catalog.enabled.values():
                for state in ("closed", "open", "half_open"):
                    metrics.breaker.labels(job.type, state).set(states.get(job.type, "closed") == state)

    async def _beat(self) -> None:
        turn, told = 0, -CHECK_EVERY  # the beat at which a ledger that can forget was told of
        while True:
            await asyncio.sleep(BEAT)
            turn += 1
            try:
                if not self._checked:  # it was away at the start
                    await self._check_ledger()
                await self._incarnation.beat()
                await self._epoch.watch()
                await self._gateway.ledger.write_unwritten()
                await self._gateway.flights.say_unsaid()
                await self._gateway.names.free()
                if turn % REAP_EVERY == 0:
                    await reap(self._gateway.ledger, self._incarnation)
                if not self._epoch.frozen:
                    await self._gateway.deliveries.flush()
                if turn % CHECK_EVERY == 0:
                    await self._check_ledger()
                self._ledger(True)
            except LedgerUnavailable:
                self._ledger(False)
            except VolatileLedger as error:
                if turn >= told + CHECK_EVERY:
                    told = turn
                    self._log.error("ledger_volatile", detail=str(error))
            except Exception as error:
                self._log.error("heartbeat_failed", kind=type(error).__name__)
            await self._gateway.tenants.refresh()
            self._name_tenants()
            self._reload()
            self._freeze(self._epoch.frozen)

    async def _check_ledger(self) -> None:
        """Refuse a ledger that can forget. Raises VolatileLedger, LedgerUnavailable."""
        if not self._strict:
            self._checked = True
            return
        memory, persistence = await self._gateway.ledger.store.commands(("INFO", "memory"), ("INFO", "persistence"))
        if memory.get("maxmemory_policy", "noeviction") != "noeviction":
            raise VolatileLedger("the ledger's Redis may evict keys: set maxmemory-policy noeviction")
        if not persistence.get("aof_enabled"):
            raise VolatileLedger("the ledger's Redis does not persist: set appendonly yes")
        self._checked = True

    def _name_tenants(self) -> None:
        self._gateway.metrics.tenants = frozenset(self._gateway.tenants.current.tenants)

    def _ledger(self, ok: bool) -> None:
        if ok != self._ledger_ok:
            self._ledger_ok = ok
            self._log.warning("ledger_available" if ok else "ledger_unavailable")

    def _reload(self) -> None:
        tenants = self._gateway.tenants
        if tenants.healthy != self._reload_ok or tenants.loads != self._loads:
            self._reload_ok, self._loads = tenants.healthy, tenants.loads
            if tenants.healthy:
                self._log.info("tenants_file_loaded", tenants=len(tenants.current.tenants))
            else:
                self._log.error("tenants_file_refused", mistakes=list(tenants.mistakes[:20]))

    def _freeze(self, frozen: bool) -> None:
        if frozen != self._frozen:
            self._frozen = frozen
            if frozen:
                self._log.error("ledger_frozen", detail="the ledger was lost or rolled back: nothing is admitted")
            else:
                self._log.warning("ledger_released")
