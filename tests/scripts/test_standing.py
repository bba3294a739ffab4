"""A reservation may hold its money without a concurrency place, and take the place when one is free."""

from __future__ import annotations

from app.store import keys
from tests.faults.books import Books
from tests.scripts.calls import LIMITS, hold, place, span, stand
from tests.scripts.desk import TENANT, Desk

ONE = (("all", 1), ("ada", 2))


def reserved(desk: Desk) -> list[int]:
    """What the windows of LIMITS hold in reserve."""
    return [int(desk.client.hget(limit.key(span(desk)[0]), "reserved") or 0) for limit in LIMITS]


def sound(desk: Desk) -> bool:
    return not list(Books.read(desk.client, TENANT).violations())


def test_where_every_place_is_taken_the_money_is_held_and_no_place(desk: Desk) -> None:
    assert stand(desk, "r1", ONE)[0] == "ok"
    assert stand(desk, "r2", ONE)[::2][:2] == ["stand", 1]
    assert reserved(desk) == [20, 20, 20, 2]
    assert [desk.client.smembers(place(subject)) for subject, _ in ONE] == [{b"r1"}, {b"r1"}]
    assert sound(desk)


def test_it_takes_all_its_places_or_none(desk: Desk) -> None:
    stand(desk, "r1", ONE)
    stand(desk, "r2", ONE)
    before = desk.everything()
    assert desk.sit("r2", "a", ONE) == ["conc", 1]
    assert desk.sit("r2", "a", (("all", 9), ("ada", 1))) == ["conc", 2]
    assert desk.everything() == before
    assert desk.finish("r1", "REFUNDED", "RESERVED")[0] == "done"
    assert desk.sit("r2", "a", ONE)[0] == "ok"
    assert [desk.client.smembers(place(subject)) for subject, _ in ONE] == [{b"r2"}, {b"r2"}]
    assert sound(desk)


def test_a_lost_reply_can_be_asked_for_again(desk: Desk) -> None:
    stand(desk, "r1", ONE)
    assert [stand(desk, "r2", ONE)[0] for _ in range(2)] == ["stand", "stand"]
    assert reserved(desk) == [20, 20, 20, 2]
    desk.finish("r1", "REFUNDED", "RESERVED")
    assert desk.sit("r2", "a", ONE)[0] == "ok"
    before = desk.everything()
    assert desk.sit("r2", "a", ONE)[0] == "ok"
    assert desk.everything() == before
    assert stand(desk, "r2", ONE)[0] == "ok"


def test_its_end_frees_what_it_took_and_no_more(desk: Desk) -> None:
    stand(desk, "r1", ONE)
    stand(desk, "r2", ONE)
    assert desk.finish("r2", "REFUNDED", "RESERVED")[0] == "done"
    assert desk.client.smembers(place("all")) == {b"r1"}
    assert reserved(desk) == [10, 10, 10, 1]
    assert sound(desk)


def test_only_its_owner_seats_it_and_only_before_it_is_sent(desk: Desk) -> None:
    stand(desk, "r1", ONE)
    stand(desk, "r2", ONE)
    desk.finish("r1", "REFUNDED", "RESERVED")
    before = desk.everything()
    assert desk.sit("r2", "b", ONE) == ["state", "RESERVED"]
    assert desk.sit("r9", "a", ONE) == ["state", ""]
    assert desk.everything() == before
    assert desk.dispatch("r2", "a", 0)[0] == "ok"
    assert desk.sit("r2", "a", ONE) == ["state", "DISPATCHING"]


def test_a_refused_window_is_refused_to_one_that_would_stand_too(desk: Desk) -> None:
    for name in (f"r{i}" for i in range(7)):
        stand(desk, name, ONE)
    before = desk.everything()
    assert stand(desk, "r7", ONE)[0] == "limit"
    assert hold(desk, "r8") == ["limit", 4, "0", "7"]
    assert desk.everything() == before


def test_the_sequence_moves_with_the_seat(desk: Desk) -> None:
    stand(desk, "r1", ONE)
    stand(desk, "r2", ONE)
    desk.finish("r1", "REFUNDED", "RESERVED")
    before = int(desk.client.hget(keys.ledger(TENANT), "seq") or 0)
    assert desk.sit("r2", "a", ONE) == ["ok", str(before + 1)]
