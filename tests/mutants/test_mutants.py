"""Every deliberate mistake is found, under the name of the invariant that it breaks."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.mutants.proof import broken_by
from tests.mutants.wrong import MUTANTS


@pytest.mark.parametrize("name", MUTANTS)
def test_a_mutant_is_killed_by_the_invariant_it_breaks(tmp_path: Path, name: str) -> None:
    broken = broken_by(name, tmp_path)
    print(f"\n{name}: broke {', '.join(sorted(broken)) or 'nothing'}")
    assert MUTANTS[name].invariant in broken
