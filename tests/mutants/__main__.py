"""`python -m tests.mutants <name> serve` runs a wrong gateway; alone, or with `--only` names, it ends in a table: which
row kills which mutant. The exit code is the number of survivors. `--control` runs the rows on the gateway itself, with
the counts that mutants are killed with: what kills must not be said of it."""

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


def control(names: list[str]) -> int:
    """Every row that kills, once for each of its counts, without a mutant; how many complain all the same."""
    from tests.mutants.proof import trouble

    killers = [killer for name in names for killer in MUTANTS[name].killers]
    runs = {(killer.row, repr(killer.counts)): killer for killer in killers}
    wrong = 0
    for (row, counts), first in runs.items():
        with tempfile.TemporaryDirectory() as folder:
            said = trouble(None, first, Path(folder))
        found = {one.says for one in killers if (one.row, repr(one.counts)) == (row, counts) and one.says in said}
        wrong += bool(found)
        print(f"{row:16} {counts:40} {sorted(found) or 'is quiet'}", flush=True)
        if found:
            print(said, flush=True)
    print(f"{len(runs)} rows on the gateway itself, {wrong} complain as of a mutant")
    return wrong


if len(sys.argv) > 1 and sys.argv[1] in MUTANTS:
    MUTANTS[sys.argv.pop(1)].apply()
    main()
else:
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=list(MUTANTS), default=list(MUTANTS), metavar="NAME")
    parser.add_argument("--control", action="store_true", help="run their rows on the gateway itself instead")
    asked = parser.parse_args()
    sys.exit(control(asked.only) if asked.control else table(asked.only))
