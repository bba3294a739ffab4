"""Counts what was delivered for nothing, from the cache or from a shared job: statistics beside the money, not money.

Noted by the pipeline in memory, so that a hit costs no round trip, and written by the heartbeat in one batch. What is
not written when a process is killed is lost: a second of free deliveries, never a micro-dollar. When Redis is away a
batch is kept and sent again under its number, so that one whose reply was lost is not counted twice.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass
from typing import Literal

from app.domain.job import Job
from app.domain.usage import BETWEEN, group
from app.domain.windows import local_date
from app.quota.ledger import Ledger
from app.store import keys
from app.store.redis import script

TALLY = script("app.quota", "tally")


@dataclass(frozen=True, slots=True)
class _Day:
    """Where counts go: the tenant's local day at the delivery."""

    tenant: str
    start: int
    date: str


class Deliveries:
    """The free deliveries of one process."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._noted: dict[_Day, Counter[str]] = {}
        self._batch: dict[_Day, Counter[str]] = {}
        self._number = 0

    def note(self, job: Job, source: Literal["cache", "coalesced"], saved: int) -> None:
        """One picture that cost nothing, and the price that it saved in micro-dollars."""
        tenant = job.caller.tenant
        start, _ = self._ledger.propose_spans(tenant, {"day"})["day"]
        day = _Day(tenant.id, start, str(local_date(tenant.timezone, start)))
        counts, at = self._noted.setdefault(day, Counter()), group(job)
        counts[f"{source}{BETWEEN}{at}"] += 1
        counts[f"saved-{source}{BETWEEN}{at}"] += saved

    async def flush(self) -> None:
        """Write what was noted; called by the heartbeat. Raises LedgerUnavailable: it is written at the next call."""
        if not self._batch:
            self._batch, self._noted = self._noted, {}
            self._number += 1
        await asyncio.gather(*(self._write(day, counts) for day, counts in list(self._batch.items())))

    async def _write(self, day: _Day, counts: Counter[str]) -> None:
        await self._ledger.store.run(
            TALLY,
            [keys.usage(day.tenant, day.start), keys.days(day.tenant)],
            [self._ledger.owner, self._number, day.start, day.date, keys.USAGE_KEEP_S,
             *(part for pair in counts.items() for part in pair)],
        )  # fmt: skip
        del self._batch[day]
