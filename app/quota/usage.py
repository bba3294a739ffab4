"""Reads the roll-ups of a tenant's days, which the end of every reservation counts into, and adds them up as a report.

Called by the reports surface and the `usage` command; never by the walk. When Redis is away, `LedgerUnavailable` is
raised. A day is read in pieces: one that many jobs end in meanwhile may have some of them and not others.
"""

from __future__ import annotations

import asyncio
from datetime import UTC, date, datetime, time

from app.domain.usage import Query, Report
from app.store import keys
from app.store.redis import Store

AT_ONCE = 16  # days
PIECE = 500  # counters
MARGIN = 2 * 86_400  # no zone's day begins further from the same date's in UTC


async def read(store: Store, tenant: str, timezone: str, query: Query) -> Report:
    """The report that a query asks for. Raises InvalidRequest: too many rows; LedgerUnavailable."""
    report = Report(tenant, timezone, query)
    low, high = (int(datetime.combine(day, time(), UTC).timestamp()) for day in (query.first, query.until))
    starts = await store.command("ZRANGEBYSCORE", keys.days(tenant), low - MARGIN, high + MARGIN)
    for first in range(0, len(starts), AT_ONCE):
        names = [keys.usage(tenant, int(start)) for start in starts[first : first + AT_ONCE]]
        for day in await asyncio.gather(*(_counters(store, name) for name in names)):
            on = date.fromisoformat(day.pop("date", b"0001-01-01").decode())
            if query.first <= on < query.until:
                for name, value in day.items():
                    report.add(on, name, int(value))
    return report


async def _counters(store: Store, name: str) -> dict[str, bytes]:
    """All of a hash, without holding the server up over a large one."""
    found: dict[str, bytes] = {}
    cursor = b"0"
    while True:
        cursor, pairs = await store.command("HSCAN", name, cursor, "COUNT", PIECE)
        pieces = iter(pairs.items() if isinstance(pairs, dict) else zip(pairs[::2], pairs[1::2], strict=True))
        found |= {field.decode(): value for field, value in pieces}
        if cursor in (b"0", 0):
            return found
