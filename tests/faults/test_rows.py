"""Every row of the catalogue of faults, at the depth that each change can afford."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from tests.faults.clients import History
from tests.faults.row import Row, Run, execute, seed_of_environment, summary
from tests.faults.rows import ROWS
from tests.faults.storm import PATIENT, tenants, token
from tests.fleet import fleet


@pytest.mark.parametrize("name", ROWS)
def test_a_row_reaches_its_figure(tmp_path: Path, name: str) -> None:
    verdict = execute(ROWS[name], "ci", tmp_path, seed_of_environment())
    print(f"\n{verdict}")
    assert not verdict.trouble, f"seed {verdict.seed}: {verdict.trouble}"


@pytest.mark.parametrize(
    ("more", "invariant", "sums"),
    [(1, "I2", "over a cap 0, billed twice 0, settlements lost or wrong 1, "), (9_000_000, "I1", "over a cap 1, ")],
)
def test_the_books_are_looked_at_whatever_a_row_asks(tmp_path: Path, more: int, invariant: str, sums: str) -> None:
    capped = tenants(None).replace('budgets: [{usd: "1000.00"', 'budgets: [{usd: "5.00"')
    assert "5.00" in capped

    def damage(run: Run) -> None:
        with fleet(run.folder, capped, **PATIENT) as running, running.redis as client:
            History().send(running.urls, token(running), [1])
            (window,) = client.scan_iter("kg:{t:acme}:win:tenant:*:usd:*")
            client.hincrby(window, "spent", more)

    verdict = execute(Row("M-00", "nothing", damage, {"ci": {}}), "ci", tmp_path, seed_of_environment())
    assert f"{invariant}: " in verdict.trouble
    assert f"1 fleets looked at: {sums}" in summary([verdict])


def test_a_thread_that_ends_in_an_error_is_trouble(tmp_path: Path) -> None:
    def lose(run: Run) -> None:
        thread = threading.Thread(target=lambda: 1 / 0)
        thread.start()
        thread.join()

    assert "ZeroDivisionError" in execute(Row("M-00", "nothing", lose, {"ci": {}}), "ci", tmp_path, 1).trouble
