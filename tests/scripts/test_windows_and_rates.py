"""Windows belong to the ledger, not to a caller's clock or time zone; no stretch of time exceeds a request rate."""

from __future__ import annotations

import time

from app.domain.windows import window
from app.store import keys
from tests.faults.checker import Books
from tests.scripts.desk import FAR, TENANT, Desk, Limit

DOLLARS = [Limit("tenant", "usd", 30, 10)]


def test_a_changed_time_zone_waits_for_the_open_window_to_end(desk: Desk) -> None:
    berlin, tokyo = window("day", "Europe/Berlin", desk.now), window("day", "Asia/Tokyo", desk.now)
    assert berlin != tokyo
    assert desk.reserve("r1", "a", DOLLARS, berlin, amount=10)[0] == "ok"
    reply = desk.reserve("r2", "a", DOLLARS, tokyo, amount=10)
    assert reply[:4] == ["span", "day", *map(str, berlin)]
    assert desk.reserve("r2", "a", DOLLARS, berlin, amount=10)[0] == "ok"
    desk.client.hset(keys.ledger(TENANT), "w:day", f"{berlin[0] - 86_400},{desk.now - 1}")  # the day ends
    assert desk.reserve("r3", "a", DOLLARS, tokyo, amount=10)[0] == "ok"


def test_a_caller_with_a_wrong_clock_is_told_the_time_and_opens_nothing(desk: Desk) -> None:
    before = desk.everything()
    for wrong in (-3 * 86_400, 3 * 86_400):
        proposal = window("day", "UTC", desk.now + wrong)
        word, per, start, end, now = desk.reserve("r1", "a", DOLLARS, proposal, amount=10)
        assert (word, per, start, end) == ("span", "day", "", "")
        assert abs(int(now) - time.time()) < 5
        assert desk.everything() == before
    assert desk.reserve("r1", "a", DOLLARS, window("day", "UTC", int(now)), amount=10)[0] == "ok"


def test_a_wrong_clock_does_not_get_a_second_window(desk: Desk) -> None:
    today, tomorrow = window("day", "UTC", desk.now), window("day", "UTC", desk.now + 86_400)
    assert [desk.reserve(f"r{i}", "a", DOLLARS, today, amount=10)[0] for i in range(3)] == ["ok"] * 3
    assert desk.reserve("r4", "a", DOLLARS, tomorrow, amount=10)[0] == "span"
    assert desk.reserve("r4", "a", DOLLARS, today, amount=10)[0] == "limit"


def test_a_late_end_moves_the_window_that_it_was_reserved_in(desk: Desk) -> None:
    """A window of one second, so that it is over when the job ends."""
    first = (desk.now - 1, desk.now + 1)
    assert desk.reserve("r1", "a", DOLLARS, first, amount=10)[0] == "ok"
    assert desk.dispatch("r1", "a", 0)[0] == "ok"
    time.sleep(1.1)
    second = (first[1], desk.now + FAR)
    assert desk.reserve("r2", "a", DOLLARS, second, amount=10)[0] == "ok"
    assert desk.finish("r1", "SETTLED", "DISPATCHING", paid=8)[0] == "done"
    books = Books.read(desk.client, TENANT)
    assert not books.violations()
    assert books.windows == {DOLLARS[0].key(first[0]): (8, 0), DOLLARS[0].key(second[0]): (0, 10)}


def test_a_request_rate_is_never_exceeded_over_any_stretch_of_time(desk: Desk) -> None:
    rate, burst = 50, 10
    admitted, refused, until = [], 0, time.monotonic() + 1.5
    while time.monotonic() < until:
        reply = desk.admit([("k1", 1_000_000 // rate, burst)])
        if reply[0] == "ok":
            admitted.append(int(reply[1]))
        else:
            refused += 1
            assert 0 < int(reply[3]) <= 1_000_000 // rate
    assert refused > 0
    assert len(admitted) >= burst + rate  # and it is granted in full
    for first, start in enumerate(admitted):
        for last in range(first, len(admitted)):
            assert last - first + 1 <= burst + rate * (admitted[last] - start) / 1e6 + 1e-6


def test_of_two_rates_all_are_taken_or_none(desk: Desk) -> None:
    wide, narrow = ("k1", 1_000_000, 100), ("k2", 1_000_000, 1)
    assert desk.admit([wide, narrow])[0] == "ok"
    taken = desk.client.get(keys.rate(TENANT, "key", "k1"))
    assert desk.admit([wide, narrow])[:3:2] == ["rate", 2]
    assert desk.client.get(keys.rate(TENANT, "key", "k1")) == taken


def test_a_clock_that_stepped_back_locks_nobody_out_for_longer_than_the_limit(desk: Desk) -> None:
    interval, burst = 20_000, 2
    desk.client.set(keys.rate(TENANT, "key", "k1"), str((desk.now + 86_400) * 1_000_000))
    reply = desk.admit([("k1", interval, burst)])
    assert reply[0] == "rate"
    assert int(reply[3]) <= interval * burst
