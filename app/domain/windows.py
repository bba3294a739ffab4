"""Calendar windows: which span of time a budget or image quota counts over, in a tenant's own time zone.

Pure; called by the quota side for every cap of a reservation. The windows of one kind and zone tile the line: each
instant lies in exactly one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import UTC, date, datetime, time, timedelta
from functools import lru_cache
from typing import Literal
from zoneinfo import ZoneInfo

from app.domain.tenant import Per

Span = Per | Literal["life"]  # `life`: all time, for what has an end of its own, such as a client token
FOREVER = (0, 253_402_300_799)
_ELAPSED = {"minute": 60, "hour": 3600}
_latest: dict[tuple[Per, str], tuple[int, int]] = {}  # finding a window costs more than all else a hit does with money


def window(per: Span, timezone: str, at: float) -> tuple[int, int]:
    """The calendar window [start, end) that holds an instant; all three in Unix seconds.

    A day starts at the first instant whose local date has come: at 01:00 where clocks jump over midnight, at the first
    of two midnights where they are set back over it; a date that a zone skipped has no window. A week starts on Monday.
    Minutes and hours are those of the local clock and never longer than 60 and 3,600 seconds: an hour that the clock
    shows twice is two windows, and a change of the clock inside one starts another.

    Raises:
        zoneinfo.ZoneInfoNotFoundError: no such zone; the tenants file has been checked for that.
    """
    if per == "life":
        return FOREVER
    start, end = _latest.get((per, timezone), (0, 0))
    if not start <= at < end:
        start, end = _latest[per, timezone] = _find(per, ZoneInfo(timezone), math.floor(at))
    return start, end


@lru_cache(256)
def local_date(timezone: str, at: float) -> date:
    """The local date of an instant in Unix seconds."""
    return _local(ZoneInfo(timezone), math.floor(at)).date()


def _find(per: Per, zone: ZoneInfo, now: int) -> tuple[int, int]:
    if per in _ELAPSED:
        return _elapsed(_ELAPSED[per], zone, now)
    first = _first_date(per, _local(zone, now).date())
    start = _begin(zone, first)
    # After clocks were set back over midnight the local date is once more that of a window which has ended.
    while now >= (end := _begin(zone, following := _next_date(per, first))):
        first, start = following, end
    return start, end


def _first_date(per: Per, day: date) -> date:
    if per == "week":
        return day - timedelta(days=day.weekday())
    return day.replace(day=1) if per == "month" else day


def _next_date(per: Per, first: date) -> date:
    return _first_date(per, first + timedelta(days={"day": 1, "week": 7, "month": 31}[per]))


def _begin(zone: ZoneInfo, day: date) -> int:
    """The first instant at which the local clock shows this date or a later one."""
    midnight = datetime.combine(day, time(), zone)
    # PEP 495: in a gap fold=0 reads the time with the offset before it, so as the later of two instants.
    before, after = int(midnight.timestamp()), int(midnight.replace(fold=1).timestamp())
    if before <= after:
        return before
    return _first(after, before, lambda instant: _local(zone, instant).date() >= day)


def _elapsed(seconds: int, zone: ZoneInfo, now: int) -> tuple[int, int]:
    offset = _offset(zone, now)
    start = (now + offset) // seconds * seconds - offset
    end = start + seconds
    if _offset(zone, start) != offset:
        start = _first(start, now, lambda instant: _offset(zone, instant) == offset)
    if _offset(zone, end - 1) != offset:
        end = _first(now, end - 1, lambda instant: _offset(zone, instant) != offset)
    return start, end


def _first(low: int, high: int, holds: Callable[[int], bool]) -> int:
    """The first whole second after `low` at which a condition holds that is false at `low` and true at `high`."""
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high


def _local(zone: ZoneInfo, instant: int) -> datetime:
    return datetime.fromtimestamp(instant, UTC).astimezone(zone)


def _offset(zone: ZoneInfo, instant: int) -> int:
    return int((_local(zone, instant).utcoffset() or timedelta()).total_seconds())
