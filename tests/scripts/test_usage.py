"""A day's roll-up moves with the jobs that were reserved on it and nothing else; the list of recent jobs is short."""

from __future__ import annotations

import pytest
import redis

from app.store import keys
from tests.faults.checker import Books
from tests.scripts.desk import DATE, FAR, RECENT, TENANT, USAGE_KEEP, Desk, Limit

DOLLARS = [Limit("tenant", "usd", 1_000, 10)]


def counters(desk: Desk, day: int) -> dict[str, str]:
    found = desk.client.hgetall(keys.usage(TENANT, day))
    return {name.decode(): value.decode() for name, value in found.items()}


def test_a_late_end_moves_the_day_that_the_job_was_reserved_on(desk: Desk) -> None:
    yesterday, today = (desk.now - 90_000, desk.now + 1), (desk.now + 1, desk.now + FAR)
    assert desk.reserve("r1", "a", DOLLARS, yesterday, amount=10)[0] == "ok"
    assert desk.dispatch("r1", "a", 0)[0] == "ok"
    assert desk.finish("r1", "AMBIGUOUS", "DISPATCHING")[0] == "done"
    assert counters(desk, yesterday[0]) == {
        "date": DATE, "images\x1fa": "1", "spent\x1fa": "10", "ambiguous\x1fa": "10",
    }  # fmt: skip
    desk.client.hset(keys.ledger(TENANT), "w:day", f"{today[0] - 1},{today[1]}")
    assert desk.reserve("r2", "a", DOLLARS, (today[0] - 1, today[1]), amount=10)[0] == "ok"
    assert desk.finish("r1", "SETTLED", "AMBIGUOUS", paid=7)[0] == "done"
    assert desk.finish("r1", "SETTLED", "AMBIGUOUS", paid=7)[0] == "already"
    assert counters(desk, yesterday[0]) == {
        "date": DATE, "images\x1fa": "1", "made\x1fa": "1", "spent\x1fa": "7", "ambiguous\x1fa": "0",
    }  # fmt: skip
    assert counters(desk, today[0] - 1) == {"date": DATE}
    assert not Books.read(desk.client, TENANT).violations()


def test_a_day_is_kept_for_its_time_and_forgotten_with_it(desk: Desk) -> None:
    span = (desk.now - 10, desk.now + FAR)
    desk.client.zadd(keys.days(TENANT), {"1": 1})
    assert desk.reserve("r1", "a", DOLLARS, span, amount=10)[0] == "ok"
    assert desk.client.expiretime(keys.usage(TENANT, span[0])) == span[0] + USAGE_KEEP
    assert desk.client.zrange(keys.days(TENANT), 0, -1, withscores=True) == [(str(span[0]).encode(), span[0])]


def test_a_key_lists_its_last_jobs_and_no_more(desk: Desk) -> None:
    span = (desk.now - 10, desk.now + FAR)
    for i in range(RECENT + 3):
        assert desk.reserve(f"r{i}", "a", DOLLARS, span, amount=10)[0] == "ok"
    assert desk.client.zcard(keys.jobs(TENANT, "key_1")) == RECENT
    assert b"r0" not in desk.client.zrange(keys.jobs(TENANT, "key_1"), 0, -1)
    assert 0 < desk.client.pttl(keys.jobs(TENANT, "key_1")) <= 60_000


def test_a_batch_of_free_deliveries_is_counted_once(desk: Desk) -> None:
    day = desk.now - 10
    assert desk.tally("inc_1", 1, day, {"cache\x1fg": 3, "saved-cache\x1fg": 30}) == [1]
    before = desk.everything()
    assert desk.tally("inc_1", 1, day, {"cache\x1fg": 3, "saved-cache\x1fg": 30}) == [0]
    assert desk.everything() == before
    assert desk.tally("inc_2", 1, day, {"cache\x1fg": 1}) == [1]
    assert desk.tally("inc_1", 2, day, {"cache\x1fg": 1}) == [1]
    assert counters(desk, day)["cache\x1fg"] == "5"
    assert desk.client.expiretime(keys.usage(TENANT, day)) == day + USAGE_KEEP
    assert desk.client.zrange(keys.days(TENANT), 0, -1) == [str(day).encode()]


@pytest.mark.parametrize("poisoned", ["usage", "days"])
def test_a_batch_that_meets_a_key_of_another_type_writes_nothing(desk: Desk, poisoned: str) -> None:
    day = desk.now - 10
    desk.client.set(keys.usage(TENANT, day) if poisoned == "usage" else keys.days(TENANT), "not what it should be")
    before = desk.everything()
    with pytest.raises(redis.ResponseError, match="WRONGTYPE"):
        desk.tally("inc_1", 1, day, {"cache\x1fg": 3})
    assert desk.everything() == before
