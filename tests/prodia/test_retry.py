"""Waits, re-sends and their budget."""

from __future__ import annotations

import random
from datetime import UTC, datetime
from email.utils import format_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.prodia.faults import Fault, Outcome
from app.prodia.retry import Retries, RetryBudget, parse_retry_after

NOW = datetime(1994, 11, 6, 8, 49, 37, tzinfo=UTC)


@pytest.mark.parametrize(
    ("values", "seconds"),
    [
        ([], None),
        (["0"], 0),
        (["1"], 1),
        (["120"], 120),
        ([" 7\t"], 7),
        (["007"], 7),
        (["1.5"], 1.5),
        (["0.0"], 0),
        (["3600"], 3600),
        (["3601"], 3600),
        (["1000000000"], 3600),
        (["9" * 30], 3600),
        (["9" * 10_000], 3600),
        (["Sun, 06 Nov 1994 08:49:47 GMT"], 10),
        (["Sunday, 06-Nov-94 08:49:47 GMT"], 10),
        (["Sun Nov  6 08:49:47 1994"], 10),
        (["Sun, 06 Nov 1994 10:49:47 +0200"], 10),
        (["Sun, 06 Nov 1994 08:49:37 GMT"], 0),
        (["Sun, 06 Nov 1988 08:49:37 GMT"], 0),
        (["Fri, 31 Dec 9999 23:59:59 GMT"], 3600),
        (["2", "5"], 5),
        (["5", "2"], 5),
        (["5", "soon"], 5),
        (["soon", "Sun, 06 Nov 1994 08:49:47 GMT", "3"], 10),
        (["2, 5"], 5),
        (["2,"], None),
        ([""], None),
        (["   "], None),
        (["-1"], None),
        (["+1"], None),
        (["1e9"], None),
        (["0x10"], None),
        (["1_000"], None),
        ([".5"], None),
        (["5."], None),
        (["5s"], None),
        (["5 seconds"], None),
        (["NaN"], None),
        (["inf"], None),
        (["Infinity"], None),
        (["null"], None),
        (["\u0665"], None),
        (["soon"], None),
        (["Sun, 99 Nov 1994 08:49:37 GMT"], None),
        (["Sun, 06 Nov 1994 25:61:61 GMT"], None),
        (["Sun, 06 Nov 99999999999 08:49:37 GMT"], None),
        (["Sun, 06 Nov 1994 08:49:37 +9999999"], None),
        (["Sunday " + "x" * 10_000], None),
    ],
)
def test_retry_after_in_all_spellings(values: list[str], seconds: float | None) -> None:
    assert parse_retry_after(values, NOW) == seconds


@given(st.lists(st.one_of(st.text(max_size=80), st.datetimes().map(format_datetime), st.floats().map(str)), max_size=4))
def test_no_retry_after_crashes_or_waits_over_an_hour(values: list[str]) -> None:
    seconds = parse_retry_after(values, NOW)
    assert seconds is None or 0 <= seconds <= 3600


def ample() -> RetryBudget:
    return RetryBudget(advance=10)


def waits(outcome: Outcome, *, retry_after: float | None = None, tries: int = 20, **more: int) -> list[float]:
    """How a job that always ends the same way is re-sent until it is given up."""
    retries = Retries(ample(), jitter=lambda _, high: high, **more)
    found = []
    for _ in range(tries):
        wait = retries.next_wait(Fault(outcome, retry_after=retry_after), remaining=1000)
        if wait is None:
            break
        found.append(wait)
    return found


def test_each_outcome_is_sent_again_as_often_as_its_row_says() -> None:
    assert waits("busy") == [0.5, 1, 2, 4]
    assert waits("busy", busy_tries=8) == [0.5, 1, 2, 4, 8, 8, 8]
    assert waits("busy", busy_tries=1) == []
    assert waits("busy", retry_after=3) == [3, 3, 3, 3]
    assert waits("busy", retry_after=0) == [0, 0, 0, 0]
    assert waits("unavailable", retry_after=2) == [2]
    assert waits("unsent") == [0.5, 1]


@pytest.mark.parametrize(
    "outcome", ["invalid", "moderated", "failed", "refused", "misconfigured", "error", "lost", "malformed"]
)
def test_other_outcomes_are_never_sent_again(outcome: Outcome) -> None:
    assert waits(outcome, retry_after=1) == []


def test_outcomes_that_take_turns_have_their_own_counts_and_a_common_backoff() -> None:
    retries = Retries(ample(), jitter=lambda _, high: high)
    assert retries.next_wait(Fault("unsent"), remaining=60) == 0.5
    assert retries.next_wait(Fault("busy"), remaining=60) == 1
    assert retries.next_wait(Fault("unsent"), remaining=60) == 2
    assert retries.next_wait(Fault("unsent"), remaining=60) is None
    assert retries.next_wait(Fault("busy"), remaining=60) == 4


def test_a_wait_never_passes_the_deadline_and_costs_nothing_if_it_would() -> None:
    budget = RetryBudget(advance=1)
    retries = Retries(budget)
    assert retries.next_wait(Fault("busy", retry_after=60), remaining=60) is None
    assert retries.next_wait(Fault("busy", retry_after=3600), remaining=60) is None
    assert retries.next_wait(Fault("busy"), remaining=0) is None
    assert retries.next_wait(Fault("busy", retry_after=59), remaining=60) == 59
    assert retries.next_wait(Fault("busy", retry_after=1), remaining=60) is None  # the budget is spent now


def test_waits_without_retry_after_are_spread_over_their_whole_range() -> None:
    drawn = [Retries(ample()).next_wait(Fault("unsent"), remaining=60) for _ in range(2000)]
    seconds = [wait for wait in drawn if wait is not None]
    assert len(seconds) == 2000
    assert min(seconds) < 0.02
    assert max(seconds) > 0.48
    assert 0.22 < sum(seconds) / 2000 < 0.28


def test_when_the_upstream_is_down_for_long_at_most_a_tenth_more_calls_are_made() -> None:
    budget = RetryBudget()
    extra = 0
    for first_calls in range(1, 10_001):
        retries = Retries(budget)
        while retries.next_wait(Fault("busy"), remaining=120) is not None:
            extra += 1
        assert extra <= max(3, first_calls / 10)
    assert extra == 1000


@given(st.lists(st.integers(1, 60), min_size=1, max_size=60), st.randoms(use_true_random=False))
def test_at_no_time_is_the_budget_overdrawn(bursts: list[int], chance: random.Random) -> None:
    budget, first_calls, extra = RetryBudget(), 0, 0
    for burst in bursts:
        for _ in range(burst):
            budget.deposit()
            first_calls += 1
        saved = 0
        while chance.random() < 0.9 and budget.withdraw():
            extra, saved = extra + 1, saved + 1
        assert saved <= 10
        assert extra <= max(3, first_calls / 10)
