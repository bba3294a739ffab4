"""One pipelined connection to Redis: commands go out in one write per turn of the event loop, replies are matched by
order.

Used by `Store` only. redis-py dials (TCP, TLS or a Unix socket, authentication, database); from then on this protocol
owns the transport and hiredis reads the replies. A caller that is cancelled never leaves a half-read reply behind,
because the line, not the caller, owns the order of replies. When it ends, for whatever reason, every command without a
reply fails.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import hiredis
from redis.asyncio import Connection, ConnectionPool
from redis.exceptions import ResponseError

LARGE = 16 * 1024
Sent = tuple[asyncio.Future[Any], int]  # who waits, and the tick in which the command left


class Line(asyncio.Protocol):
    """A connection that was dialled. `room` is called after replies came, `closed` once, when it can no longer be used.

    Timeouts are counted in ticks, each a turn of the event loop in which replies are read first: an answer that is here
    already is not taken for a late one only because this process was busy.
    """

    def __init__(
        self,
        connection: Connection,
        *,
        tick: float,
        ticks: int,
        room: Callable[[], None],
        closed: Callable[[Line], None],
    ) -> None:
        self._connection = connection  # keeps the transport's owner alive
        self._transport: asyncio.WriteTransport = connection._writer.transport  # type: ignore[union-attr]
        self._reader = hiredis.Reader(replyError=ResponseError, protocolError=ResponseError)
        self._waiting: deque[Sent] = deque()
        self._tick, self._ticks, self._patience = tick, 0, ticks
        self._timer: asyncio.TimerHandle | None = None
        self._heard = 0  # the tick in which something came last: a long reply that flows is not late
        self._room, self._closed = room, closed
        self._transport.set_protocol(self)

    @property
    def usable(self) -> bool:
        """Whether it can still carry anything."""
        return not self._transport.is_closing()

    def send(self, batch: list[tuple[tuple[Any, ...], asyncio.Future[Any]]]) -> None:
        """Write a batch of commands; each future gets its reply, an error reply as a value."""
        for _, future in batch:
            self._waiting.append((future, self._ticks))
        self._transport.writelines([part for command, _ in batch for part in self._pack(command)])
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._tick, self._on_tick)

    def close(self) -> None:
        """Drop the connection with whatever is still to come on it: a late reply is nobody's."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._transport.abort()
        self._connection._close()  # type: ignore[no-untyped-call]
        waiting, self._waiting = self._waiting, deque()
        for future, _ in waiting:
            if not future.done():
                future.set_exception(ConnectionError())
        closed, self._closed = self._closed, lambda _: None
        closed(self)

    @property
    def pending(self) -> int:
        """Commands that have no reply yet."""
        return len(self._waiting)

    def data_received(self, data: bytes) -> None:
        """Hand out the replies that are complete."""
        self._reader.feed(data)
        self._heard = self._ticks
        while self._waiting:
            try:
                reply = self._reader.gets()
            except ResponseError:  # not RESP: whatever it is, it is not to be trusted
                return self.close()
            if reply is False:
                break
            future, _ = self._waiting.popleft()
            if not future.done():
                future.set_result(reply)
        self._room()
        return None

    def connection_lost(self, error: Exception | None) -> None:
        """The server or the network ended it."""
        self.close()

    @staticmethod
    def _pack(command: tuple[Any, ...]) -> Sequence[bytes | memoryview]:
        """The command on the wire. A picture is not copied into it: that costs several times what sending it does."""
        if len(command) > 2 and type(value := command[2]) in (bytes, memoryview) and len(value) > LARGE:
            before, after = (hiredis.pack_command(part).partition(b"\r\n")[2] for part in (command[:2], command[3:]))
            return (b"*%d\r\n%b$%d\r\n" % (len(command), before, len(value)), value, b"\r\n" + after)
        return (hiredis.pack_command(command),)

    def _on_tick(self) -> None:
        self._timer = None
        self._ticks += 1
        if not self._waiting:
            return
        if self._ticks - max(self._waiting[0][1], self._heard) > self._patience:
            self.close()
        else:
            self._timer = asyncio.get_running_loop().call_later(self._tick, self._on_tick)


async def dial(
    pool: ConnectionPool, *, tick: float, ticks: int, room: Callable[[], None], closed: Callable[[Line], None]
) -> Line:
    """Connect, and have an answer: the kernel takes connections for a server that is frozen, too. Raises RedisError or
    OSError; bounding the time is the caller's part."""
    connection: Connection = pool.make_connection()  # type: ignore[no-untyped-call]
    try:
        await connection.connect()  # type: ignore[no-untyped-call]
        await connection.send_command("PING")
        await connection.read_response()
    except BaseException:
        connection._close()  # type: ignore[no-untyped-call]
        raise
    return Line(connection, tick=tick, ticks=ticks, room=room, closed=closed)
