"""All mutants, and which rows of the catalogue have to kill one."""

from __future__ import annotations

from tests.mutants import edges, money, queues, sharing

MUTANTS = {**money.MUTANTS, **sharing.MUTANTS, **edges.MUTANTS, **queues.MUTANTS}

# The rows that matter most, and one whose subject does not exist yet.
STARRED = frozenset(("M-01", "M-02", "M-03", "M-05", "M-07", "R-01", "R-04", "R-05", "U-01", "C-01")) | {
    "C-02",
    "C-05",
    "D-01",
    "L-03",
    "L-05",
    "I-01",
    "A-01",
    "A-05",
    "S-01",
    "O-01",
}
LATER = {"R-04": "a ledger with replicas"}
