"""Redis servers for tests, started from the configuration files that are shipped."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import redis

from tests.fleet import free_port, wait_until

from .dockerfile import ROOT


@contextmanager
def server(role: str, folder: Path, *options: str) -> Iterator[redis.Redis]:
    """A `redis-server` with deploy/redis/<role>.conf, but for its place: loopback, a free port, a folder."""
    port, home = free_port(), folder / role
    home.mkdir(exist_ok=True)
    place = ["--bind", "127.0.0.1", "--port", str(port), "--dir", str(home)]
    config = ROOT / "deploy" / "redis" / f"{role}.conf"
    with (home / "log").open("wb") as log:
        process = subprocess.Popen(["redis-server", str(config), *place, *options], stdout=log, stderr=log)
    client = redis.Redis(port=port)
    try:
        wait_until(lambda: process.poll() is not None or _answers(client), 10, (home / "log").read_text)
        assert process.poll() is None, (home / "log").read_text()
        yield client
    finally:
        client.close()
        process.kill()
        process.wait()


def url_of(client: redis.Redis) -> str:
    """Its REDIS_URL."""
    return f"redis://127.0.0.1:{client.connection_pool.connection_kwargs['port']}/0"


def _answers(client: redis.Redis) -> bool:
    with suppress(redis.exceptions.ConnectionError, redis.exceptions.BusyLoadingError):
        return bool(client.ping())
    return False
