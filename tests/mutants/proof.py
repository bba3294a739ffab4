"""Runs a mutant through the very run and checker that the real gateway passes, and says which invariants it breaks."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.faults.checker import Broken
from tests.faults.crowd import crowd
from tests.faults.flock import THREE_SECONDS, flock
from tests.faults.storm import storm, tenants, token
from tests.fleet import fleet
from tests.mutants.wrong import MUTANTS
from tests.scripts.desk import Desk, texts
from tests.scripts.engines import engine
from tests.scripts.machine import play

CALLERS = 30
REQUESTS = 200


def broken_by(name: str, folder: Path) -> set[str]:
    """The invariants that a mutant breaks; none where it survives."""
    mutant, program = MUTANTS[name], (sys.executable, "-m", "tests.mutants", name)
    try:
        match mutant.proof:
            case "storm":
                with fleet(folder, tenants("tenant"), replicas=2, program=program, **_slots(64)) as running:
                    storm(running, "tenant", requests=REQUESTS)
            case "machine":
                shipped = texts()
                shipped[mutant.script] = mutant.text(shipped[mutant.script])
                with engine("valkey") as client:
                    play(Desk(client, shipped), examples=400, shrink=False)
            case "crowd":
                with fleet(folder, tenants(None), replicas=2, program=program) as running:
                    crowd(running, [("acme", token(running)) for _ in range(2)], CALLERS // 3)
            case "seeded flock" | "seedless flock":
                seed, jobs = (7, 1) if mutant.proof == "seeded flock" else (None, CALLERS)
                slots = _slots(CALLERS)
                with fleet(
                    folder, tenants(None), replicas=3, program=program, sandbox=THREE_SECONDS, **slots
                ) as running:
                    flock(running, CALLERS, seed=seed, jobs=jobs)
    except Broken as broken:
        return broken.invariants
    return set()


def _slots(count: int) -> dict[str, str]:
    return {"GATEWAY_UPSTREAM_CONCURRENCY": str(count)}
