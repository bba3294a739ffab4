"""A script that refuses, or that meets a damaged key, leaves everything as it was."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import redis

from app.store import keys
from tests.faults.checker import Books
from tests.scripts.desk import FAR, TENANT, Desk, Limit

Call = Callable[[Desk], object]
LIMITS = [
    Limit("tenant", "usd", 100, 10),
    Limit("key", "usd", 100, 10),
    Limit("user", "usd", 100, 10),
    Limit("user", "img", 5, 1),
]
PLACES = (("all", 3), ("ada", 2))


def span(desk: Desk) -> tuple[int, int]:
    """The window that the first reservation opens and the later ones find open."""
    found: Any = desk.client.hget(keys.ledger(TENANT), "w:day")
    if found:
        start, end = map(int, found.split(b","))
        return start, end
    return desk.now - 1_000, desk.now + FAR


def hold(desk: Desk, name: str, limits: list[Limit] = LIMITS) -> list[object]:
    return desk.reserve(name, "a", limits, span(desk), places=PLACES, amount=10)


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


CALLS: dict[str, tuple[Call, Callable[[Desk], list[str]]]] = {
    "admit": (
        lambda desk: desk.admit([("k1", 1_000_000, 5), ("k2", 1_000_000, 5)]),
        lambda desk: [
            keys.ledger(TENANT),
            keys.key(TENANT, "key_1"),
            *(keys.rate(TENANT, "key", s) for s in ("k1", "k2")),
        ],
    ),
    "reserve": (lambda desk: hold(desk, "new"), lambda desk: desk.reserve_keys("new", LIMITS, span(desk)[0], PLACES)),
    "dispatch": (
        lambda desk: desk.dispatch("held", "a", 0),
        lambda desk: [keys.ledger(TENANT), keys.reservation(TENANT, "held"), keys.key(TENANT, "key_1")],
    ),
    "retract": (
        lambda desk: desk.retract("sent", "a", 0),
        lambda desk: [keys.ledger(TENANT), keys.reservation(TENANT, "sent")],
    ),
    "settle": (
        lambda desk: desk.finish("sent", "SETTLED", "DISPATCHING", paid=7),
        lambda desk: desk.finish_keys("sent"),
    ),
    "refund": (lambda desk: desk.finish("held", "REFUNDED", "RESERVED"), lambda desk: desk.finish_keys("held")),
    "lose": (lambda desk: desk.finish("sent", "AMBIGUOUS", "DISPATCHING"), lambda desk: desk.finish_keys("sent")),
}


@pytest.mark.parametrize("call", CALLS)
def test_a_key_of_another_type_leaves_everything_unchanged(desk: Desk, call: str) -> None:
    work, names = CALLS[call]
    for place in range(len(names(_busy(desk)))):
        poisoned = names(_busy(desk))[place]
        desk.client.delete(poisoned)
        wrong = poisoned.endswith(("k1", "k2"))
        desk.client.hset(poisoned, "x", "1") if wrong else desk.client.set(poisoned, "not what it should be")
        before = desk.everything()
        with pytest.raises(redis.ResponseError, match="WRONGTYPE"):
            work(desk)
        assert desk.everything() == before, f"{call} wrote before it met {poisoned}"


def _busy(desk: Desk) -> Desk:
    """One reservation held, one sent, one ambiguous, one settled: every key exists."""
    desk.open()
    limits = [Limit(x.level, x.kind, 1_000, x.add) for x in LIMITS]
    places = tuple((subject, 100) for subject, _ in PLACES)
    for name in ("held", "sent", "lost", "done"):
        assert desk.reserve(name, "a", limits, span(desk), places=places, amount=10)[0] == "ok"
    assert [desk.dispatch(name, "a", 0)[0] for name in ("sent", "lost", "done")] == ["ok"] * 3
    assert desk.finish("lost", "AMBIGUOUS", "DISPATCHING")[0] == "done"
    assert desk.finish("done", "SETTLED", "DISPATCHING", paid=10)[0] == "done"
    assert desk.admit([("k1", 1_000_000, 5), ("k2", 1_000_000, 5)])[0] == "ok"
    for subject, _ in PLACES:  # room for one more
        desk.client.srem(keys.concurrency(TENANT, "tenant", subject), "held", "sent")
    return desk


@pytest.mark.parametrize("call", ["admit", "reserve", "dispatch"])
@pytest.mark.parametrize("lost", ["another ledger", "an emptied ledger", "an older ledger"])
def test_a_ledger_that_is_not_the_one_we_know_refuses(desk: Desk, call: str, lost: str) -> None:
    _busy(desk)
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
    _busy(desk)
    desk.mark = int(desk.client.hget(keys.ledger(TENANT), "seq") or 0)
    assert desk.dispatch("held", "a", 0)[0] == "ok"


@pytest.mark.parametrize("paid", [-1, 11])
def test_a_price_outside_the_reservation_is_refused(desk: Desk, paid: int) -> None:
    _busy(desk)
    before = desk.everything()
    with pytest.raises(redis.ResponseError, match="outside"):
        desk.finish("sent", "SETTLED", "DISPATCHING", paid=paid)
    assert desk.everything() == before


def test_keys_that_are_not_those_of_the_reservation_are_refused(desk: Desk) -> None:
    _busy(desk)
    before, names = desk.everything(), desk.finish_keys("sent")
    for wrong in (names[:-1], [*names, "kg:{t:acme}:other"], [*names[:-1], "kg:{t:acme}:other"]):
        with pytest.raises(redis.ResponseError, match="not those"):
            desk.run("finish", wrong, ["sent", "SETTLED", 5, "", "DISPATCHING", "owner", "{}", 60_000])
    assert desk.everything() == before


def test_a_revoked_key_reserves_and_dispatches_nothing(desk: Desk) -> None:
    _busy(desk)
    desk.client.hset(keys.key(TENANT, "key_1"), "revoked", "1")
    before = desk.everything()
    assert hold(desk, "new") == ["key", "revoked"]
    assert desk.dispatch("held", "a", 0) == ["key", "revoked"]
    assert desk.everything() == before
    assert desk.finish("sent", "SETTLED", "DISPATCHING", paid=10)[0] == "done"  # what was sent is settled all the same
    assert not [broken for broken in Books.read(desk.client, TENANT).violations() if "places" not in broken.text]
