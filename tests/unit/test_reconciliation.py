"""A bill ends an ambiguous charge only where an id or the numbers leave no other reading of it."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

import pytest

from app.domain.bill import Line
from app.domain.reconciliation import Booked, Claim, Entry, Findings, Terms, reconcile

PRO, MAX = "inference.flux-kontext.pro.txt2img.v2", "inference.flux-kontext.max.txt2img.v2"
SECOND, MINUTE = 1_000, 60_000
TERMS = Terms(5 * SECOND, 10**9, (0, 10**9))
ALL = replace(TERMS, by_count=True)


def entry(n: int, at: int, *, tenant: str = "acme", type: str = PRO, amount: int = 40_000, upstream: str = "") -> Entry:
    """The n-th charge: sent at `at` seconds, given up two seconds later."""
    sent = at * SECOND
    return Entry(tenant, f"res_{n}", f"job_{n}", "key_1", type, "pro", sent, sent + 2_000, amount, "lost", upstream)


def line(n: int, at: float, *, type: str = PRO, price: int = 40_000, id: str = "") -> Line:
    return Line(n, id or f"line-{n}", int(at * SECOND), type, price)


def told(found: Findings) -> list[tuple[str, str, int | None]]:
    """By entry: what was told, and by which line."""
    return [(v.entry.reservation, v.told, v.line.n if v.line else None) for v in found.verdicts]


def run(
    entries: Sequence[Entry], lines: Sequence[Line], terms: Terms = TERMS, *claims: Claim, **booked: Booked
) -> Findings:
    return reconcile(entries, lines, booked, claims, terms)


def test_a_line_by_type_and_time_settles_and_the_absence_of_one_refunds() -> None:
    found = run([entry(1, 100), entry(2, 200), entry(3, 300, type=MAX)], [line(1, 101), line(2, 301)])
    assert told(found) == [("res_1", "billed", 1), ("res_2", "not billed", None), ("res_3", "not billed", None)]
    assert [one.n for one, _ in found.unexplained] == [2]  # another type


def test_an_id_decides_before_time_does() -> None:
    known = [entry(1, 100, upstream="up-1"), entry(2, 100, upstream="up-2"), entry(3, 100)]
    found = run(known, [line(1, 400, id="up-1"), line(2, 101)])
    assert told(found) == [("res_1", "billed", 1), ("res_2", "not billed", None), ("res_3", "billed", 2)]


def test_ids_of_another_kind_decide_nothing() -> None:
    """Where no id of the bill is known to the ledger, an absent id is no proof that a job was not billed."""
    assert told(run([entry(1, 100, upstream="up-1")], [line(1, 101)])) == [("res_1", "billed", 1)]


def test_as_many_lines_as_charges_settle_all_of_them_whoever_they_are_of() -> None:
    found = run([entry(1, 100), entry(2, 101, tenant="zeta")], [line(1, 102), line(2, 102)])
    assert [verdict.told for verdict in found.verdicts] == ["billed", "billed"]
    assert {verdict.line.n for verdict in found.verdicts if verdict.line} == {1, 2}


def test_fewer_lines_than_charges_cannot_be_told_but_counted() -> None:
    three, two = [entry(n, 100 + n) for n in (1, 2, 3)], [line(1, 104), line(2, 104)]
    found = run(three, two)
    assert {verdict.told for verdict in found.verdicts} == {"cannot be told"}
    assert found.undecided == 80_000
    assert told(run(three, two, ALL)) == [("res_1", "billed", 1), ("res_2", "billed", 2), ("res_3", "not billed", None)]


def test_nothing_is_counted_across_tenants() -> None:
    found = run([entry(1, 100), entry(2, 101, tenant="zeta")], [line(1, 102)], ALL)
    assert {(v.told, v.why.rpartition("; ")[2]) for v in found.verdicts} == {
        ("cannot be told", "they are of several tenants")
    }


def test_more_lines_than_charges_cannot_be_told() -> None:
    """Somebody else's job may be among them; by count the charge is settled and what is over stays unexplained."""
    lines = [line(1, 101), line(2, 101)]
    assert told(run([entry(1, 100)], lines)) == [("res_1", "cannot be told", None)]
    found = run([entry(1, 100)], lines, ALL)
    assert told(found) == [("res_1", "billed", 1)]
    assert [one.n for one, _ in found.unexplained] == [2]


def test_a_job_under_way_or_charged_without_an_id_may_be_the_one_on_the_bill() -> None:
    under_way, charged = Claim(PRO, 100_000, 103_000, True), Claim(PRO, 100_000, 103_000, False)
    for claim in (under_way, charged):
        for terms in (TERMS, ALL):
            assert told(run([entry(1, 100)], [line(1, 101)], terms, claim)) == [("res_1", "cannot be told", None)]
        found = run([entry(1, 100)], [line(1, 101), line(2, 101)], TERMS, claim)
        assert [verdict.told for verdict in found.verdicts] == ["billed"]
        assert found.explained == 40_000


def test_a_young_charge_is_left_alone_and_still_counts() -> None:
    young = replace(TERMS, older_than=102_000)
    found = run([entry(1, 100), entry(2, 101)], [line(1, 102)], young)
    assert told(found) == [("res_1", "cannot be told", None), ("res_2", "too young", None)]


@pytest.mark.parametrize("covers", [(96_000, 10**9), (0, 106_999)])
def test_a_bill_that_does_not_reach_so_far_proves_no_absence(covers: tuple[int, int]) -> None:
    assert told(run([entry(1, 100)], [], replace(TERMS, covers=covers))) == [("res_1", "cannot be told", None)]
    two = run([entry(1, 100), entry(2, 100)], [line(1, 101)], replace(ALL, covers=covers))
    assert {verdict.told for verdict in two.verdicts} == {"cannot be told"}
    enough = replace(TERMS, covers=(95_000, 107_000))
    assert told(run([entry(1, 100)], [], enough)) == [("res_1", "not billed", None)]


def test_types_or_times_of_another_kind_decide_nothing() -> None:
    """What the ledger knows of the bill's jobs shows whether both speak of the same types and of the same time."""
    other = Booked("SETTLED", 40_000, "kontext-pro", 101_000)
    found = run([entry(1, 200)], [line(1, 100, id="a")], a=other)
    assert told(found) == [("res_1", "cannot be told", None)]
    found = run([entry(1, 200)], [line(1, 100, type="kontext-pro")])
    assert told(found) == [("res_1", "cannot be told", None)]
    an_hour = Booked("SETTLED", 40_000, PRO, 3_700_000)
    assert told(run([entry(1, 200)], [line(1, 100, id="a")], a=an_hour)) == [("res_1", "cannot be told", None)]
    same = Booked("SETTLED", 40_000, PRO, 101_000)
    assert told(run([entry(1, 200)], [line(1, 100, id="a")], a=same)) == [("res_1", "not billed", None)]


def test_an_excess_is_drift_and_a_rebate_is_the_tenants() -> None:
    found = run([entry(1, 100), entry(2, 200)], [line(1, 101, price=55_000), line(2, 201, price=10_000)])
    assert [(v.paid, v.drift) for v in found.verdicts] == [(40_000, 15_000), (10_000, 0)]


def test_which_price_is_whose_is_not_guessed() -> None:
    two, prices = [entry(1, 100), entry(2, 101)], [line(1, 102, price=10_000), line(2, 102)]
    assert {v.told for v in run(two, prices).verdicts} == {"cannot be told"}
    above = [line(1, 102, price=50_000), line(2, 102)]  # the tenant pays the same for either
    assert {v.told for v in run(two, above).verdicts} == {"billed"}
    counted = run([*two, entry(3, 101)], prices, ALL)  # all lines are used, so the sum is certain
    assert sum(v.paid for v in counted.verdicts) == 50_000
    unsure = run([entry(1, 100)], prices, ALL)
    assert {v.told for v in unsure.verdicts} == {"cannot be told"}


def test_what_rows_say_is_held_against_the_bill() -> None:
    lines = [line(n, 100, id=id) for n, id in enumerate(("same", "other", "back", "same"), 1)]
    booked = {
        "same": Booked("SETTLED", 40_000, PRO, 101_000),
        "other": Booked("SETTLED", 30_000, PRO, 101_000),
        "back": Booked("REFUNDED", 0, PRO, 101_000),
    }
    found = run([], lines, **booked)
    assert found.explained == 40_000
    assert [(one.n, why) for one, why in found.unexplained] == [
        (2, "the ledger has it at $0.030000"),
        (3, "the ledger has it as refunded"),
        (4, "this id is on the bill already"),
    ]


def test_every_line_and_every_charge_is_told_once_and_all_sums_add_up() -> None:
    """Over random bills nothing is lost, nothing is used twice, and a line is only ever of a job it can be of."""
    draw = random.Random(8)
    for _ in range(1_000):
        entries = [
            entry(n, draw.randrange(60), tenant=draw.choice(["acme", "acme", "zeta"]), type=draw.choice([PRO, MAX]))
            for n in range(draw.randrange(8))
        ]
        lines = [line(n, draw.randrange(70), type=draw.choice([PRO, MAX])) for n in range(draw.randrange(8))]
        terms = Terms(draw.choice([0, 1, 5]) * SECOND, draw.choice([30_000, 10**9]), (0, 10**9), draw.random() < 0.5)
        claims = [Claim(PRO, 10_000, 15_000, draw.random() < 0.5)] * draw.randrange(2)
        found = run(entries, lines, terms, *claims)
        assert sorted(v.entry.reservation for v in found.verdicts) == sorted(one.reservation for one in entries)
        used = [v.line for v in found.verdicts if v.line]
        assert len({one.n for one in used}) == len(used)
        for verdict in found.verdicts:
            if verdict.line:
                low, high = verdict.entry.dispatched - terms.tolerance, verdict.entry.since + terms.tolerance
                assert verdict.line.type == verdict.entry.type
                assert low <= verdict.line.at_ms <= high
        explained = found.explained + found.undecided + sum(one.micro_usd for one in used)
        assert found.billed == explained + sum(one.micro_usd for one, _ in found.unexplained)
