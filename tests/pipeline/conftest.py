"""The fleet that most of these tests share: two replicas, one tenant for each test that changes or counts something."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.fleet import Fleet, fleet
from tests.pipeline.calls import Policies

SHARED = {
    "plain": "",
    "open": "safety: {generate: {ceiling: 6}, edit: {ceiling: 2}, allow_without_knob: [dev]}",
    "ceiling": "safety: {generate: {ceiling: 4}}",
    "cached": "",
    "uncached": "cache: {scope: off}",
    "brief": "cache: {ttl: 1s}",
    "pool-one": "cache: {scope: 'pool:shared'}",
    "pool-two": "cache: {scope: 'pool:shared'}",
    "pool-other": "cache: {scope: 'pool:another'}",
    "poor": 'limits: {budgets: [{usd: "0.04", per: month}]}',
    "keys": 'limits: {budgets: [{usd: "5.00", per: day}]}',
    "suspended": "",
    "hasty": "limits: {requests: {rate: 1/1h}}",
    "changing": "",
    "report": 'timezone: Pacific/Auckland, limits: {budgets: [{usd: "50.00", per: day}]}',
    "report-other": "",
    "quoted": (
        "safety: {generate: {ceiling: 2}, edit: {ceiling: 1}, mode: reject}, variants: {generate: [pro], edit: [pro]}, "
        'limits: {budgets: [{usd: "0.10", per: month}], concurrency: 1, per_user: {images: [{max: 1, per: month}]}}'
    ),
    "claims": "",
    "named": "",
    "named-other": "",
    "named-poor": 'limits: {budgets: [{usd: "0.04", per: month}]}',
    "named-changing": "",
    "private": "limits: {per_user: {images: [{max: 20, per: day}]}}",
}


@pytest.fixture(scope="session")
def policies() -> Policies:
    """The shared fleet's tenants file."""
    return Policies(dict(SHARED))


@pytest.fixture(scope="session")
def running(tmp_path_factory: pytest.TempPathFactory, policies: Policies) -> Iterator[Fleet]:
    """Two replicas on one ledger."""
    fast = ("--time-scale", "0.01", "--picture", "small")
    with fleet(tmp_path_factory.mktemp("fleet"), policies.text, replicas=2, sandbox=fast) as found:
        policies.fleet = found
        yield found


@pytest.fixture
def urls(running: Fleet) -> tuple[str, str]:
    """Where the two replicas listen."""
    first, second = running.replicas
    return first.url, second.url
