"""Would this be admitted now? What is left at every level, and the refusal that a reservation would meet.

Called by the quote. Reads only and holds nothing, so the answer is as old as it is. When Redis is away,
`LedgerUnavailable` is raised.
"""

from __future__ import annotations

from typing import Any

from app.domain.catalog import JobType
from app.domain.job import Caller
from app.errors import Refused
from app.quota.ledger import Ledger
from app.quota.limits import places
from app.quota.refusals import cap_refusal, describe_cap, place_refusal
from app.store import keys


async def room(
    ledger: Ledger, caller: Caller, user: str | None, job_type: JobType
) -> tuple[list[dict[str, Any]], Refused | None]:
    """What is left of each cap, in public words, and why a job of this type would be refused, in the order of the
    reserve script."""
    caps = await ledger.counters(caller, user)
    limits = [describe_cap(*cap) for cap in caps]
    seats = places(caller, user)
    tenant = caller.tenant.id
    taken = await ledger.store.commands(*(("SCARD", keys.concurrency(tenant, s.level, s.subject)) for s in seats))
    for seat, count in zip(seats, taken, strict=True):
        if count >= seat.cap:
            return limits, place_refusal(seat, job_type)
    for cap, span, spent, reserved in caps:
        add = (job_type.price or 0) if cap.kind == "usd" else 1
        if spent + reserved + add > cap.cap:
            return limits, cap_refusal(cap, span, spent, reserved, add, ledger.now())
    return limits, None
