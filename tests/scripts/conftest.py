"""Every test of the scripts runs on both engines."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import redis

from tests.scripts.desk import Desk
from tests.scripts.engines import engine


@pytest.fixture(scope="session", params=["valkey", "redis"])
def server(request: pytest.FixtureRequest) -> Iterator[redis.Redis]:
    with engine(request.param) as client:
        yield client


@pytest.fixture
def desk(server: redis.Redis) -> Desk:
    return Desk(server).open()
