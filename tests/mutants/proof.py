"""Runs a mutant through the very rows that the real gateway passes, and says what they then have to complain of."""

from __future__ import annotations

import sys
import traceback
from contextvars import copy_context
from dataclasses import replace
from pathlib import Path

from tests.faults.checker import Broken
from tests.faults.flock import THREE_SECONDS, flock
from tests.faults.row import execute, seed_of_environment
from tests.faults.rows import ROWS
from tests.faults.storm import tenants
from tests.fleet import PROGRAM, fleet
from tests.mutants.mutant import Killer, Mutant
from tests.mutants.wrong import MUTANTS
from tests.scripts.desk import Desk, texts
from tests.scripts.engines import engine
from tests.scripts.machine import play

CALLERS = 30


def trouble(name: str | None, killer: Killer, folder: Path) -> str:
    """What a row says of a mutant, or, without a name, of the gateway itself; empty where it notices nothing."""
    return copy_context().run(_trouble, name, killer, folder)


def _trouble(name: str | None, killer: Killer, folder: Path) -> str:
    mutant = None if name is None else MUTANTS[name]
    if name is not None:
        PROGRAM.set((sys.executable, "-m", "tests.mutants", name))
    if killer.row in ROWS and not (killer.row == "M-13" and (mutant is None or mutant.script)):
        row = ROWS[killer.row]
        wanted = replace(row, counts={"ci": {**row.counts["ci"], **killer.counts}})
        return execute(wanted, "ci", folder, seed_of_environment()).trouble
    try:
        if killer.row == "M-13":
            _played(mutant)
        else:
            seed, jobs = (7, 1) if killer.row == "flock" else (None, CALLERS)
            slots = {"GATEWAY_UPSTREAM_CONCURRENCY": str(CALLERS)}
            with fleet(folder, tenants(None), replicas=3, sandbox=THREE_SECONDS, **slots) as running:
                flock(running, CALLERS, seed=seed, jobs=jobs)
    except Broken:
        return traceback.format_exc()
    return ""


def _played(mutant: Mutant | None) -> None:
    """The games of M-13, with the mistake in one script."""
    shipped = texts()
    if mutant is not None:
        shipped[mutant.script] = mutant.text(shipped[mutant.script])
    with engine("valkey") as client:
        play(Desk(client, shipped), examples=400, shrink=False)
