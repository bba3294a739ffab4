"""The door of a listener: uvicorn's httptools protocol, with deadlines for what a client sends and takes.

Made by `serve`, one for each connection. There is no timer per connection or request: one `sweep` a second in each
process ends what is late. A body is read off the socket only once the application asks for it; an answer that comes
before its body is whole ends the connection, and a second request before the first answer is not looked at.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from enum import IntEnum
from typing import Any, ClassVar

import httptools
import uvicorn
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from app.telemetry.access import refusal

HEAD_SECONDS = 10.0  # for a request's head, from its first byte on
BODY_SECONDS = 30.0  # for its body, and for the client to take an answer, beside the time that BYTES_PER_SECOND gives
BYTES_PER_SECOND = 32 * 1024
LINGER_SECONDS = 2.0  # after an early answer a connection stays open so long for a client that sends, to be read
QUIET_SECONDS = 10.0  # and so long for one that does not send yet
SWEEP_SECONDS = 1.0
HEAD_BYTES = 60 * 1024  # read at once; so much is read of a body before it is known whether it is wanted
BODY_BYTES = 256 * 1024  # read at once of one that is


class Stage(IntEnum):
    """What a connection waits for."""

    IDLE = 0  # the first byte of a request
    HEAD = 1  # the rest of its head
    BODY = 2  # the rest of its body
    ANSWER = 3  # the application
    ENDED = 4  # the client, which may still read what was answered


class Door(HttpToolsProtocol):
    """One connection. `most` connections are open at once; `idle` seconds may pass between requests."""

    most: ClassVar[int] = 1000
    idle: ClassVar[float] = 5.0

    _lasting = True

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take the connection, or say that there are too many."""
        super().connection_made(transport)
        self._stage, self._since, self._received, self._unsent_since = Stage.IDLE, self.loop.time(), 0, 0.0
        self._lingers = QUIET_SECONDS
        self._early = EarlyAnswer(self)
        transport.set_protocol(Reads(self))  # type: ignore[arg-type]
        if len(self.connections) > self.most:
            self._stage = Stage.ENDED
            transport.write(_answer("overloaded", None))
            transport.close()

    def data_received(self, data: bytes | memoryview) -> None:
        """Feed the parser; what is not HTTP is refused and hung up on."""
        before = self._stage
        if before is Stage.ENDED:
            return self._heard()
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserError:
            self._unreadable()
        except httptools.HttpParserUpgrade:
            self._last()  # answered as HTTP/1.1; nothing that follows is read
        if before < Stage.BODY and self._stage is Stage.BODY:
            self.flow.pause_reading()  # until the application asks: it may refuse by the head alone
        return None

    def on_message_begin(self) -> None:
        """The first byte of a request."""
        if self._stage is Stage.ANSWER:
            raise BufferError("a request before the answer to the one before it")
        super().on_message_begin()
        self._stage, self._since, self._received = Stage.HEAD, self.loop.time(), 0

    def on_headers_complete(self) -> None:
        """The head is whole: until the body is too, an answer is an early one."""
        super().on_headers_complete()
        self._stage, self._since = Stage.BODY, self.loop.time()
        cycle = self.cycle
        self._lasting = cycle.keep_alive
        cycle.keep_alive, cycle.transport = False, self._early  # type: ignore[assignment]

    def on_body(self, body: bytes) -> None:
        """A piece of the body."""
        self._received += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The request is whole."""
        super().on_message_complete()
        if self._stage is Stage.BODY and not self.cycle.response_started:
            self._stage = Stage.ANSWER
            self.cycle.keep_alive, self.cycle.transport = self._lasting, self.transport

    def on_response_complete(self) -> None:
        """Answered; without uvicorn's timer and its queue of requests that came too early."""
        self.server_state.total_requests += 1
        if self._stage is not Stage.ENDED and not self.transport.is_closing():
            self.flow.resume_reading()
            self._stage, self._since = Stage.IDLE, self.loop.time()

    def shutdown(self) -> None:
        """Close when what is under way is answered."""
        self._lasting = False
        super().shutdown()

    def end(self) -> None:
        """Send what is written and no more, and leave the client a moment to see it.

        What a client sends to a closed connection resets it, and many would never see why. So it is closed when the
        client has closed it, or some time after it was last heard; what it sends is not read."""
        if self._stage is not Stage.ENDED and not self.transport.is_closing():
            self._stage, self._since = Stage.ENDED, self.loop.time()
            self.transport.write_eof()
            self.flow.resume_reading()

    @property
    def reads(self) -> int:
        """Bytes to read at once: a body is only read while it is wanted, and of what follows an early answer one byte
        tells that the client still sends."""
        if self._stage is Stage.BODY:
            return BODY_BYTES
        return 1 if self._stage is Stage.ENDED else HEAD_BYTES

    def _heard(self) -> None:
        """The client still sends: it is left the time to notice the answer, and what it sends is left where it is."""
        self._since, self._lingers = self.loop.time(), LINGER_SECONDS
        self.flow.pause_reading()

    def sweep(self, now: float) -> None:
        """End this connection if it is late with anything."""
        unsent = self.transport.get_write_buffer_size()
        if not unsent:
            self._unsent_since = 0.0
        elif not self._unsent_since:
            self._unsent_since = now + unsent / BYTES_PER_SECOND
        elif now - self._unsent_since > BODY_SECONDS:
            return self.transport.abort()
        waited = now - self._since
        match self._stage:
            case Stage.IDLE if waited > self.idle:
                self.transport.close()
            case Stage.HEAD if waited > HEAD_SECONDS:
                self._refuse("request_timeout")
            case Stage.BODY if waited > BODY_SECONDS + self._received / BYTES_PER_SECOND and not self.flow.read_paused:
                self.scope["state"]["late"] = True
                self._refuse("request_timeout")
            case Stage.ENDED if waited > self._lingers and not unsent:
                self.transport.close()
        return None

    def _unreadable(self) -> None:
        if self._stage is Stage.ANSWER:
            self._last()
        else:
            self._refuse("invalid_request", 400)

    def _last(self) -> None:
        """The request under way is the last of this connection."""
        self._lasting = self.cycle.keep_alive = False
        self.cycle.transport = self._early  # type: ignore[assignment]
        self.flow.pause_reading()

    def _refuse(self, code: str, status: int | None = None) -> None:
        """Answer in the place of the application, which learns that the client is gone."""
        cycle = self.cycle if self._stage is Stage.BODY else None
        if cycle is None or not cycle.response_started:
            record = None if cycle is None else self.scope["state"].get("record")
            self.transport.write(_answer(code, status, getattr(record, "request_id", None)))
        if cycle is not None:
            cycle.disconnected = True
            cycle.message_event.set()
        self.end()


class Reads:
    """What the event loop sees of a connection: a `BufferedProtocol` that reads into one buffer of the process."""

    _buffer = memoryview(bytearray(BODY_BYTES))

    def __init__(self, door: Door) -> None:
        self._door = door
        self.connection_lost, self.eof_received = door.connection_lost, door.eof_received
        self.pause_writing, self.resume_writing = door.pause_writing, door.resume_writing

    def get_buffer(self, hint: int) -> memoryview:
        """Where the next read goes."""
        return self._buffer[: self._door.reads]

    def buffer_updated(self, count: int) -> None:
        """So many bytes were read."""
        self._door.data_received(self._buffer[:count])


class EarlyAnswer:
    """The transport as an answer sees it that comes before its request's body is whole."""

    def __init__(self, door: Door) -> None:
        self._door = door

    def write(self, data: bytes) -> None:
        """Send."""
        self._door.transport.write(data)

    def is_closing(self) -> bool:
        """Whether nothing can be sent any more."""
        return self._door.transport.is_closing()

    def close(self) -> None:
        """The answer was the last thing on this connection."""
        self._door.end()


def door(*, most: int, idle: float) -> type[Door]:
    """The protocol of one listener: at most so many connections, each idle for at most so many seconds."""
    return type("Door", (Door,), {"most": most, "idle": idle})


async def sweep(listeners: Iterable[uvicorn.Server]) -> None:
    """End what is late on these listeners, until cancelled."""
    loop = asyncio.get_running_loop()
    while True:
        await asyncio.sleep(SWEEP_SECONDS)
        for listener in listeners:
            for connection in tuple(listener.server_state.connections):
                connection.sweep(loop.time())  # type: ignore[union-attr]


def _answer(code: str, status: int | None, request_id: str | None = None) -> bytes:
    """A whole answer, for where there is no application to give one."""
    status, headers, body = refusal(code, status, request_id)
    lines: list[Any] = [b"%b: %b\r\n" % header for header in (*headers, (b"connection", b"close"))]
    return b"".join((STATUS_LINE[status], *lines, b"\r\n", body))
