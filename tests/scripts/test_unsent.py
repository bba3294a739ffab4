"""What was certainly not sent is not charged, in whatever order its end and its reservation arrive."""

from __future__ import annotations

from typing import Any

from app.store import keys
from tests.scripts.calls import span
from tests.scripts.desk import TENANT, Desk, Limit

UNSENT = "RESERVED,DISPATCHING,AMBIGUOUS"
LIMITS = (Limit("tenant", "usd", 100, 40), Limit("tenant", "img", 10, 1))


def at_once(desk: Desk, name: str) -> list[Any]:
    return desk.reserve(name, "a", LIMITS, span(desk), amount=40, at_once=True)


def counters(desk: Desk) -> list[tuple[int, int]]:
    """(spent, reserved) of the windows, dollars first."""
    found = (desk.client.hmget(limit.key(span(desk)[0]), "spent", "reserved") for limit in LIMITS)
    return [(int(spent or 0), int(reserved or 0)) for spent, reserved in found]


def images(desk: Desk) -> int:
    """Images of the day, as the usage tells."""
    day: Any = desk.client.hgetall(keys.usage(TENANT, span(desk)[0]))
    return sum(int(value) for name, value in day.items() if name.startswith(b"images"))


def test_a_dispatch_that_was_acknowledged_and_never_used_is_refunded_with_its_image(desk: Desk) -> None:
    assert at_once(desk, "r1")[0] == "ok"
    assert counters(desk) == [(0, 40), (0, 1)]
    assert desk.finish("r1", "REFUNDED", UNSENT, unsent=1)[0] == "done"
    assert counters(desk) == [(0, 0), (0, 0)]
    assert images(desk) == 0


def test_a_reaper_that_came_first_does_not_make_its_owner_pay(desk: Desk) -> None:
    at_once(desk, "r1")
    assert desk.finish("r1", "AMBIGUOUS", "DISPATCHING", by="reaper")[0] == "done"
    assert counters(desk) == [(40, 0), (1, 0)]
    assert images(desk) == 1
    assert desk.finish("r1", "REFUNDED", UNSENT, unsent=1)[0] == "done"
    assert counters(desk) == [(0, 0), (0, 0)]
    assert images(desk) == 0


def test_a_reservation_that_arrives_after_its_own_end_holds_nothing(desk: Desk) -> None:
    reserving = (span(desk), "r1")
    before = desk.client.exists(keys.reservation(TENANT, "r1"))
    assert not before
    desk.run(
        "finish",
        [
            keys.ledger(TENANT), keys.reservation(TENANT, "r1"), keys.outstanding(TENANT), keys.ambiguous(TENANT),
            keys.rows(TENANT), keys.usage(TENANT, reserving[0][0]), *(limit.key(reserving[0][0]) for limit in LIMITS),
        ],
        ["r1", "REFUNDED", 0, "", UNSENT, "owner", "{}", 60_000, 1],
    )  # fmt: skip
    assert at_once(desk, "r1")[0] == "state"
    assert counters(desk) == [(0, 0), (0, 0)]
    assert desk.client.zcard(keys.outstanding(TENANT)) == 0
    assert desk.client.xlen(keys.rows(TENANT)) == 0


def test_an_unknown_id_that_may_have_been_sent_leaves_no_trace(desk: Desk) -> None:
    before = desk.everything()
    assert desk.finish("r9", "AMBIGUOUS", "DISPATCHING") == ["state", ""]
    assert desk.everything() == before
