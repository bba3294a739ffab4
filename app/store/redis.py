"""Redis for everybody else: scripts and commands, batched, bounded in time, translated to one exception.

Calls made in the same turn of the event loop travel as one pipeline on one pooled connection: fewer system calls, and
a caller that is cancelled never leaves a half-read reply on a connection, because the batch, not the caller, owns it.
Nothing is ever re-sent by the client itself; a script missing on the server (NOSCRIPT: it did not run) is loaded and
run once more. Any failure becomes `LedgerUnavailable`; whether the command took effect is then unknown to the caller.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import resources
from time import monotonic
from typing import Any

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError, RedisError, ResponseError

from app.errors import LedgerUnavailable

BATCH = 128  # commands that travel together at most
CONNECTIONS = 8  # batches under way at most
SLICES = 3


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
    """One Redis role. `observe(operation, seconds, error kind)` is told of every batch."""

    def __init__(self, url: str, *, timeout: float = 0.15, connect_timeout: float = 0.1, observe: Observer) -> None:
        pool = BlockingConnectionPool.from_url(
            url,
            max_connections=CONNECTIONS,
            timeout=timeout,
            socket_timeout=None,
            socket_connect_timeout=connect_timeout,
            retry=Retry(NoBackoff(), 0),
            protocol=2,
            decode_responses=False,
        )
        self.client = Redis(connection_pool=pool)
        self._timeout = timeout
        self._observe = observe
        self._queue: list[tuple[tuple[Any, ...], Script | None, asyncio.Future[Any]]] = []
        self._tasks: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        """Open every connection now, so that a burst of first requests does not wait for connecting.

        Raises:
            LedgerUnavailable: at least one did not answer.
        """
        try:
            await asyncio.gather(*(self._execute([("PING",)]) for _ in range(CONNECTIONS)))
        except (RedisError, OSError, TimeoutError):
            raise LedgerUnavailable from None

    async def run(self, script: Script, keys: Sequence[str], args: Sequence[Any]) -> Any:
        """Run a script by its hash.

        Raises:
            LedgerUnavailable: no answer in time, or an answer that is an error; the effect is unknown.
        """
        return await self._submit(("EVALSHA", script.sha, len(keys), *keys, *args), script)

    async def command(self, *command: Any) -> Any:
        """Run one plain command. Raises LedgerUnavailable like `run`."""
        return await self._submit(command, None)

    async def commands(self, *commands: tuple[Any, ...]) -> list[Any]:
        """Run several commands in one round trip, not atomically. Raises LedgerUnavailable if any of them failed."""
        return await asyncio.gather(*(self._submit(command, None) for command in commands))

    async def aclose(self) -> None:
        """Finish batches under way, then close the pool."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=1)
        await self.client.aclose()
        await self.client.connection_pool.disconnect()

    async def _submit(self, command: tuple[Any, ...], script: Script | None) -> Any:
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._queue.append((command, script, future))
        if len(self._queue) == 1:
            asyncio.get_running_loop().call_soon(self._flush)
        return await future

    def _flush(self) -> None:
        """Send what is queued; while all connections are busy it waits, and the batches grow."""
        while self._queue and len(self._tasks) < CONNECTIONS:
            batch, self._queue = self._queue[:BATCH], self._queue[BATCH:]
            task = asyncio.create_task(self._send(batch))
            self._tasks.add(task)
            task.add_done_callback(self._sent)

    def _sent(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._flush()

    async def _send(self, batch: list[tuple[tuple[Any, ...], Script | None, asyncio.Future[Any]]]) -> None:
        began = monotonic()
        name = batch[0][1].name if batch[0][1] else str(batch[0][0][0]).lower()
        try:
            replies = await self._in_time([command for command, _, _ in batch])
            missing = [i for i, reply in enumerate(replies) if isinstance(reply, NoScriptError)]
            if missing:
                for text in {batch[i][1].text for i in missing if batch[i][1]}:  # type: ignore[union-attr]
                    await self.client.script_load(text)
                again = await self._in_time([batch[i][0] for i in missing])
                for i, reply in zip(missing, again, strict=True):
                    replies[i] = reply
        except (RedisError, OSError, TimeoutError) as error:
            self._observe(name, monotonic() - began, type(error).__name__)
            for _, _, future in batch:
                if not future.done():
                    future.set_exception(LedgerUnavailable())
            return
        failed: str | None = None
        for (_, _, future), reply in zip(batch, replies, strict=True):
            if isinstance(reply, Exception):
                failed = _kind(reply)
                if not future.done():
                    future.set_exception(LedgerUnavailable())
            elif not future.done():
                future.set_result(reply)
        self._observe(name, monotonic() - began, failed)

    async def _in_time(self, commands: list[tuple[Any, ...]]) -> list[Any]:
        """Replies within the timeout. It is counted in slices with a turn of the event loop between them, so that an
        answer that is here already is not taken for a late one only because this process was busy."""
        work = asyncio.ensure_future(self._execute(commands))
        for _ in range(SLICES):
            if (await asyncio.wait((work,), timeout=self._timeout / SLICES))[0]:
                return work.result()
        work.cancel()  # drops the connection with it: a late reply is nobody's
        await asyncio.wait((work,))
        raise TimeoutError

    async def _execute(self, commands: list[tuple[Any, ...]]) -> list[Any]:
        if len(commands) == 1:
            try:
                return [await self.client.execute_command(*commands[0])]  # type: ignore[no-untyped-call]
            except ResponseError as error:
                return [error]
        pipeline = self.client.pipeline(transaction=False)
        for command in commands:
            pipeline.execute_command(*command)
        replies: list[Any] = await pipeline.execute(raise_on_error=False)
        return replies


def _kind(error: Exception) -> str:
    """A closed set of error kinds for metrics: the server's error word, never its text."""
    word = str(error).split(" ", 1)[0]
    return word if word in ("OOM", "BUSY", "READONLY", "LOADING", "MOVED", "WRONGTYPE", "NOAUTH", "NOPERM") else "ERR"
