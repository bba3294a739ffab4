"""Workers that run tests side by side do not give each other's ports away."""

from __future__ import annotations

from itertools import islice

import pytest

from tests import processes


def test_workers_side_by_side_share_no_port(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTEST_XDIST_WORKER_COUNT", "3")
    given = []
    for worker in ("gw0", "gw1", "gw2"):
        monkeypatch.setenv("PYTEST_XDIST_WORKER", worker)
        given.append(set(islice(processes._ports(), 6_000)))
    assert [len(ports) for ports in given] == [6_000] * 3
    assert len(set.union(*given)) == 18_000
