"""Ambiguous charges as the ledger has them, what it knows of the jobs on a bill, and the end that a bill gives them.

Called by the commands `ledger ambiguous` and `ledger reconcile`; never by the walk. Reads reservations and rows, writes
through the finish script alone, so whatever ended meanwhile stays as it is. When Redis is away, `LedgerUnavailable` is
raised; what was written until then is not done again by the next run.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import replace

from app.domain.reconciliation import Booked, Claim, Entry, Verdict
from app.quota.ledger import Finish, write
from app.store import keys
from app.store.redis import Store

PAGE = 1_000
WHO = "reconcile"
_FIELDS = ("state", "job", "key", "type", "variant", "dispatched", "amount", "reason", "upstream_id")
_HELD = ("state", "fence", "amount", "windows", "places", "usage", "name", "reason")
_FACTS = ("job", "tenant", "key", "user", "tags", "operation", "variant", "type", "price", "seed")
# A reason that says how the gateway came to give a job up; for its caller no answer came.
_UNANSWERED = ("left", "reaped")


async def tenants(store: Store) -> list[str]:
    """Every tenant that the ledger knows. Raises LedgerUnavailable."""
    return sorted(name.decode() for name in await store.command("SMEMBERS", keys.TENANTS))


async def entries(store: Store, names: Iterable[str]) -> list[Entry]:
    """The ambiguous charges of these tenants, the oldest first. Raises LedgerUnavailable."""
    found = []
    for tenant in names:
        members = await store.command("ZRANGE", keys.ambiguous(tenant), 0, -1, "WITHSCORES")
        async for held, (name, since) in _held(store, tenant, members):
            if held["state"] == "AMBIGUOUS":
                found.append(
                    Entry(
                        tenant, name, held["job"], held["key"], held["type"], held["variant"],
                        int(held["dispatched"] or since), since, int(held["amount"]), held["reason"],
                        held["upstream_id"],
                    )
                )  # fmt: skip
    return sorted(found, key=lambda entry: (entry.dispatched, entry.reservation))


async def under_way(store: Store, names: Iterable[str]) -> list[Claim]:
    """Jobs that are sent and not ended: they may be on a bill already. Raises LedgerUnavailable."""
    found = []
    now = await store.now_ms()
    for tenant in names:
        members = await store.command("ZRANGE", keys.outstanding(tenant), 0, -1, "WITHSCORES")
        async for held, _ in _held(store, tenant, members):
            if held["state"] == "DISPATCHING":
                found.append(Claim(held["type"], int(held["dispatched"] or now), now, True))
    return found


async def rows(
    store: Store, names: Iterable[str], ids: set[str], *, since: int
) -> tuple[dict[str, Booked], list[Claim]]:
    """What the rows written after `since` (Unix ms) say of jobs on a bill.

    Args:
        ids: those of the bill.

    Returns:
        By id what was settled or refunded; and what was settled without an id.

    Raises:
        LedgerUnavailable.
    """
    booked: dict[str, Booked] = {}
    claims = []
    for tenant in names:
        async for row in _rows(store, tenant, since):
            if row["state"] not in ("SETTLED", "REFUNDED"):
                continue
            was = int(row["reserved"]) if row["from"] == "AMBIGUOUS" else 0
            name, answered = row.get("bill_line") or row.get("upstream_id"), row["by"] != WHO
            if name in ids:
                billed = int(row["delta"]) + was + int(row.get("drift", 0))
                booked[name] = Booked(row["state"], billed, row["type"], int(row["at"]) if answered else None)
            elif not name and row["state"] == "SETTLED":
                at = int(row["at"])
                claims.append(Claim(row["type"], int(row.get("dispatched", at)), at, False))
    return booked, claims


async def end(store: Store, verdict: Verdict) -> str:
    """Settle an entry that was billed, refund one that was not: the finish script's word, `done` or that it had ended.

    Raises:
        LedgerUnavailable: whether it was written is unknown; asking again does no harm.
    """
    entry, line = verdict.entry, verdict.line
    fields = (*_HELD, *_FACTS)
    record = await store.command("HMGET", keys.reservation(entry.tenant, entry.reservation), *fields)
    if record[0] is None:
        return "state"
    held = dict(zip(fields, record, strict=True))
    call = Finish.from_record(entry.tenant, entry.reservation, held, facts=_FACTS)
    row = {**call.row, "reason": "lost" if entry.reason in _UNANSWERED else entry.reason, "verdict": verdict.why}
    if entry.upstream_id:
        row["upstream_id"] = entry.upstream_id
    if line is not None:
        row |= {"bill_line": line.id, "drift": verdict.drift}
    reply = await write(
        store,
        replace(
            call, end="REFUNDED" if line is None else "SETTLED", paid=verdict.paid, fence="", sources="AMBIGUOUS",
            by=WHO, row=row,
        ),
        WHO,
    )  # fmt: skip
    return str(reply[0].decode())


async def _held(
    store: Store, tenant: str, members: Sequence[bytes]
) -> AsyncIterator[tuple[dict[str, str], tuple[str, int]]]:
    """The reservations of a sorted set with their scores; one that has ended and gone meanwhile is left out."""
    pairs = [(name.decode(), int(score)) for name, score in zip(members[::2], members[1::2], strict=True)]
    for first in range(0, len(pairs), PAGE):
        page = pairs[first : first + PAGE]
        found = await store.commands(*(("HMGET", keys.reservation(tenant, name), *_FIELDS) for name, _ in page))
        for member, record in zip(page, found, strict=True):
            if record[0] is not None:
                yield {n: (value or b"").decode() for n, value in zip(_FIELDS, record, strict=True)}, member


async def _rows(store: Store, tenant: str, since: int) -> AsyncIterator[dict[str, str]]:
    after = str(since)
    while page := await store.command("XRANGE", keys.rows(tenant), after, "+", "COUNT", PAGE):
        for _, row in page:
            yield {field.decode(): value.decode() for field, value in row.items()}
        after = f"({page[-1][0].decode()}"
