"""Every row of the catalogue of faults, at the depth that each change can afford."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from tests.faults.clients import History
from tests.faults.row import Row, Run, execute, seed_of_environment
from tests.faults.rows import ROWS
from tests.faults.storm import PATIENT, tenants, token
from tests.fleet import fleet


@pytest.mark.parametrize("name", ROWS)
def test_a_row_reaches_its_figure(tmp_path: Path, name: str) -> None:
    verdict = execute(ROWS[name], "ci", tmp_path, seed_of_environment())
    print(f"\n{verdict}")
    assert not verdict.trouble, f"seed {verdict.seed}: {verdict.trouble}"


def test_the_books_are_looked_at_whatever_a_row_asks(tmp_path: Path) -> None:
    def damage(run: Run) -> None:
        with fleet(run.folder, tenants(None), **PATIENT) as running, running.redis as client:
            History().send(running.urls, token(running), [1])
            (window,) = client.scan_iter("kg:{t:acme}:win:tenant:*")
            client.hincrby(window, "spent", 1)

    verdict = execute(Row("M-00", "nothing", damage, {"ci": {}}), "ci", tmp_path, seed_of_environment())
    assert "I2: " in verdict.trouble


def test_a_thread_that_ends_in_an_error_is_trouble(tmp_path: Path) -> None:
    def lose(run: Run) -> None:
        thread = threading.Thread(target=lambda: 1 / 0)
        thread.start()
        thread.join()

    assert "ZeroDivisionError" in execute(Row("M-00", "nothing", lose, {"ci": {}}), "ci", tmp_path, 1).trouble
