"""Hands an answer to the caller: whole, slowly, in part, or not at all.

Called last for every job. To end a connection it uses the transport that `listen.py` puts into the ASGI scope; under
a bare uvicorn it falls back on breaking the response, which closes the connection too but leaves an error in its log.
"""

import asyncio
import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass

from starlette.types import Receive, Scope, Send

from .document import random_id

TRANSPORT = "kontext.sandbox.transport"
"""Name of the scope extension that holds the connection's `asyncio.Transport`."""
PATIENCE = 5.0
"""Seconds to wait for a closed connection to be reported as closed."""


@dataclass(frozen=True, slots=True)
class Whole:
    """All of it at once; chunked instead of with a length if so asked."""

    chunked: bool = False


@dataclass(frozen=True, slots=True)
class Cut:
    """The head and this fraction of the announced body, then the end of the connection. 0: not one byte."""

    fraction: float
    reset: bool


@dataclass(frozen=True, slots=True)
class Hang:
    """Nothing, until the caller gives up or the seconds have passed."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Trickle:
    """All of it in so many pieces over so many seconds."""

    seconds: float
    pieces: int


@dataclass(frozen=True, slots=True)
class Answer:
    """One HTTP answer and how it is handed over."""

    status: int
    content_type: str
    body: bytes
    headers: Sequence[tuple[str, str]] = ()
    delivery: Whole | Cut | Hang | Trickle = Whole()


def text(status: int, body: str, headers: Sequence[tuple[str, str]] = ()) -> Answer:
    """A plain text answer, as Go's `http.Error` gives it."""
    return Answer(status, "text/plain; charset=utf-8", body.encode(), headers)


async def deliver(answer: Answer, scope: Scope, receive: Receive, send: Send) -> None:
    match answer.delivery:
        case Whole(chunked):
            await _start(answer, send, chunked=chunked)
            await send({"type": "http.response.body", "body": answer.body})
        case Trickle(seconds, pieces):
            await _start(answer, send)
            step = -(-len(answer.body) // pieces) or 1
            for at in range(0, len(answer.body), step):
                await asyncio.sleep(seconds / pieces)
                await send({"type": "http.response.body", "body": answer.body[at : at + step], "more_body": True})
            await send({"type": "http.response.body", "body": b""})
        case Hang(seconds):
            if not await _left(receive, seconds):
                await _end(scope, receive, send, reset=False)
        case Cut(fraction, reset):
            if fraction:
                await _start(answer, send)
                some = answer.body[: int(len(answer.body) * fraction)]
                await send({"type": "http.response.body", "body": some, "more_body": True})
            await _end(scope, receive, send, reset=reset)


async def _start(answer: Answer, send: Send, *, chunked: bool = False) -> None:
    headers = [("content-type", answer.content_type), ("x-request-id", random_id()), *answer.headers]
    if not chunked:
        headers.append(("content-length", str(len(answer.body))))
    raw = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers]
    await send({"type": "http.response.start", "status": answer.status, "headers": raw})


async def _left(receive: Receive, seconds: float) -> bool:
    """Waits for the caller to close the connection; False when it has not within the time."""
    try:
        async with asyncio.timeout(seconds):
            while (await receive())["type"] != "http.disconnect":
                pass
    except TimeoutError:
        return False
    return True


class ConnectionCutError(Exception):
    """Raised into a server that offers no transport, so that it drops the connection."""


async def _end(scope: Scope, receive: Receive, send: Send, *, reset: bool) -> None:
    transport: asyncio.Transport | None = scope.get("extensions", {}).get(TRANSPORT)
    if transport is None:
        # A header name that no server may send makes uvicorn drop the connection before the first byte.
        await send({"type": "http.response.start", "status": 200, "headers": [(b"\x00", b"")]})
        raise ConnectionCutError
    if reset:
        linger = struct.pack("ii", 1, 0)
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        transport.abort()
    else:
        transport.close()  # after what was already written
    await _left(receive, PATIENCE)
