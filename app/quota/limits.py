"""Which limits stand between a job and its money: the levels tenant, key, client token and end user, as data for the
scripts.

Pure. A level's caps of the same kind and period collapse into the smallest, because they share one counter.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from app.domain.job import Caller
from app.domain.tenant import Limits
from app.domain.windows import Span
from app.store import keys

Level = Literal["tenant", "key", "token", "user"]
Kind = Literal["usd", "img"]


@dataclass(frozen=True, slots=True)
class Cap:
    """One counter with its cap: micro-dollars for `usd`, images for `img`. `until` (Unix seconds) is the end of what
    has the whole of its life for one window."""

    level: Level
    subject: str
    kind: Kind
    per: Span
    cap: int
    until: int | None = None


@dataclass(frozen=True, slots=True)
class Places:
    """One concurrency cap."""

    level: Level
    subject: str
    cap: int


def levels(caller: Caller, user: str | None) -> Iterator[tuple[Level, str, Limits]]:
    """The levels that apply to a caller, widest first, with the subject that names each one's counters."""
    yield "tenant", "all", caller.tenant.limits
    yield "key", caller.key_id, caller.policy.limits
    if user is not None:
        yield "user", keys.subject(user), caller.tenant.per_user


def caps(caller: Caller, user: str | None) -> tuple[Cap, ...]:
    """Every budget and image quota that a job must fit into."""
    smallest: dict[tuple[Level, str, Kind, Span], int] = {}
    for level, subject, limits in levels(caller, user):
        for budget in limits.budgets:
            usd: tuple[Level, str, Kind, Span] = (level, subject, "usd", budget.per)
            smallest[usd] = min(budget.micro_usd, smallest.get(usd, budget.micro_usd))
        for quota in limits.images:
            img: tuple[Level, str, Kind, Span] = (level, subject, "img", quota.per)
            smallest[img] = min(quota.max, smallest.get(img, quota.max))
    return (*(Cap(*at, cap) for at, cap in smallest.items()), *_of_a_token(caller))


def _of_a_token(caller: Caller) -> Iterator[Cap]:
    if (client := caller.client) is not None:
        yield Cap("token", client.id, "img", "life", client.images, client.expires)
        if client.micro_usd is not None:
            yield Cap("token", client.id, "usd", "life", client.micro_usd, client.expires)


def places(caller: Caller, user: str | None) -> tuple[Places, ...]:
    """Every concurrency cap that a job must fit under."""
    return tuple(
        Places(level, subject, limits.concurrency)
        for level, subject, limits in levels(caller, user)
        if limits.concurrency is not None
    )
