"""Both engines that the scripts must run on, each a real server of its own. Used by the fixtures and by the mutants."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import redis

from tests.redis_server import Engine, RedisServer


@contextmanager
def engine(kind: Engine, **environment: str) -> Iterator[redis.Redis]:
    """A client of a server that ends with the block: `valkey` from its wheel, `redis` as the system has it."""
    with tempfile.TemporaryDirectory() as folder:
        server = RedisServer(Path(folder), engine=kind, environment=environment).start()
        try:
            with server.client() as client:
                yield client
        finally:
            server.kill()
