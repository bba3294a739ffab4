"""A name is taken once: free until something was sent under it, and again when nothing came of it."""

from __future__ import annotations

from typing import Any

import pytest

from tests.scripts.calls import LIMITS, span
from tests.scripts.desk import DAY_MS, NAME, Desk


def hold(desk: Desk, name: str, claim: str, *, at_once: bool = False) -> list[Any]:
    return desk.reserve(name, "a", LIMITS, span(desk), amount=10, claim=claim, at_once=at_once)


def state(desk: Desk) -> str:
    found: Any = desk.client.hget(NAME, "state")
    return found.decode() if found else ""


def sent(desk: Desk, claim: str = "c1") -> None:
    assert desk.claim(claim, "a")[0] == "yours"
    assert hold(desk, "r1", claim)[0] == "ok"
    assert state(desk) == "claimed"
    assert desk.dispatch("r1", "a", 0)[0] == "ok"
    assert state(desk) == "sent"


def test_a_claim_that_is_asked_for_twice_is_had_once(desk: Desk) -> None:
    assert desk.claim("c1", "a", seed=5) == ["yours", "5"]
    assert desk.claim("c1", "a", seed=5) == ["yours", "5"]  # its reply was lost
    assert desk.claim("c2", "b") == ["running", "a"]
    assert desk.claim("c2", "b", digest="other") == ["mismatch"]


@pytest.mark.parametrize("way", ["its owner died", "its deadline passed"])
def test_a_name_under_which_nothing_was_sent_is_taken_over_with_its_seed_and_fenced(desk: Desk, way: str) -> None:
    desk.claim("c1", "a", seed=5, ms=60_000 if way == "its owner died" else -1)
    assert hold(desk, "r1", "c1")[0] == "ok"
    assert desk.claim("c2", "b", seed=6, dead="a" if way == "its owner died" else "") == ["yours", "5"]
    assert desk.dispatch("r1", "a", 0) == ["taken"]
    assert hold(desk, "r2", "c1", at_once=True) == ["taken"]
    assert desk.client.hget("kg:{t:acme}:res:r1", "state") == b"RESERVED"
    assert desk.finish("r1", "REFUNDED", "RESERVED")[0] == "done"
    assert desk.close("c1") == [0]
    assert (state(desk), desk.client.hget(NAME, "claim")) == ("claimed", b"c2")


def test_another_request_may_take_what_a_dead_owner_left(desk: Desk) -> None:
    desk.claim("c1", "a", seed=5)
    assert desk.claim("c2", "b", digest="other", seed=6, dead="a") == ["yours", "6"]


@pytest.mark.parametrize("at_once", [False, True])
def test_what_was_sent_is_never_taken_over(desk: Desk, at_once: bool) -> None:
    if at_once:
        desk.claim("c1", "a", ms=-1)
        assert hold(desk, "r1", "c1", at_once=True)[0] == "ok"
        assert hold(desk, "r1", "c1", at_once=True)[0] == "ok"  # its reply was lost
    else:
        sent(desk)
        assert desk.dispatch("r1", "a", 0)[0] == "ok"
    assert desk.claim("c2", "b", dead="a") == ["running", "a"]
    assert desk.close("c1") == [0]
    assert desk.close("c1", "{}") == [0]
    assert state(desk) == "sent"


def test_what_was_taken_back_can_be_taken_over(desk: Desk) -> None:
    sent(desk)
    assert desk.retract("r1", "a", 0)[0] == "ok"
    assert state(desk) == "claimed"
    assert desk.claim("c2", "b", dead="a")[0] == "yours"
    assert desk.dispatch("r1", "a", 1) == ["taken"]


ENDS: list[tuple[str, int, str]] = [
    ("SETTLED", 10, "a picture"),
    ("AMBIGUOUS", 0, "an error"),
    ("AMBIGUOUS", 0, ""),
    ("REFUNDED", 0, "an error"),
]


@pytest.mark.parametrize(("end", "paid", "answer"), ENDS)
def test_an_end_is_kept_with_its_answer_for_a_day(desk: Desk, end: str, paid: int, answer: str) -> None:
    sent(desk)
    assert desk.finish("r1", end, "DISPATCHING", paid=paid, answer=answer)[0] == "done"
    assert desk.claim("c2", "b", dead="a") == ["ended", "c1", "1", "req_c1", end, answer]
    assert desk.claim("c2", "b", digest="other") == ["mismatch"]
    assert DAY_MS - 10_000 < desk.client.pttl(NAME) <= DAY_MS


@pytest.mark.parametrize("way", ["given up", "unsent", "refused again later"])
def test_a_job_that_came_to_nothing_leaves_the_name_free(desk: Desk, way: str) -> None:
    desk.claim("c1", "a")
    hold(desk, "r1", "c1", at_once=way == "unsent")
    if way == "refused again later":
        desk.dispatch("r1", "a", 0)
    assert desk.finish("r1", "REFUNDED", "RESERVED,DISPATCHING", unsent=int(way == "unsent"))[0] == "done"
    assert desk.claim("c2", "b", digest="other", seed=6) == ["yours", "6"]


def test_a_late_settlement_puts_its_picture_in_the_place_of_the_unknown(desk: Desk) -> None:
    sent(desk)
    assert desk.finish("r1", "AMBIGUOUS", "DISPATCHING", by="reaper")[0] == "done"
    assert desk.claim("c2", "b")[-2:] == ["AMBIGUOUS", ""]
    assert desk.finish("r1", "SETTLED", "DISPATCHING,AMBIGUOUS", paid=10, answer="a picture")[0] == "done"
    assert desk.claim("c2", "b")[-2:] == ["SETTLED", "a picture"]


def test_what_reconciliation_gives_back_is_not_bought_again(desk: Desk) -> None:
    sent(desk)
    desk.finish("r1", "AMBIGUOUS", "DISPATCHING", by="reaper")
    assert desk.finish("r1", "REFUNDED", "AMBIGUOUS", by="reconcile")[0] == "done"
    assert desk.claim("c2", "b")[0] == "ended"


def test_an_answer_that_cost_nothing_is_kept_and_a_missing_one_is_put_once(desk: Desk) -> None:
    desk.claim("c1", "a")
    assert desk.close("c1", "a hit") == [1]
    assert desk.claim("c2", "b")[-2:] == ["FREE", "a hit"]
    assert desk.close("c1", "another") == [0]
    desk.client.delete(NAME)
    sent(desk, "c3")
    desk.finish("r1", "AMBIGUOUS", "DISPATCHING", by="reaper")
    assert [desk.close("c3", "found"), desk.close("c3", "found twice"), desk.close("c3")] == [[1], [0], [0]]
    assert desk.claim("c2", "b")[-2:] == ["AMBIGUOUS", "found"]


def test_an_end_whose_keys_lack_the_name_is_refused(desk: Desk) -> None:
    import redis

    sent(desk)
    names = desk.finish_keys("r1")[:-1]
    with pytest.raises(redis.ResponseError, match="not those of the reservation"):
        desk.run("finish", names, ["r1", "SETTLED", 1, "", "DISPATCHING", "reaper", "{}", 60_000, 0, "a", "", DAY_MS])
