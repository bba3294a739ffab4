"""Every row of the catalogue of faults, at the depth that each change can afford."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.row import execute, seed_of_environment
from tests.faults.rows import ROWS


@pytest.mark.parametrize("name", ROWS)
def test_a_row_reaches_its_figure(tmp_path: Path, name: str) -> None:
    verdict = execute(ROWS[name], "ci", tmp_path, seed_of_environment())
    print(f"\n{verdict}")
    assert not verdict.trouble, f"seed {verdict.seed}: {verdict.trouble}"
