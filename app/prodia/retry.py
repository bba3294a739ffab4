"""When a job may be sent to Prodia again, and how long to wait first.

The pipeline makes one `Retries` per job and asks it after each `Fault`; all of a process share one `RetryBudget`. Only
outcomes that are proven unbilled are in `faults.RETRY`, so nothing here can pay twice.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from random import uniform

from app.prodia.faults import RETRY, Fault

LONGEST_RETRY_AFTER = 3600.0
FIRST_BACKOFF, LONGEST_BACKOFF = 0.5, 8.0

_NUMBER = re.compile(r"[0-9]+(?:\.[0-9]+)?")
_DATE = re.compile(r"[A-Z][a-z]{2,8},? [ -~]{15,40}")


def parse_retry_after(values: Sequence[str], now: datetime) -> float | None:
    """Seconds to wait, 0 to 3600, by all `Retry-After` headers of an answer; None if none of them can be read.

    Takes whole and decimal seconds and the three HTTP dates (RFC 9110, 5.6.7 and 10.2.3; a past date is 0). Of several
    readable values the longest counts; a comma-joined list of numbers is several values.

    Args:
        now: the current time, with a time zone.
    """
    found = [seconds for value in values for seconds in _read(value, now)]
    return min(max(found), LONGEST_RETRY_AFTER) if found else None


def _read(value: str, now: datetime) -> list[float]:
    value = value.strip()
    if len(value) > 64:  # no date or sane number is as long, and int() and the date parser are spared
        return [LONGEST_RETRY_AFTER] if re.fullmatch(r"[0-9]+", value) else []
    numbers = [part.strip() for part in value.split(",")]
    if all(_NUMBER.fullmatch(number) for number in numbers):
        return [float(number) for number in numbers]
    if not _DATE.fullmatch(value):
        return []
    try:
        moment = parsedate_to_datetime(value)
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=UTC)
        return [max(0.0, (moment - now).total_seconds())]
    except (ValueError, TypeError, IndexError, OverflowError):
        return []


class RetryBudget:
    """Keeps re-sends to a share of first calls, over time, so that retries cannot multiply an upstream's trouble.

    Every first call deposits `ratio`, every re-send withdraws 1; no more than `cap` is saved up. `advance` is there at
    the start and is paid back by the first deposits: at no time have there been more re-sends than
    max(advance, ratio * first calls).
    """

    _UNIT = 1000  # thousandths of a call: sums of 0.1 would drift

    def __init__(self, *, ratio: float = 0.1, cap: int = 10, advance: int = 3) -> None:
        self._deposit = round(ratio * self._UNIT)
        self._cap = cap * self._UNIT
        self._saved = self._owed = advance * self._UNIT

    def deposit(self) -> None:
        repaid = min(self._owed, self._deposit)
        self._owed -= repaid
        self._saved = min(self._cap, self._saved + self._deposit - repaid)

    def withdraw(self) -> bool:
        """Whether one re-send may be made now."""
        if self._saved < self._UNIT:
            return False
        self._saved -= self._UNIT
        return True


@dataclass
class Retries:
    """The re-sends of one job. Make one when its first call is about to go out: that is what deposits in the budget.

    Args:
        budget: shared by all jobs of the process.
        busy_tries: calls in all for a job that is answered 429.
        jitter: draws from (low, high); full jitter over an exponential ceiling when no `Retry-After` was given.
    """

    budget: RetryBudget
    busy_tries: int = 1 + RETRY["busy"]
    jitter: Callable[[float, float], float] = uniform
    _resent: Counter[str] = field(default_factory=Counter, init=False)

    def __post_init__(self) -> None:
        self.budget.deposit()

    def next_wait(self, fault: Fault, *, remaining: float) -> float | None:
        """Seconds to wait before the next call, or None to give up.

        Args:
            remaining: seconds left of the job's deadline. A wait that would not end before it is not begun: the caller
                is better served by the refusal now.
        """
        allowed = self.busy_tries - 1 if fault.outcome == "busy" else RETRY.get(fault.outcome, 0)
        if self._resent[fault.outcome] >= allowed:
            return None
        wait = fault.retry_after
        if wait is None:
            wait = self.jitter(0.0, min(LONGEST_BACKOFF, FIRST_BACKOFF * 2 ** self._resent.total()))
        if wait >= remaining or not self.budget.withdraw():
            return None
        self._resent[fault.outcome] += 1
        return wait
