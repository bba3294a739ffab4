"""`python -m tests.mutants <name> serve` runs a wrong gateway; alone, or with `--only` names, it ends in a table: which
row kills which mutant. The exit code is the number of survivors."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from app.cli import main
from tests.mutants.wrong import MUTANTS


def table(names: list[str]) -> int:
    """Every mutant, what it does wrong, and what killed it; the number of survivors."""
    from tests.mutants.proof import trouble

    lines, alive = [], 0
    for name in names:
        mutant, found, began = MUTANTS[name], [], time.monotonic()
        for killer in mutant.killers:
            with tempfile.TemporaryDirectory() as folder:
                said = trouble(name, killer, Path(folder))
            if not (killed := killer.says in said):
                print(said or f"{killer.row} found nothing", flush=True)
            alive += not killed
            found.append(f"{killer.row} ({killer.says})" if killed else f"NOT BY {killer.row} ({killer.says})")
        lines.append(f"{name:26} {mutant.says:62} {time.monotonic() - began:5.1f} s  {', '.join(found)}")
        print(lines[-1], flush=True)
    print(f"\n{'mutant':26} {'what it does wrong':62} {'time':>7}  killed by")
    print("\n".join(lines))
    print(f"{len(names)} mutants, {alive} survived a row that should kill them")
    return alive


if len(sys.argv) > 1 and sys.argv[1] in MUTANTS:
    MUTANTS[sys.argv.pop(1)].apply()
    main()
else:
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=list(MUTANTS), default=list(MUTANTS), metavar="NAME")
    sys.exit(table(parser.parse_args().only))
