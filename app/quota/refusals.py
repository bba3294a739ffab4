"""The public face of quota: refusals with limit, spent, reserved and reset, and the state of a request rate.

Pure; called by the ledger with what its scripts answered.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from app.domain.catalog import JobType
from app.domain.job import Caller
from app.domain.pricing import usd
from app.domain.tenant import Rate
from app.errors import GatewayError, Refused
from app.quota.limits import Cap, Places, levels

SOON = 60  # seconds that a client may be asked to wait for a limit


@dataclass(frozen=True, slots=True)
class RateState:
    """One request-rate limit after it was asked: for the RateLimit headers."""

    level: str
    rate: Rate
    remaining: int
    reset_seconds: int


def describe_cap(cap: Cap, span: tuple[int, int], spent: int, reserved: int) -> dict[str, Any]:
    """A cap in public words: dollars as strings beside integer micro-dollars, `reset` in Unix seconds."""
    remaining = max(0, cap.cap - spent - reserved)
    body: dict[str, Any] = {"level": cap.level, "per": cap.per, "reset": cap.until or span[1]}
    if cap.kind == "img":
        return body | {"kind": "images", "limit": cap.cap, "spent": spent, "reserved": reserved, "remaining": remaining}
    amounts = {"limit": cap.cap, "spent": spent, "reserved": reserved, "remaining": remaining}
    micro = {f"{name}_micro_usd": value for name, value in amounts.items()}
    return body | {"kind": "budget"} | {name: usd(value) for name, value in amounts.items()} | micro


def cap_refusal(cap: Cap, span: tuple[int, int], spent: int, reserved: int, add: int, now: float) -> Refused:
    """Exhausted by what is spent (402, or 429 for images), or only by what is outstanding (429, try again soon)."""
    facts = describe_cap(cap, span, spent, reserved)
    noun = "budget" if cap.kind == "usd" else "image quota"
    whose = f"the {cap.level}'s {noun} of this {cap.per}" if cap.until is None else f"this client token's {noun}"
    by_spent = spent + add > cap.cap
    until_reset = min(SOON, max(1, math.ceil(span[1] - now)))
    if cap.kind == "usd":
        facts["price_micro_usd"] = add
    if cap.kind == "usd" and by_spent:
        left = usd(max(0, cap.cap - spent))
        text = f"This costs ${usd(add)}; ${left} is left of {whose}."
        return _lasting(Refused("budget_exhausted", text, **facts), span[1] - now)
    if cap.kind == "usd":
        text = f"The rest of {whose} is reserved by jobs in flight."
        return Refused("budget_reserved", text, retry_after=2, **facts)
    text = f"{whose[0].upper()}{whose[1:]} is {'used up' if by_spent else 'taken by jobs in flight'}."
    wait = 2 if not by_spent else until_reset if cap.until is None else None  # a token's count is never reset
    refusal = Refused("image_quota_exhausted", text, retry_after=wait, **facts)
    return _lasting(refusal, span[1] - now if by_spent else 0)


def place_refusal(seat: Places, job_type: JobType) -> Refused:
    """Every concurrent job of a level is taken; half of a typical job is when one comes free."""
    return Refused(
        "concurrency_limited",
        f"All {seat.cap} concurrent jobs of this {seat.level} are taken.",
        retry_after=math.ceil(job_type.typical_seconds / 2),
        level=seat.level,
        limit=seat.cap,
    )


def told(caller: Caller, refusal: GatewayError) -> GatewayError:
    """A refusal as its caller may know it: to a client token, nothing of what its key and tenant have and spent."""
    if caller.client is None or refusal.extra.get("level") not in ("tenant", "key"):
        return refusal
    text = "A limit behind this client token leaves no room for this."
    hidden = Refused(refusal.code, text, retry_after=refusal.retry_after)
    hidden.lasting = refusal.lasting
    return hidden


def key_refusal(reason: bytes) -> Refused:
    """The one face of every key that is not valid."""
    return Refused("unauthenticated", f"This key is {reason.decode()}.")


def rates_of(caller: Caller, user: str | None) -> list[tuple[str, str, Rate]]:
    wanted = ("user",) if user is not None else ("tenant", "key")
    return [
        (level, subject, limits.requests)
        for level, subject, limits in levels(caller, user)
        if level in wanted and limits.requests is not None
    ]


def gcra_args(rates: list[tuple[str, str, Rate]]) -> list[int]:
    """Emission interval in microseconds, rounded up so that the rate is never exceeded, and burst, per rate."""
    return [value for _, _, rate in rates for value in (-(-rate.seconds * 1_000_000 // rate.count), rate.burst)]


def rate_states(rates: list[tuple[str, str, Rate]], reply: list[bytes]) -> list[RateState]:
    return [
        RateState(level, rate, int(reply[2 * i]), math.ceil(int(reply[2 * i + 1]) / 1e6))
        for i, (level, _, rate) in enumerate(rates)
    ]


def rate_refusal(rates: list[tuple[str, str, Rate]], reply: list[bytes]) -> Refused:
    level, _, rate = rates[int(reply[2]) - 1]
    refusal = Refused(
        "rate_limited",
        f"This {level} may make {rate.count} requests in {rate.seconds} s.",
        retry_after=max(1, math.ceil(int(reply[3]) / 1e6)),
        level=level, limit=rate.count, window_seconds=rate.seconds,
    )  # fmt: skip
    refusal.rates = rate_states(rates, reply[4:])  # type: ignore[attr-defined]
    return _lasting(refusal, refusal.retry_after or 0)


def _lasting(refusal: Refused, seconds: float) -> Refused:
    """The refusal of a limit that is reset in so many seconds."""
    refusal.lasting = seconds > SOON
    return refusal
