"""A raw TCP upstream on loopback whose every byte, pause and cut a test decides, and the client that calls it."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import pytest

from app.prodia.client import Prodia
from app.prodia.faults import Fault
from app.prodia.wire import BytesBlob, Call, Completed, Part
from tests.prodia.answers import COMPLETED, JOB_ID, JPEG, MULTIPART


@dataclass
class Received:
    """One request as it came over the wire."""

    head: bytes
    body: bytes

    def headers(self, name: str) -> list[str]:
        lines = (line.partition(b":") for line in self.head.split(b"\r\n")[1:])
        return [value.strip().decode() for key, _, value in lines if key.lower() == name.encode()]


@dataclass
class Wire:
    """One connection, seen from the upstream."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    upstream: Upstream

    async def head(self) -> bytes:
        return await self.reader.readuntil(b"\r\n\r\n")

    async def request(self) -> Received:
        head = await self.head()
        received = Received(head, b"")
        received.body = await self.reader.readexactly(int(received.headers("content-length")[0]))
        self.upstream.received.append(received)
        return received

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    def reset(self) -> None:
        """Cuts the connection with an RST instead of a FIN."""
        sock = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
        self.writer.transport.abort()


@dataclass
class Upstream:
    url: str = ""
    connections: int = 0
    received: list[Received] = field(default_factory=list)
    open: set[asyncio.Task[None]] = field(default_factory=set)


Behaviour = Callable[[Wire], Awaitable[None]]


@asynccontextmanager
async def upstream(behaviour: Behaviour, *, receive_buffer: int | None = None) -> AsyncIterator[Upstream]:
    """Runs `behaviour` for each connection and closes the connection after it; `Upstream` counts what came."""
    state = Upstream()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        state.connections += 1
        task = asyncio.current_task()
        assert task is not None
        state.open.add(task)
        try:
            with suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
                await behaviour(Wire(reader, writer, state))
        finally:
            state.open.discard(task)
            writer.close()

    listener = socket.create_server(("127.0.0.1", 0))
    if receive_buffer is not None:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    server = await asyncio.start_server(serve, sock=listener, limit=2**17)
    state.url = f"http://127.0.0.1:{listener.getsockname()[1]}/v2"
    try:
        yield state
    finally:
        server.close()
        for task in list(state.open):
            task.cancel()
        await asyncio.sleep(0.01)


def http(
    status: int = 200, body: bytes = COMPLETED, content_type: str = MULTIPART, *headers: str, length: int | None = None
) -> bytes:
    """An HTTP answer, by default a completed job."""
    lines = [
        f"HTTP/1.1 {status} Whatever",
        f"Content-Type: {content_type}",
        f"Content-Length: {len(body) if length is None else length}",
        *headers,
    ]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


async def answers(wire: Wire) -> None:
    """A healthy upstream that keeps connections open."""
    while True:
        await wire.request()
        await wire.send(http())


def answering(data: bytes) -> Behaviour:
    """An upstream that reads the whole request, sends this and closes."""

    async def behaviour(wire: Wire) -> None:
        await wire.request()
        await wire.send(data)

    return behaviour


TOKEN = "tok-" + "s3cret" * 8
TEXT = Call("inference.flux-kontext.pro.txt2img.v2", {"prompt": "a storm"}, (), "jpeg")
PICTURE = Completed(JPEG, "image/jpeg", JOB_ID, 40_000, 5.82)


def edit(size: int) -> Call:
    return Call("img2img", {"prompt": "a storm"}, (Part("a.png", "image/png", BytesBlob(b"x" * size)),), "jpeg")


@asynccontextmanager
async def prodia(url: str, **more: Any) -> AsyncIterator[Prodia]:
    subject = Prodia(base_url=url, token=TOKEN, **({"max_connections": 8} | more))
    try:
        yield subject
    finally:
        await subject.aclose()


async def outcome(subject: Prodia, call: Call = TEXT, *, timeout: float = 5.0) -> Fault:
    with pytest.raises(Fault) as caught:
        await subject.attempt(call, timeout=timeout)
    return caught.value
