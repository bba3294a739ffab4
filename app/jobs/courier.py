"""Delivers webhooks: at least once, again with growing pauses, and in the end to a list of dead ones.

One per process, started and stopped by the composition root. A tenant has a few deliveries under way in a process and
no more, so that a receiver that answers slowly delays nobody else. Whether a URL is still allowed is asked each time;
one that is not, or whose tenant is suspended or has no secret, is a failed attempt like any other.
When Redis is away it asks again until it is back.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from random import uniform

import structlog

from app.errors import LedgerUnavailable
from app.jobs.hooks import Hooks
from app.jobs.lookups import Lookups
from app.jobs.post import SECONDS, post
from app.store import keys
from app.store.redis import script
from app.telemetry.metrics import Metrics
from app.tenants import Tenants

DELIVER = script("app.jobs", "deliver")
SENT = script("app.jobs", "sent")
POLL = 0.25  # seconds between looks at what is due
OF_A_TENANT = 4  # deliveries of one tenant under way in a process
BACK_MS = int(SECONDS * 1000) * 3  # a delivery that is not reported back by then is made again
GONE = "410"  # the receiver says that it wants no more


class Courier:
    """The deliveries of one process. `pauses` are the seconds between attempts: one attempt more than pauses."""

    def __init__(
        self,
        hooks: Hooks,
        tenants: Tenants,
        metrics: Metrics,
        log: structlog.typing.FilteringBoundLogger,
        *,
        pauses: Sequence[float],
    ) -> None:
        self._hooks, self._tenants, self._metrics, self._log = hooks, tenants, metrics, log
        self._pauses, self._lookups = tuple(pauses), Lookups()
        self._under_way: Counter[str] = Counter()
        self._tasks: set[asyncio.Task[None]] = set()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin."""
        self._task = asyncio.create_task(self._loop())

    async def stop(self) -> None:
        """Take no more; what is under way ends within its own time, and the rest is another's."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def _loop(self) -> None:
        while True:
            try:
                tenants = [name.decode() for name in await self._hooks.store.command("SMEMBERS", keys.QUEUES)]
                await asyncio.gather(*map(self._take, tenants))
            except LedgerUnavailable:
                pass
            except Exception as error:
                self._log.error("webhook_pass_failed", kind=type(error).__name__)
            await asyncio.sleep(POLL)

    async def _take(self, tenant: str) -> None:
        room = OF_A_TENANT - self._under_way[tenant]
        if room <= 0:
            return
        for name in await self._hooks.store.run(DELIVER, [keys.hooks(tenant, "due")], [room, BACK_MS]):
            self._under_way[tenant] += 1
            task = asyncio.create_task(self._deliver(tenant, name.decode()))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _deliver(self, tenant: str, hook_id: str) -> None:
        try:
            fields = ("url", "body", "attempts")
            url, body, attempts = await self._hooks.store.command("HMGET", keys.hook(tenant, hook_id), *fields)
            if url is None:
                await self._hooks.store.command("ZREM", keys.hooks(tenant, "due"), hook_id)
                return
            answer = await self._send(tenant, hook_id, self._hooks.url_of(tenant, hook_id, url), body)
            delivered, tried = answer.startswith("2"), int(attempts or 0)
            over = delivered or answer == GONE or tried >= len(self._pauses)
            pause = "" if over else int(self._pauses[tried] * uniform(0.8, 1.2) * 1000)
            outcome = "delivered" if delivered else "dead" if over else "retried"
            names = [keys.hooks(tenant, "due"), keys.hook(tenant, hook_id)]
            names.append(keys.hooks(tenant, "done" if delivered else "dead"))
            if await self._hooks.store.run(SENT, names, [hook_id, pause, answer, keys.HOOK_MS]):
                self._metrics.hooks.labels(outcome).inc()
                self._log.info("webhook", tenant=tenant, webhook_id=hook_id, outcome=outcome, answer=answer)
        except LedgerUnavailable:
            pass  # it is due again
        except Exception as error:
            self._log.error("webhook_failed_here", webhook_id=hook_id, kind=type(error).__name__)
        finally:
            self._under_way[tenant] -= 1

    async def _send(self, tenant: str, hook_id: str, url: str, body: bytes) -> str:
        known = (await self._tenants.refresh()).tenants.get(tenant)
        target = self._hooks.target(url, known.webhooks_allow) if known is not None and not known.suspended else None
        if target is None:
            return "not_allowed"
        headers = await self._hooks.headers(tenant, hook_id, body)
        if headers is None:
            return "no_secret"
        return await post(target, headers, body, loopback=self._hooks.loopback, lookup=self._lookups.of(tenant))
