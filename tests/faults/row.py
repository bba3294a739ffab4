"""Rows of the catalogue of faults as data: what each asks, how much of it at which depth, and how a run of one ends.

A row is a function over a `Run` that says what it reached in `run.reached` and fails by an exception. Registered here
by the modules of `tests.faults.rows`; run by `python -m tests.faults`, and by pytest at CI depth.
"""

from __future__ import annotations

import os
import random
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from tests.faults.books import Invariant
from tests.faults.checker import Broken, Violation, always
from tests.fleet import LOOK, Fleet

Depth = Literal["ci", "nightly"]
Work = Callable[..., None]
SEED = "FAULTS_SEED"  # environment variable that replays a run


@dataclass(frozen=True)
class Row:
    """One fault: `asked` is the figure to reach, `counts` what `work` is called with at each depth. `by_name`: too long
    for a night together with the others, so that it is run nightly only where it is named."""

    id: str
    asked: str
    work: Work
    counts: Mapping[Depth, Mapping[str, Any]]
    by_name: bool = False


ROWS: dict[str, Row] = {}


def row(
    id: str, asked: str, *, ci: Mapping[str, Any], nightly: Mapping[str, Any], by_name: bool = False
) -> Callable[[Work], Work]:
    """Register a function as a row."""

    def register(work: Work) -> Work:
        assert id not in ROWS, id
        ROWS[id] = Row(id, asked, work, {"ci": ci, "nightly": nightly}, by_name)
        return work

    return register


@dataclass
class Run:
    """One run of a row: a folder of its own, a seed and its draws, and what it has reached so far."""

    folder: Path
    seed: int
    depth: Depth
    draw: random.Random = field(init=False)
    reached: str = ""

    def __post_init__(self) -> None:
        self.draw = random.Random(self.seed)

    def within(self, seconds: float) -> float:
        """A time limit as asked; at CI depth four times as much, because the machine is shared."""
        return seconds * (1 if self.depth == "nightly" else 4)


@dataclass(frozen=True)
class Verdict:
    """How a run of a row ended; `trouble` is empty when it reached its figure. `fleets`: how many were looked at."""

    row: Row
    reached: str
    seed: int
    seconds: float
    trouble: str
    violations: tuple[Violation, ...]
    fleets: int

    def __str__(self) -> str:
        state = "MISS" if self.trouble else "ok"
        reached = self.reached or "-"
        return f"{self.row.id:<5} {state:<4} {self.seconds:6.1f} s  seed {self.seed:<10} {self.row.asked} | {reached}"


def seed_of_environment() -> int:
    """The seed to replay, or a fresh one."""
    return int(os.environ.get(SEED) or random.SystemRandom().randrange(2**31))


def execute(row: Row, depth: Depth, folder: Path, seed: int) -> Verdict:
    """Run it once; what always holds is asked of its fleets whatever the row asks."""
    run, began, trouble, unheard = Run(folder, seed, depth), time.monotonic(), "", list[str]()
    violations, looked = tuple[Violation, ...](), list[Fleet]()

    def look(fleet: Fleet) -> None:
        looked.append(fleet)
        always(fleet)

    looking, hook = LOOK.set(look), threading.excepthook
    threading.excepthook = lambda lost: unheard.extend(traceback.format_exception(lost.exc_value))
    try:
        row.work(run, **row.counts[depth])
    except Exception as error:
        trouble = traceback.format_exc()
        violations = error.violations if isinstance(error, Broken) else ()
    finally:
        LOOK.reset(looking)
        threading.excepthook = hook
    trouble += "".join(unheard)  # of a load or a watcher that ended in its thread: what it should have seen is missing
    return Verdict(row, run.reached, seed, time.monotonic() - began, trouble, violations, len(looked))


SUMMED: Mapping[str, tuple[Invariant, ...]] = {
    "over a cap": ("I1",), "billed twice": ("I4",), "settlements lost or wrong": ("I2", "I3"), "stuck": ("I5", "I7"),
    "secrets or prompts told": ("I10",),
}  # fmt: skip


def summary(verdicts: Sequence[Verdict]) -> str:
    """What all runs together broke, by what it means, and how many fleets were asked."""
    broken = Counter(violation.invariant for verdict in verdicts for violation in verdict.violations)
    sums = ", ".join(f"{text} {sum(broken[name] for name in names)}" for text, names in SUMMED.items())
    return f"in {len(verdicts)} runs, {sum(verdict.fleets for verdict in verdicts)} fleets looked at: {sums}"
