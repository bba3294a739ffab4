"""Ends what its owner cannot end any more: reservations of dead processes, and our own that nobody works on.
What a dead worker of the queue had not sent goes back there; what the queue owns is the queue's to end.

Runs on every replica; the finish script lets exactly one of them win. Never sent means refund; maybe sent means
charged and ambiguous. When Redis is away a pass is skipped and the next one does its work.
"""

from __future__ import annotations

import json

from app.quota.ledger import Finish, Ledger
from app.quota.seat import unseat
from app.store import keys
from app.store.lease import Incarnation

ORPHAN_MS = 5_000
PAGE = 500
_FACTS = ("job", "tenant", "key", "user", "tags", "operation", "variant", "type", "price")


async def reap(ledger: Ledger, incarnation: Incarnation) -> int:
    """One pass over every tenant's outstanding reservations; how many this process ended. Raises LedgerUnavailable."""
    ended = 0
    until = await ledger.store.now_ms() - ORPHAN_MS
    for name in await ledger.store.command("SMEMBERS", keys.TENANTS):
        tenant, passed = name.decode(), 0
        # Page by page to the end: those that stay may be many, such as all that wait in the queue.
        while found := await ledger.store.command(
            "ZRANGEBYSCORE", keys.outstanding(tenant), "-inf", until, "LIMIT", passed, PAGE
        ):
            done = await _reap(ledger, incarnation, tenant, [one.decode() for one in found])
            ended, passed = ended + done, passed + len(found) - done
    return ended


async def _reap(ledger: Ledger, incarnation: Incarnation, tenant: str, found: list[str]) -> int:
    """Those of a tenant's reservations that nobody works on; how many this process ended."""
    ids, ended = [one for one in found if one not in ledger.active], 0
    fields = ("owner", "state", "fence", "amount", "windows", "places", "usage", "name", "queued", *_FACTS)
    holds = await ledger.store.commands(*(("HMGET", keys.reservation(tenant, i), *fields) for i in ids))
    alive = await incarnation.alive(hold[0].decode() for hold in holds if hold[0]) - {ledger.owner}
    for reservation, hold in zip(ids, holds, strict=True):
        if hold[0] is None or hold[0].decode() in alive or hold[1] not in (b"RESERVED", b"DISPATCHING"):
            continue  # also what another reaper has ended since this one looked
        if reservation in ledger.active:
            continue  # a worker of this process took its seat meanwhile
        if hold[8] is not None and hold[1] == b"RESERVED":
            if hold[0] != hold[8]:
                taken = tuple(json.loads(hold[5] or b"[]"))
                await unseat(ledger, tenant, reservation, int(hold[2]), hold[8].decode(), taken, hold[0].decode())
            continue
        call = Finish.from_record(tenant, reservation, dict(zip(fields, hold, strict=True)), facts=_FACTS)
        ended += await ledger.finish(call) == "done"
    return ended
