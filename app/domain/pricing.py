"""Money arithmetic, all of it: integer micro-dollars (1 USD = 1,000,000) in, integer micro-dollars out.

A price is known before a job is sent, so a cap can be exact. Pure; called by the catalogue, the pipeline and replies.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import ROUND_CEILING, Decimal, InvalidOperation
from functools import lru_cache

MICRO = 1_000_000
MAX_USD = 1_000_000_000  # micro-dollars up to nine times this are counted exactly by a script's numbers


@lru_cache(1024)
def parse_usd(text: str) -> int:
    """Micro-dollars of a decimal string such as "0.04".

    Raises:
        ValueError: not a plain positive decimal with at most six places, or more than a script can count exactly.
    """
    try:
        amount = Decimal(text) * MICRO
    except InvalidOperation:
        raise ValueError("must be a decimal amount of dollars such as 0.04") from None
    if not amount.is_finite() or not 0 < amount <= MAX_USD * MICRO or amount != amount.to_integral_value():
        raise ValueError(f"must be above zero, up to {MAX_USD}, and have at most six decimal places")
    return int(amount)


def parse_micro(text: str) -> int:
    """A price on a bill in whole micro-dollars. Raises ValueError."""
    if not re.fullmatch(r"[0-9]{1,15}", text, re.ASCII):
        raise ValueError("must be a whole number of micro-dollars, 0 or more")
    return int(text)


def parse_billed(text: str) -> int:
    """A price on a bill in dollars, such as "0.04" or "0", as micro-dollars; a fraction is rounded up.

    Raises:
        ValueError: not a plain decimal of 0 or more.
    """
    if not re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,18})?", text, re.ASCII):
        raise ValueError("must be dollars such as 0.04, 0 or more")
    return int((Decimal(text) * MICRO).to_integral_value(ROUND_CEILING))


def usd(micro: int) -> str:
    """A dollar amount with all six places: 40000 -> "0.040000"."""
    sign = "-" if micro < 0 else ""
    return f"{sign}{abs(micro) // MICRO}.{abs(micro) % MICRO:06d}"


@dataclass(frozen=True, slots=True)
class Settlement:
    """What a finished job costs whom, in micro-dollars: the tenant pays `paid`, the operator bears `drift`."""

    paid: int
    drift: int
    billed: int


def actual(reserved: int, reported: int | None) -> Settlement:
    """The price of a completed job: min(reported, reserved); what lies above is the operator's drift.

    A completed answer without a price settles at the reservation.
    """
    billed = reserved if reported is None else reported
    return Settlement(paid=min(billed, reserved), drift=max(0, billed - reserved), billed=billed)
