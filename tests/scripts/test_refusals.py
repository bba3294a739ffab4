"""A script that refuses, or that meets a damaged key, leaves everything as it was."""

from __future__ import annotations

import pytest
import redis

from app.store import keys
from tests.faults.books import Books
from tests.scripts.calls import CALLS, LIMITS, busy, hold, span
from tests.scripts.desk import TENANT, Desk, Limit


@pytest.mark.parametrize("narrow", range(len(LIMITS)))
def test_a_reservation_that_one_level_refuses_holds_nothing_at_any(desk: Desk, narrow: int) -> None:
    assert hold(desk, "r1")[0] == "ok"
    before = desk.everything()
    full = [Limit(x.level, x.kind, x.add, x.add) if i == narrow else x for i, x in enumerate(LIMITS)]
    assert hold(desk, "r2", full) == ["limit", narrow + 1, "0", str(LIMITS[narrow].add)]
    assert desk.everything() == before


def test_a_reservation_without_a_place_holds_nothing(desk: Desk) -> None:
    assert [hold(desk, name)[0] for name in ("r1", "r2")] == ["ok", "ok"]
    before = desk.everything()
    assert hold(desk, "r3") == ["conc", 2]
    assert desk.everything() == before


def test_a_cap_is_used_to_its_last_unit_and_no_further(desk: Desk) -> None:
    limits = [Limit("tenant", "usd", 30, 10)]
    replies = [hold_in(desk, f"r{i}", limits)[0] for i in range(4)]
    assert replies == ["ok", "ok", "ok", "limit"]


def hold_in(desk: Desk, name: str, limits: list[Limit]) -> list[object]:
    return desk.reserve(name, "a", limits, span(desk), amount=10)


@pytest.mark.parametrize("call", ["admit", "reserve", "reserve queued", "dispatch", "seat"])
@pytest.mark.parametrize("lost", ["another ledger", "an emptied ledger", "an older ledger"])
def test_a_ledger_that_is_not_the_one_we_know_refuses(desk: Desk, call: str, lost: str) -> None:
    busy(desk)
    desk.mark = int(desk.client.hget(keys.ledger(TENANT), "seq") or 0)
    if lost == "another ledger":
        desk.client.hset(keys.ledger(TENANT), "epoch", "led_2")
    elif lost == "an emptied ledger":
        desk.client.delete(keys.ledger(TENANT))
    else:
        desk.client.hincrby(keys.ledger(TENANT), "seq", -1)
    before = desk.everything()
    reply = CALLS[call][0](desk)
    assert isinstance(reply, list)
    assert reply[0] == "epoch"
    assert desk.everything() == before


def test_a_failover_that_lost_nothing_goes_on_by_itself(desk: Desk) -> None:
    busy(desk)
    desk.mark = int(desk.client.hget(keys.ledger(TENANT), "seq") or 0)
    assert desk.dispatch("held", "a", 0)[0] == "ok"


@pytest.mark.parametrize("paid", [-1, 11])
def test_a_price_outside_the_reservation_is_refused(desk: Desk, paid: int) -> None:
    busy(desk)
    before = desk.everything()
    with pytest.raises(redis.ResponseError, match="outside"):
        desk.finish("sent", "SETTLED", "DISPATCHING", paid=paid)
    assert desk.everything() == before


def test_keys_that_are_not_those_of_the_reservation_are_refused(desk: Desk) -> None:
    busy(desk)
    before, names = desk.everything(), desk.finish_keys("sent")
    for wrong in (names[:-1], [*names, "kg:{t:acme}:other"], [*names[:-1], "kg:{t:acme}:other"]):
        with pytest.raises(redis.ResponseError, match="not those"):
            desk.run("finish", wrong, ["sent", "SETTLED", 5, "", "DISPATCHING", "owner", "{}", 60_000])
    assert desk.everything() == before


def test_a_revoked_key_reserves_and_dispatches_nothing(desk: Desk) -> None:
    busy(desk)
    desk.client.hset(keys.key(TENANT, "key_1"), "revoked", "1")
    before = desk.everything()
    assert hold(desk, "new") == ["key", "revoked"]
    assert desk.dispatch("held", "a", 0) == ["key", "revoked"]
    assert desk.everything() == before
    assert desk.finish("sent", "SETTLED", "DISPATCHING", paid=10)[0] == "done"  # what was sent is settled all the same
    assert not [broken for broken in Books.read(desk.client, TENANT).violations() if "places" not in broken.text]


@pytest.mark.parametrize(("name", "end"), [("held", "REFUNDED"), ("sent", "SETTLED")])
def test_what_has_ended_stays_ended_whatever_a_caller_believes(desk: Desk, name: str, end: str) -> None:
    busy(desk)
    assert desk.finish(name, end, "RESERVED,DISPATCHING", paid=5)[0] == "done"
    before = desk.everything()
    for other in {"SETTLED", "REFUNDED", "AMBIGUOUS"} - {end}:
        assert desk.finish(name, other, end, by="reaper") == ["state", end]
    assert desk.everything() == before
