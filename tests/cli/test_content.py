"""`content delete` says of every job that may have stored a picture behind it that it did."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from app.commands import content
from app.store import keys
from tests.cli.running import COMPLETE, commands, run
from tests.redis_server import RedisServer


@pytest.fixture
def client(tmp_path: Path) -> Iterator[redis.Redis]:
    with RedisServer(tmp_path / "valkey") as server, server.client() as found:
        yield found


def test_a_job_that_ends_while_the_rest_is_deleted_is_told(
    client: redis.Redis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    port, times = client.connection_pool.connection_kwargs["port"], 0
    erase = content.erase

    async def meanwhile(tenant: str, **stores: Any) -> Counter[str]:
        nonlocal times
        times += 1
        gone = await erase(tenant, **stores)
        if times == 2:  # its picture was stored when the pictures had been gone through
            client.zrem(keys.outstanding(tenant), "res_1")
        return gone

    monkeypatch.setattr(content, "erase", meanwhile)
    monkeypatch.setattr(content, "KEEP", 0)
    client.zadd(keys.outstanding("acme"), {"res_1": 1})
    runner = commands(monkeypatch, tmp_path, COMPLETE | {"REDIS_URL": f"redis://127.0.0.1:{port}/0"})
    told = run(runner, "content", "delete", "--tenant", "acme", "--json")
    assert (told.exit_code, json.loads(told.stdout)["running"]) == (1, 1)
