"""Redis for everybody else: scripts and commands, pipelined, bounded in time, translated to one exception.

Calls made in the same turn of the event loop travel in one write. Nothing is ever re-sent by the client itself; a
script missing on the server (NOSCRIPT: it did not run) is loaded and run once more. Any failure becomes
`LedgerUnavailable`; whether the command took effect is then unknown to the caller. A server that is away or frozen is
found out once: until it has been reached again, in the background and with jitter, every call fails at once.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import resources
from random import uniform
from time import monotonic
from typing import Any

from redis.asyncio import ConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from app.errors import LedgerUnavailable
from app.store.line import Line, dial

WINDOW = 64  # commands without a reply at most: what waits here is not late, what the server has queued may become so
SLICES = 3
REDIAL = (0.02, 0.2)  # seconds between attempts to reach a server that was lost


@dataclass(frozen=True, slots=True)
class Script:
    """A Lua script shipped beside its caller; `name` is package/file, as in quota/reserve."""

    name: str
    text: str
    sha: str


def script(package: str, name: str) -> Script:
    """Read `<name>.lua` from a package of the app."""
    text = resources.files(package).joinpath(f"{name}.lua").read_text("utf-8")
    return Script(name, text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())


Observer = Callable[[str, float, str | None], None]


class Store:
    """One Redis role. `observe(operation, seconds, error kind)` is told of every call."""

    def __init__(self, url: str, *, timeout: float = 0.15, connect_timeout: float = 0.1, observe: Observer) -> None:
        self._pool = ConnectionPool.from_url(
            url,
            socket_timeout=None,
            socket_connect_timeout=connect_timeout,
            retry=Retry(NoBackoff(), 0),
            protocol=2,
            decode_responses=False,
            driver_info=None,  # no CLIENT SETINFO: a user that may do nothing but the gateway's work need not have it
        )
        self._shapes = Redis(connection_pool=self._pool).response_callbacks
        self._timeout = timeout
        self._dial_within = connect_timeout + timeout
        self._observe = observe
        self._queue: list[tuple[tuple[Any, ...], asyncio.Future[Any]]] = []
        self._line: Line | None = None
        self._dialling: asyncio.Task[None] | None = None
        self._down = False

    async def open(self) -> None:
        """Connect now rather than at the first call. Raises LedgerUnavailable; attempts go on in the background."""
        await self.command("PING")

    async def run(self, script: Script, keys: Sequence[str], args: Sequence[Any], *, first: bool = False) -> Any:
        """Run a script by its hash.

        Args:
            first: before all that waits for room on the line, for what must not be late because others are many.

        Raises:
            LedgerUnavailable: no answer in time, or an answer that is an error; the effect is unknown.
        """
        call = ("EVALSHA", script.sha, len(keys), *keys, *args)
        reply = await self._ask(script.name, call, first=first)
        if isinstance(reply, Exception) and str(reply).startswith("NOSCRIPT"):
            await self._ask("script", ("SCRIPT", "LOAD", script.text), first=True)
            reply = await self._ask(script.name, call, first=True)
        if isinstance(reply, Exception):
            raise LedgerUnavailable
        return reply

    async def command(self, *command: Any) -> Any:
        """Run one plain command. Raises LedgerUnavailable like `run`."""
        name = str(command[0])
        reply = await self._ask(name.lower(), command)
        if isinstance(reply, Exception):
            raise LedgerUnavailable
        shape = self._shapes.get(name)
        return reply if shape is None or reply is None else shape(reply)

    async def commands(self, *commands: tuple[Any, ...]) -> list[Any]:
        """Run several commands in one round trip, not atomically. Raises LedgerUnavailable if any of them failed."""
        return await asyncio.gather(*(self.command(*command) for command in commands))

    async def now_ms(self) -> int:
        """The server's clock in Unix ms: what is dated by it is not late by the clock of one process. Raises
        LedgerUnavailable."""
        seconds, micro = await self.command("TIME")
        return int(seconds) * 1000 + int(micro) // 1000

    async def aclose(self) -> None:
        """Let what is under way have its reply, then close the connection."""
        until = monotonic() + self._timeout
        while self._line is not None and self._line.pending and monotonic() < until:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
        self._down = True
        if self._dialling is not None:
            self._dialling.cancel()
        if self._line is not None:
            line, self._line = self._line, None
            line.close()

    async def _ask(self, name: str, command: tuple[Any, ...], *, first: bool = False) -> Any:
        """One reply, an error reply as a value. Raises LedgerUnavailable when there is none."""
        began = monotonic()
        try:
            reply = await self._submit(command, first=first)
        except (RedisError, OSError, TimeoutError) as error:
            self._observe(name, monotonic() - began, type(error).__name__)
            raise LedgerUnavailable from None
        self._observe(name, monotonic() - began, _kind(reply) if isinstance(reply, Exception) else None)
        return reply

    def _submit(self, command: tuple[Any, ...], *, first: bool = False) -> asyncio.Future[Any]:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()
        if self._down:
            future.set_exception(ConnectionError())
            return future
        self._queue.insert(0 if first else len(self._queue), (command, future))
        if self._line is None:
            self._redial()
        elif len(self._queue) == 1:
            loop.call_soon(self._flush)
        return future

    def _flush(self) -> None:
        if self._line is not None and self._queue and (room := WINDOW - self._line.pending) > 0:
            batch, self._queue = self._queue[:room], self._queue[room:]
            self._line.send(batch)

    def _redial(self) -> None:
        if self._dialling is None:
            self._dialling = asyncio.create_task(self._dial())

    async def _dial(self) -> None:
        """Reach the server, however long it takes; what was asked meanwhile fails with the first attempt."""
        while self._line is None:
            try:
                async with asyncio.timeout(self._dial_within):
                    line = await dial(
                        self._pool, tick=self._timeout / SLICES, ticks=SLICES, room=self._flush, closed=self._on_closed
                    )
                if not line.usable:
                    raise ConnectionError
            except Exception as error:  # uvloop has errors of its own, and nobody may wait for this task for ever
                self._observe("connect", 0.0, type(error).__name__)
                self._fail_queue()
                await asyncio.sleep(uniform(*REDIAL))
            else:
                self._line = line
        self._dialling, self._down = None, False
        self._flush()

    def _on_closed(self, line: Line) -> None:
        if self._line is line:
            self._line = None
            self._fail_queue()
            self._redial()

    def _fail_queue(self) -> None:
        self._down = True
        queue, self._queue = self._queue, []
        for _, future in queue:
            if not future.done():
                future.set_exception(ConnectionError())


def _kind(error: Exception) -> str:
    """A closed set of error kinds for metrics: the server's error word, never its text."""
    word = str(error).split(" ", 1)[0]
    return word if word in ("OOM", "BUSY", "READONLY", "LOADING", "MOVED", "WRONGTYPE", "NOAUTH", "NOPERM") else "ERR"
