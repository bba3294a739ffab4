"""Serves a sandbox over HTTP with uvicorn, and lets its faults reach the connection they are to break.

Used by the commands and by tests. Raises OSError when the address cannot be bound.
"""

import asyncio
import contextlib
import socket
from collections.abc import Callable, Iterator

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from .config import SandboxConfig
from .delivery import TRANSPORT
from .server import create_sandbox

KEEP_ALIVE = 75
GRACE = 1
"""Seconds that running jobs are given when the sandbox stops."""


class _Connection(HttpToolsProtocol):
    """uvicorn's connection, which also hands its transport to the app."""

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope["extensions"] = {TRANSPORT: self.transport}  # type: ignore[dict-item]


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, on_start: Callable[[], None], *, own_signals: bool) -> None:
        super().__init__(config)
        self._on_start = on_start
        self._own_signals = own_signals

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._on_start()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        with super().capture_signals() if self._own_signals else contextlib.nullcontext():
            yield


async def serve_sandbox(
    config: SandboxConfig,
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    ready: Callable[[str], None] | None = None,
    stop: asyncio.Event | None = None,
) -> None:
    """Runs a sandbox until `stop` is set, or without one until the process is told to end by a signal.

    `ready` is called with the base URL once connections are accepted; port 0 takes a free one.
    """
    with _bound(host, port) as listener:
        shown = f"[{host}]" if listener.family == socket.AF_INET6 else host
        url = f"http://{shown}:{listener.getsockname()[1]}"
        settings = uvicorn.Config(
            create_sandbox(config),
            http=_Connection,
            ws="none",
            lifespan="on",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_keep_alive=KEEP_ALIVE,
            timeout_graceful_shutdown=GRACE,
        )
        server = _Server(settings, lambda: ready(url) if ready else None, own_signals=stop is None)
        serving = asyncio.create_task(server.serve([listener]))
        stopping = asyncio.create_task((stop or asyncio.Event()).wait())
        try:
            await asyncio.wait({serving, stopping}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopping.cancel()
            server.should_exit = True
            await serving


def _bound(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio sets TCP_NODELAY only on sockets of this very protocol number; without it every answer waits 40 ms.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
    except OSError:
        listener.close()
        raise
    return listener
