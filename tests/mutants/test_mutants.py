"""Every deliberate mistake is found by the rows that are there to find it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.mutants.mutant import Killer
from tests.mutants.proof import trouble
from tests.mutants.wrong import LATER, MUTANTS, STARRED

PROOFS = [(name, killer) for name, mutant in MUTANTS.items() for killer in mutant.killers]


@pytest.mark.parametrize(("name", "killer"), PROOFS, ids=[f"{name} by {killer.row}" for name, killer in PROOFS])
def test_a_mutant_is_killed_by_the_row_that_looks_for_it(tmp_path: Path, name: str, killer: Killer) -> None:
    assert killer.says in trouble(name, killer, tmp_path)


def test_each_row_that_matters_most_kills_a_mutant() -> None:
    assert {killer.row for _, killer in PROOFS} >= STARRED - LATER.keys()
