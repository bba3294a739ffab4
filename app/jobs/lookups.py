"""Names of webhooks, resolved in threads of their own: a name server that hangs keeps nothing else waiting.

Called by the courier and by the command that tests one; the rest of a process resolves elsewhere. A lookup cannot be
called off, so it holds its place until its thread returns, and a tenant has few of them. Threads are daemons: one that
hangs does not keep a process from ending.
"""

from __future__ import annotations

import asyncio
import socket
from collections import defaultdict
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from threading import Thread
from typing import Any

AT_ONCE = 8  # lookups under way in a process
OF_A_TENANT = 2
# (host, port) -> what getaddrinfo says
Lookup = Callable[[str, int], Awaitable[list[Any]]]


class Lookups:
    """The lookups of one process."""

    def __init__(self) -> None:
        self._all = asyncio.Semaphore(AT_ONCE)
        self._own: defaultdict[str, asyncio.Semaphore] = defaultdict(partial(asyncio.Semaphore, OF_A_TENANT))

    def of(self, tenant: str) -> Lookup:
        """The lookup of a tenant. It waits for a place as long as its caller does."""
        return partial(self._find, self._own[tenant])

    async def _find(self, own: asyncio.Semaphore, host: str, port: int) -> list[Any]:
        await own.acquire()
        try:
            await self._all.acquire()
        except asyncio.CancelledError:
            own.release()
            raise
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[list[Any]] = loop.create_future()

        def over(found: list[Any] | Exception) -> None:
            self._all.release()
            own.release()
            if answer.done():  # nobody waits any more
                return
            if isinstance(found, Exception):
                answer.set_exception(found)
            else:
                answer.set_result(found)

        def look() -> None:
            found: list[Any] | Exception
            try:
                found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            except Exception as error:
                found = error
            with suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(over, found)

        try:
            Thread(target=look, name="webhook-lookup", daemon=True).start()
        except RuntimeError as error:  # no thread to be had
            over(OSError(str(error)))
        return await answer
