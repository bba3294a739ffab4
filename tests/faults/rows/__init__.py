"""The rows, by what is attacked; importing this package registers all of them."""

from __future__ import annotations

from tests.faults.row import ROWS
from tests.faults.rows import clocks, flights, hostile, ledger, links, money, outcomes, scripts, upstream

__all__ = ["ROWS", "clocks", "flights", "hostile", "ledger", "links", "money", "outcomes", "scripts", "upstream"]
