"""`python -m tests.faults --depth ci|nightly [--rows M-01,R-05] [--shard 1/2]` runs the rows and ends in a table; exit
code 1 on a miss."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from tests.faults.row import SEED, execute, seed_of_environment, summary
from tests.faults.rows import ROWS


def main() -> int:
    """Run what was asked for; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--depth", choices=["ci", "nightly"], default="ci")
    parser.add_argument("--rows", help="comma-separated ids; without it, all but the longest")
    parser.add_argument("--shard", default="1/1", help="every n-th of them: 1/2 and 2/2 are all, for two runs at once")
    asked = parser.parse_args()
    every = [name for name, row in ROWS.items() if asked.depth == "ci" or not row.by_name]
    wanted = asked.rows.split(",") if asked.rows else every
    shard, shards = (int(number) for number in asked.shard.split("/"))
    wanted = wanted[shard - 1 :: shards]
    if unknown := [name for name in wanted if name not in ROWS]:
        parser.error(f"{unknown[0]} is not one of {', '.join(ROWS)}")
    verdicts = []
    for name in wanted:
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            verdict = execute(ROWS[name], asked.depth, Path(folder), seed_of_environment())
        verdicts.append(verdict)
        print(verdict, flush=True)
        if verdict.trouble:
            print(verdict.trouble, flush=True)
    print(f"\n{'row':<5} {'':<4} {'time':>8}  {'seed':<15} figure asked | figure reached")
    for verdict in verdicts:
        print(verdict)
    missed = [verdict for verdict in verdicts if verdict.trouble]
    for verdict in missed:
        print(f"replay: {SEED}={verdict.seed} python -m tests.faults --depth {asked.depth} --rows {verdict.row.id}")
    print(summary(verdicts))
    print(f"{len(verdicts) - len(missed)} of {len(verdicts)} rows reached their figure")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
