"""Works through the queues: takes jobs in turn from every tenant, a few at a time, and adopts those of dead workers.

One per process, started and stopped by the composition root. While the replica drains it takes none and finishes what
it has; what it could not begin is another's. When Redis is away it asks again until it is back.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from time import monotonic

import structlog

from app.errors import LedgerUnavailable
from app.jobs.intake import Intake
from app.jobs.queue import Backlog, Queue
from app.jobs.run import Later, Runner
from app.pipeline import Gateway
from app.store import keys

POLL = 0.2  # seconds between looks at the queues
SWEEP = 2.0  # seconds between looks for jobs of dead workers, and for those that waited too long
AGAIN = 0.5  # seconds until a job that could not be sent is tried again
CRASHED = 5.0
MOST_LATER = 8  # jobs of a tenant that are tried again in this process; with more of them it takes no new ones


class Worker:
    """The worker of one process. `seats` jobs are worked on at once; `ttl` is how many seconds a job may be queued."""

    def __init__(
        self,
        gateway: Gateway,
        queue: Queue,
        runner: Runner,
        log: structlog.typing.FilteringBoundLogger,
        *,
        seats: int,
        ttl: float,
        draining: Callable[[], bool],
    ) -> None:
        self._gateway, self._queue, self._runner, self._log = gateway, queue, runner, log
        self._seats, self._ttl, self._draining = seats, ttl, draining
        self.intake: Intake | None = None
        self._hands: dict[str, tuple[str, asyncio.Task[None]]] = {}  # job -> its tenant, and the work
        self._later: dict[str, tuple[str, str, float]] = {}  # job -> its tenant and entry, and when it is tried again
        self._woken = asyncio.Event()
        self._swept = 0.0
        self._turn = 0
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin."""
        self._task = asyncio.create_task(self._loop())

    def kick(self) -> None:
        """There is something to do."""
        self._woken.set()

    async def stop(self, *, timeout: float) -> None:
        """Take no more, and finish what is under way within `timeout` seconds."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
        if self._hands:
            await asyncio.wait([work for _, work in self._hands.values()], timeout=timeout)
        with suppress(LedgerUnavailable):
            await self._runner.settle()

    async def _loop(self) -> None:
        while True:
            self._woken.clear()
            try:
                await self._pass()
            except LedgerUnavailable:
                pass
            except Exception as error:
                self._log.error("queue_pass_failed", kind=type(error).__name__)
            with suppress(TimeoutError):
                async with asyncio.timeout(POLL):
                    await self._woken.wait()

    async def _pass(self) -> None:
        tenants = await self._queue.tenants()
        backlogs = dict(zip(tenants, await asyncio.gather(*map(self._queue.backlog, tenants)), strict=True))
        self._tell(list(backlogs.values()))
        if self._draining():
            return
        now = monotonic()
        for job_id, (tenant, entry, due) in list(self._later.items()):
            if due <= now and len(self._hands) < self._seats:
                del self._later[job_id]
                self._work(tenant, job_id, entry)
        if now - self._swept >= SWEEP:
            self._swept = now
            await asyncio.gather(*(self._sweep(name, backlogs[name]) for name in tenants))
        await self._take({name: found for name, found in backlogs.items() if found.waiting})

    async def _take(self, backlogs: dict[str, Backlog]) -> None:
        """Take what there are seats for, the same number from each tenant, beginning with another one each time."""
        names = sorted(backlogs)
        self._turn += 1
        names = names[self._turn % len(names) :] + names[: self._turn % len(names)] if names else []
        while names and (free := self._seats - len(self._hands)) > 0:
            share, more = max(1, free // len(names)), []
            for name in names:
                count = min(share, self._seats - len(self._hands), await self._places(name))
                taken = await self._queue.take(name, count) if count > 0 else []
                for entry, job_id in taken:
                    self._work(name, job_id, entry)
                if count > 0 and len(taken) == count:
                    more.append(name)
            names = more

    async def _places(self, name: str) -> int:
        """How many more jobs of a tenant may be worked on: it would only wait for a place here."""
        tenant = (await self._gateway.tenants.refresh()).tenants.get(name)
        if sum(of == name for of, _, _ in self._later.values()) >= MOST_LATER:
            return 0
        if tenant is None or tenant.limits.concurrency is None:
            return self._seats
        taken = int(await self._queue.store.command("SCARD", keys.concurrency(name, "tenant", "all")))
        return tenant.limits.concurrency - taken

    async def _sweep(self, tenant: str, found: Backlog) -> None:
        free = 0 if found.waiting else self._seats - len(self._hands)  # entries that nobody waits for came twice
        stray = await self._queue.take(tenant, free) if free > 0 else []
        # What is adopted without a seat to work on it is kept from those who have one.
        orphans = await self._queue.adopt(tenant) if len(self._hands) < self._seats else []
        for entry, job_id in [*stray, *orphans]:
            if len(self._hands) < self._seats:
                self._work(tenant, job_id, entry)
        until = await self._queue.store.now_ms() - int(self._ttl * 1000)
        for job_id in await self._queue.waits_since(tenant, until):
            await self._runner.expire(tenant, job_id)

    def _work(self, tenant: str, job_id: str, entry: str) -> None:
        if job_id not in self._hands and job_id not in self._later:
            self._hands[job_id] = (tenant, asyncio.create_task(self._do(tenant, job_id, entry)))

    async def _do(self, tenant: str, job_id: str, entry: str) -> None:
        again, broken = 0.0, False
        try:
            await self._runner.run(tenant, job_id, entry)
        except Later as later:
            again = max(AGAIN, later.wait)
        except LedgerUnavailable:
            again = AGAIN
        except Exception as error:
            self._log.error("job_failed_here", job_id=job_id, kind=type(error).__name__)
            again, broken = CRASHED, True
        finally:
            if again:
                with suppress(LedgerUnavailable):
                    await self._queue.rest(tenant, job_id, broken=broken)
                self._later[job_id] = (tenant, entry, monotonic() + again)
            del self._hands[job_id]
            self.kick()

    def _tell(self, backlogs: list[Backlog]) -> None:
        """The gauges, and how much is queued in all."""
        metrics, total = self._gateway.metrics, sum(found.size for found in backlogs)
        oldest = min((found.oldest for found in backlogs if found.oldest), default=0)
        metrics.async_queued.set(sum(found.waiting for found in backlogs))
        metrics.async_age.set(max(0.0, self._gateway.ledger.now() - oldest / 1000) if oldest else 0.0)
        metrics.async_bytes.set(total)
        if self.intake is not None:
            self.intake.total = total
