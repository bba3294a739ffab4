"""Calendar windows: each instant lies in exactly one, whatever the clocks of the zone did."""

from __future__ import annotations

import zoneinfo
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from app.domain.tenant import PERS, Per
from app.domain.windows import window

DAY, HOUR = 86_400, 3600


def unix(text: str) -> int:
    """Unix seconds of an ISO time with its offset."""
    return int(datetime.fromisoformat(text).timestamp())


def local(zone: str, instant: int) -> str:
    return datetime.fromtimestamp(instant, ZoneInfo(zone)).isoformat()


def lengths(per: Per, zone: str, at: str, count: int) -> list[int]:
    """Lengths in seconds of consecutive windows, from the one that holds an instant."""
    found, moment = [], unix(at)
    for _ in range(count):
        start, moment = window(per, zone, moment)
        found.append(moment - start)
    return found


@pytest.mark.parametrize(
    ("per", "start", "end"),
    [
        ("minute", "2026-11-24T13:07:00+01:00", "2026-11-24T13:08:00+01:00"),
        ("hour", "2026-11-24T13:00:00+01:00", "2026-11-24T14:00:00+01:00"),
        ("day", "2026-11-24T00:00:00+01:00", "2026-11-25T00:00:00+01:00"),
        ("week", "2026-11-23T00:00:00+01:00", "2026-11-30T00:00:00+01:00"),
        ("month", "2026-11-01T00:00:00+01:00", "2026-12-01T00:00:00+01:00"),
    ],
)
def test_a_window_is_the_calendar_s_in_the_tenant_s_zone(per: Per, start: str, end: str) -> None:
    assert window(per, "Europe/Berlin", unix("2026-11-24T13:07:31+01:00") + 0.75) == (unix(start), unix(end))


def test_a_window_ends_before_its_end_and_holds_its_start() -> None:
    start, end = window("day", "UTC", unix("2026-05-05T12:00:00+00:00"))
    assert window("day", "UTC", start) == (start, end)
    assert window("day", "UTC", end - 0.001) == (start, end)
    assert window("day", "UTC", end)[0] == end


def test_a_week_starts_on_monday_also_across_a_new_year() -> None:
    start, end = window("week", "UTC", unix("2027-01-01T12:00:00+00:00"))
    assert (start, end) == (unix("2026-12-28T00:00:00+00:00"), unix("2027-01-04T00:00:00+00:00"))


def test_months_end_where_they_end() -> None:
    assert [days // DAY for days in lengths("month", "UTC", "2027-12-31T23:59:59+00:00", 4)] == [31, 31, 29, 31]
    assert window("month", "UTC", unix("2028-01-31T23:59:59+00:00"))[1] == unix("2028-02-01T00:00:00+00:00")


@pytest.mark.parametrize(
    ("zone", "spring", "autumn"),
    [
        ("Europe/Berlin", "2026-03-28T12:00:00+01:00", "2026-10-24T12:00:00+02:00"),
        ("America/New_York", "2026-03-07T12:00:00-05:00", "2026-10-31T12:00:00-04:00"),
        ("America/Santiago", "2026-09-05T12:00:00-04:00", "2026-04-03T12:00:00-03:00"),
        ("Asia/Beirut", "2026-03-28T12:00:00+02:00", "2026-10-23T12:00:00+03:00"),
    ],
)
def test_the_day_of_a_clock_change_has_23_or_25_hours(zone: str, spring: str, autumn: str) -> None:
    assert lengths("day", zone, spring, 3) == [24 * HOUR, 23 * HOUR, 24 * HOUR]
    assert lengths("day", zone, autumn, 3) == [24 * HOUR, 25 * HOUR, 24 * HOUR]


@pytest.mark.parametrize(
    ("zone", "at", "start"),
    [
        ("America/Santiago", "2026-09-06T12:00:00-03:00", "2026-09-06T01:00:00-03:00"),
        ("Asia/Beirut", "2026-03-29T12:00:00+03:00", "2026-03-29T01:00:00+03:00"),
        ("America/Toronto", "1919-03-31T12:00:00-04:00", "1919-03-31T00:30:00-04:00"),
    ],
)
def test_a_day_whose_midnight_does_not_exist_starts_at_its_first_instant(zone: str, at: str, start: str) -> None:
    begin = window("day", zone, unix(at))[0]
    assert local(zone, begin) == start
    assert window("day", zone, begin - 1)[1] == begin


def test_a_day_with_two_midnights_starts_at_the_first_and_keeps_the_hour_between_them() -> None:
    # St John's set its clocks back at 00:01, to 23:01 of the day before.
    start, end = window("day", "America/St_Johns", unix("2010-11-07T12:00:00-03:30"))
    assert local("America/St_Johns", start) == "2010-11-07T00:00:00-02:30"
    assert end - start == 25 * HOUR
    back_again = unix("2010-11-06T23:30:00-03:30")
    assert window("day", "America/St_Johns", back_again) == (start, end)
    assert window("day", "America/St_Johns", start - 1)[1] == start


def test_a_date_that_a_zone_skipped_has_no_window() -> None:
    # Samoa went from 29 to 31 December 2011 when it changed sides of the date line.
    start, end = window("day", "Pacific/Apia", unix("2011-12-29T12:00:00-10:00"))
    assert local("Pacific/Apia", start) == "2011-12-29T00:00:00-10:00"
    assert local("Pacific/Apia", end) == "2011-12-31T00:00:00+14:00"
    assert end - start == DAY
    assert window("day", "Pacific/Apia", end) == (end, end + DAY)
    assert lengths("week", "Pacific/Apia", "2011-12-29T12:00:00-10:00", 2) == [6 * DAY, 7 * DAY]


def test_hours_follow_an_offset_of_three_quarters() -> None:
    start, end = window("hour", "Asia/Kathmandu", unix("2026-01-01T10:20:00+05:45"))
    assert (local("Asia/Kathmandu", start), end - start) == ("2026-01-01T10:00:00+05:45", HOUR)
    assert local("Asia/Kathmandu", window("day", "Asia/Kathmandu", start)[0]) == "2026-01-01T00:00:00+05:45"


def test_an_hour_that_the_clock_shows_twice_is_two_windows() -> None:
    first = window("hour", "Europe/Berlin", unix("2026-10-25T02:30:00+02:00"))
    second = window("hour", "Europe/Berlin", unix("2026-10-25T02:30:00+01:00"))
    assert first == (unix("2026-10-25T02:00:00+02:00"), unix("2026-10-25T02:00:00+01:00"))
    assert second == (first[1], first[1] + HOUR)


def test_a_change_inside_an_hour_starts_another_window() -> None:
    # Lord Howe Island moves its clocks by half an hour: back from 02:00 to 01:30, forward from 02:00 to 02:30.
    assert lengths("hour", "Australia/Lord_Howe", "2026-04-05T01:15:00+11:00", 3) == [HOUR, HOUR // 2, HOUR]
    assert lengths("hour", "Australia/Lord_Howe", "2026-10-04T01:15:00+10:30", 3) == [HOUR, HOUR // 2, HOUR]


def test_an_unknown_zone_is_an_error_and_not_another_zone() -> None:
    with pytest.raises(ZoneInfoNotFoundError):
        window("day", "Europe/Nowhere", 0)


ZONES = sorted(zoneinfo.available_timezones() - {"localtime", "Factory"})
TRICKY = [
    "Europe/Berlin", "America/New_York", "America/Santiago", "Asia/Beirut", "Asia/Kathmandu", "Pacific/Apia",
    "Australia/Lord_Howe", "America/St_Johns", "Africa/Casablanca", "America/Nuuk", "Asia/Gaza", "Africa/Cairo",
    "America/Havana", "Atlantic/Azores", "Pacific/Kwajalein", "Antarctica/Troll",
]  # fmt: skip
INSTANTS = st.integers(-2_000_000_000, 4_000_000_000) | st.floats(-2e9, 4e9)


def check(per: Per, zone: str, at: float) -> None:
    """An instant's window holds it, is the window of all its instants, and touches its neighbours."""
    start, end = window(per, zone, at)
    assert start <= at < end
    for inside in (start, (start + end) // 2, end - 1):
        assert window(per, zone, inside) == (start, end)
    assert window(per, zone, start - 1)[1] == start
    assert window(per, zone, end)[0] == end
    longest = {"minute": 60, "hour": HOUR, "day": 49 * HOUR, "week": 8 * DAY, "month": 32 * DAY}
    assert end - start <= longest[per]


@settings(max_examples=250, deadline=None)
@given(st.sampled_from(PERS), st.sampled_from(TRICKY) | st.sampled_from(ZONES), INSTANTS)
@example("day", "Pacific/Apia", unix("2011-12-30T10:00:00+00:00"))
@example("day", "America/St_Johns", unix("2010-11-07T02:30:30+00:00"))
@example("hour", "Africa/Monrovia", unix("1972-01-07T00:30:00+00:00"))
@example("minute", "Africa/Monrovia", unix("1972-01-07T00:44:29+00:00"))
def test_windows_tile_the_line_without_gap_or_overlap(per: Per, zone: str, at: float) -> None:
    check(per, zone, at)


def changes(zone: str) -> list[int]:
    """Every change of a zone's offset from 1975 to 2040, to the second."""
    info = ZoneInfo(zone)

    def offset(instant: int) -> timedelta | None:
        return datetime.fromtimestamp(instant, UTC).astimezone(info).utcoffset()

    found, low, last = [], unix("1975-01-01T00:00:00+00:00"), unix("2040-01-01T00:00:00+00:00")
    while low < last:
        high = low + 7 * DAY
        if offset(low) != offset(high):
            left, right = low, high
            while right - left > 1:
                middle = (left + right) // 2
                left, right = (left, middle) if offset(middle) != offset(low) else (middle, right)
            found.append(right)
        low = high
    return found


@pytest.mark.parametrize("zone", TRICKY)
def test_windows_tile_the_line_around_every_change_of_a_zone_s_clocks(zone: str) -> None:
    moments = changes(zone)
    assert moments
    for moment in moments[:: max(1, len(moments) // 24)]:
        for per in PERS:
            for near in (moment - HOUR - 1, moment - 1, moment, moment + 1, moment + HOUR):
                check(per, zone, near)
