"""The benchmark's command keeps working: each table, with small counts, has all its figures, and no request fails.

CPU is read in steps of 10 ms, so a round has as many requests as the cheapest target needs for two of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest

from . import forward, hits, nginx, replicas, waiting
from .stand import Stand, stand
from .table import Table


@pytest.fixture(scope="module")
def running() -> Iterator[Stand]:
    with stand(replicas=3) as everything:
        yield everything


def complete(table: Table, *, rows: int) -> None:
    """Every figure is there and positive, and nothing failed."""
    assert len(table.rows) == rows, table.notes
    for row in table.rows:
        assert row["failed"] == 0, table
        for name, figure in row.items():
            if name != "failed" and not isinstance(figure, str | None):
                assert math.isfinite(figure), f"{name}\n{table}"
                assert figure > 0, f"{name}\n{table}"
    assert str(table)


def test_forwarded_jobs_beside_bare_references_and_nginx(running: Stand) -> None:
    table = forward.measure(running, levels=(8,), rounds=1, requests=150)
    complete(table, rows=4 + (nginx.version() != "absent"))
    assert all(row["Valkey CPU ms"] for row in table.rows if row[""] in ("gateway", forward.REDIS))


def test_answers_from_the_cache_beside_a_bare_read_of_redis(running: Stand) -> None:
    complete(hits.measure(running, levels=(8,), rounds=1, requests=600), rows=4)


def test_edits_in_flight(running: Stand) -> None:
    table = waiting.measure(running, jobs=(20,), seconds=1, arrivals=0.2)
    complete(table, rows=1)
    assert table.rows[0]["most at once"] == 20


def test_gateway_processes_on_one_redis(running: Stand) -> None:
    complete(replicas.measure(running, rate=20, rounds=1, requests=60), rows=3)
