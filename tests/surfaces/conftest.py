"""One gateway for the wire tests of its surfaces, with tenants that are refused in every way."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.e2e.exchange import make_keys
from tests.fleet import TOKEN, Fleet, fleet
from tests.pipeline.calls import generate

TENANTS = {
    "shop": "safety: {allow_without_knob: [dev]}",
    "other": "",
    "strict": "safety: {generate: {ceiling: 1}, edit: {ceiling: 1}, mode: reject}",
    "clamped": "safety: {generate: {ceiling: 1}, edit: {ceiling: 0}, mode: clamp}",
    "broke": 'limits: {budgets: [{usd: "0.04", per: month}]}',
    "single": "limits: {concurrency: 1}",
    "queue-broke": 'limits: {budgets: [{usd: "0.04", per: month}]}',
    "queue-hourly": "limits: {requests: {rate: 1/1h}}",
    "queue-brisk": "limits: {requests: {rate: 1/30s}}",
    "hourly": "limits: {requests: {rate: 1/1h}}",
    "brisk": "limits: {requests: {rate: 1/30s}}",
    "images": "limits: {images: [{max: 1, per: month}]}",
    "private": "limits: {per_user: {requests: {rate: 1/1h}}}",
}


@dataclass(frozen=True)
class Desk:
    """Where to send jobs, and a key for each tenant."""

    fleet: Fleet
    tokens: dict[str, str]

    @property
    def url(self) -> str:
        """The gateway."""
        return self.fleet.replicas[0].url

    @property
    def upstream(self) -> tuple[str, str]:
        """The stand-in and its token."""
        return self.fleet.upstream, TOKEN


@pytest.fixture(scope="session")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    """Two tenants have spent what they have."""
    blocks = "".join(f"  {name}: {{{block}}}\n" for name, block in TENANTS.items())
    fast = ("--time-scale", "0", "--picture", "small")
    with fleet(
        tmp_path_factory.mktemp("surfaces"), f"version: 1\ntenants:\n{blocks}", sandbox=fast, GATEWAY_REDIS_TIMEOUT="5s"
    ) as running:
        found = Desk(running, make_keys(running, TENANTS))
        for tenant in ("broke", "images"):
            assert generate(found.url, found.tokens[tenant]).status == 200
        yield found
