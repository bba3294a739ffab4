"""One gateway for the whole folder; every test begins with an upstream that has received nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.client.running import TENANTS, Shop
from tests.fleet import fleet


@pytest.fixture(scope="session")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    folder = tmp_path_factory.mktemp("client")
    with fleet(folder, TENANTS, GATEWAY_UPSTREAM_DEADLINE="5s") as running:
        keys = {name: running.key(name) for name in ("acme", "slow", "poor", "few")}
        yield Shop(running, keys | {"other": running.key("acme")}, folder)


@pytest.fixture
def shop(gateway: Shop, tmp_path: Path) -> Shop:
    gateway.fresh()
    return Shop(gateway.fleet, gateway.keys, tmp_path)
