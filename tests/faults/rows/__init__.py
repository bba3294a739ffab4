"""The rows, by what is attacked; importing this package registers all of them, in the order of their ids."""

from __future__ import annotations

from tests.faults import row
from tests.faults.rows import (
    clocks,
    deploys,
    flights,
    hostile,
    ledger,
    links,
    money,
    names,
    outcomes,
    reconciling,
    scripts,
    upstream,
)

__all__ = [
    "ROWS",
    "clocks",
    "deploys",
    "flights",
    "hostile",
    "ledger",
    "links",
    "money",
    "names",
    "outcomes",
    "reconciling",
    "scripts",
    "upstream",
]
ROWS = dict(sorted(row.ROWS.items()))
