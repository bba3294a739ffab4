"""`python -m tests.mutants <name> serve` runs a wrong gateway; alone: which invariant kills which mutant."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from app.cli import main
from tests.mutants.wrong import MUTANTS


def table() -> int:
    """Every mutant and what killed it; the number of survivors."""
    from tests.mutants.proof import broken_by

    alive = 0
    for name, mutant in MUTANTS.items():
        with tempfile.TemporaryDirectory() as folder:
            broken = broken_by(name, Path(folder))
        killed = mutant.invariant in broken
        alive += not killed
        print(
            f"{name:24} {mutant.says:50} {'killed by ' + ', '.join(sorted(broken)) if killed else 'ALIVE'}", flush=True
        )
    return alive


if len(sys.argv) > 1:
    MUTANTS[sys.argv.pop(1)].apply()
    main()
else:
    sys.exit(table())
