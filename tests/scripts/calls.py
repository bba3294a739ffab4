"""Every call of a money script that a gateway makes, on a ledger in which every key exists; also for the row on damaged
keys."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from app.store import keys
from tests.scripts.desk import FAR, NAME, TENANT, Desk, Limit, job

Call = Callable[[Desk], object]
LIMITS = [
    Limit("tenant", "usd", 100, 10),
    Limit("key", "usd", 100, 10),
    Limit("user", "usd", 100, 10),
    Limit("user", "img", 7, 1),
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
    """One image, both places, and ten micro-dollars at every level."""
    return desk.reserve(name, "a", limits, span(desk), places=PLACES, amount=10)


def stand(desk: Desk, name: str, places: tuple[tuple[str, int], ...] = PLACES) -> list[object]:
    """As `hold`, without a place where none is free."""
    return desk.reserve(name, "a", LIMITS, span(desk), places=places, amount=10, stand=True)


def place(subject: str) -> str:
    """A set of concurrent jobs."""
    return keys.concurrency(TENANT, "tenant", subject)


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
    "reserve standing": (
        lambda desk: stand(desk, "new"),
        lambda desk: desk.reserve_keys("new", LIMITS, span(desk)[0], PLACES),
    ),
    "sit": (
        lambda desk: desk.sit("stands", "a", PLACES),
        lambda desk: [keys.ledger(TENANT), keys.reservation(TENANT, "stands"), *(place(s) for s, _ in PLACES)],
    ),
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
    "claim": (lambda desk: desk.claim("c1", "a"), lambda desk: [NAME]),
    "close": (lambda desk: desk.close("c1"), lambda desk: [NAME]),
    "dispatch named": (
        lambda desk: desk.dispatch("named", "a", 0),
        lambda desk: [keys.ledger(TENANT), keys.reservation(TENANT, "named"), keys.key(TENANT, "key_1"), NAME],
    ),
    "refund named": (
        lambda desk: desk.finish("named", "REFUNDED", "RESERVED"),
        lambda desk: desk.finish_keys("named"),
    ),
    "reserve queued": (
        lambda desk: desk.reserve("new", "a", LIMITS, span(desk), amount=10, queued=True),
        lambda desk: [
            *desk.reserve_keys("new", LIMITS, span(desk)[0]),
            keys.queue(TENANT),
            keys.job(TENANT, job("new")),
            keys.waiting(TENANT),
            keys.queued_bytes(TENANT),
        ],
    ),
    "seat": (
        lambda desk: desk.seat("waits", "a", PLACES),
        lambda desk: [
            keys.ledger(TENANT),
            keys.reservation(TENANT, "waits"),
            keys.job(TENANT, job("waits")),
            keys.waiting(TENANT),
            *(place(s) for s, _ in PLACES),
        ],
    ),
    "unseat": (
        lambda desk: desk.unseat("seated", "a", 1),
        lambda desk: [
            keys.ledger(TENANT),
            keys.reservation(TENANT, "seated"),
            keys.waiting(TENANT),
            *(place(s) for s, _ in PLACES),
        ],
    ),
    "lose": (lambda desk: desk.finish("sent", "AMBIGUOUS", "DISPATCHING"), lambda desk: desk.finish_keys("sent")),
}


def busy(desk: Desk) -> Desk:
    """One reservation held, one held under a name, one held without a place, one sent, one ambiguous, one settled, one
    in the queue, and one that a worker has taken out of it."""
    desk.open()
    limits = [Limit(x.level, x.kind, 1_000, x.add) for x in LIMITS]
    places = tuple((subject, 100) for subject, _ in PLACES)
    for name in ("held", "sent", "lost", "done"):
        assert desk.reserve(name, "a", limits, span(desk), places=places, amount=10)[0] == "ok"
    full = tuple((subject, 1) for subject, _ in PLACES)
    assert desk.reserve("stands", "a", limits, span(desk), places=full, amount=10, stand=True)[0] == "stand"
    assert desk.claim("c1", "a")[0] == "yours"
    assert desk.reserve("named", "a", limits, span(desk), places=places, amount=10, claim="c1")[0] == "ok"
    assert [desk.dispatch(name, "a", 0)[0] for name in ("sent", "lost", "done")] == ["ok"] * 3
    assert desk.finish("lost", "AMBIGUOUS", "DISPATCHING")[0] == "done"
    assert desk.finish("done", "SETTLED", "DISPATCHING", paid=10)[0] == "done"
    assert desk.admit([("k1", 1_000_000, 5), ("k2", 1_000_000, 5)])[0] == "ok"
    for name in ("waits", "seated"):
        assert desk.reserve(name, "a", limits[:3], span(desk), amount=10, queued=True)[0] == "ok"
        desk.client.hset(keys.job(TENANT, job(name)), "worker", "a")
    assert desk.seat("seated", "a", places)[0] == "ok"
    for subject, _ in PLACES:  # room for one more
        desk.client.srem(keys.concurrency(TENANT, "tenant", subject), "held", "sent", "named")
    return desk
