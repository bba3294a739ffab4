"""The recent jobs of a key, as its reservations tell of them: what a caller that went away can still claim.

Called by the reports surface. A job is there from its reservation on, for `keys.RECENT_MS`. When Redis is away,
`LedgerUnavailable` is raised.
"""

from __future__ import annotations

from dataclasses import dataclass

from app.errors import Charged
from app.store import keys
from app.store.redis import Store

_FIELDS = ("state", "job", "operation", "variant", "type", "seed", "created", "price", "paid", "image", "reason")
_OPEN = {"RESERVED": "queued", "DISPATCHING": "running"}
_CHARGED: dict[str, Charged] = {"SETTLED": "yes", "REFUNDED": "no", "AMBIGUOUS": "unknown", "RESERVED": "no"}


@dataclass(frozen=True, slots=True)
class Recent:
    """One job. Amounts in micro-dollars, `created` in Unix seconds; `image` and `reason` may be empty."""

    id: str
    state: str
    operation: str
    variant: str
    job_type: str
    seed: int
    created: int
    price: int
    paid: int
    charged: Charged
    image: str
    reason: str


async def recent(store: Store, tenant: str, key_id: str, *, limit: int) -> list[Recent]:
    """A key's last jobs, newest first. Raises LedgerUnavailable."""
    now = int((await store.command("TIME"))[0]) * 1000
    since = now - keys.RECENT_MS
    ids = await store.command("ZREVRANGEBYSCORE", keys.jobs(tenant, key_id), "+inf", since, "LIMIT", 0, limit)
    found = await store.commands(*(("HMGET", keys.reservation(tenant, name.decode()), *_FIELDS) for name in ids))
    return [_recent(dict(zip(_FIELDS, map(_text, record), strict=True))) for record in found if record[0] is not None]


def _recent(held: dict[str, str]) -> Recent:
    state, reason = held["state"], held["reason"]
    if state in _OPEN:
        shown = _OPEN[state]
    elif (
        state in ("SETTLED", "REFUNDED") and held["image"]
    ):  # refunded with a picture: of the queue, and had for nothing
        shown = "succeeded"
    else:
        shown = "cancelled" if state == "REFUNDED" and reason in ("left", "cancelled") else "failed"
    return Recent(
        id=held["job"], state=shown, operation=held["operation"], variant=held["variant"], job_type=held["type"],
        seed=int(held["seed"]), created=int(held["created"]) // 1000, price=int(held["price"]),
        paid=int(held["paid"] or 0), charged=_CHARGED.get(state, "unknown"), image=held["image"], reason=reason,
    )  # fmt: skip


def _text(value: bytes | None) -> str:
    return (value or b"").decode()
