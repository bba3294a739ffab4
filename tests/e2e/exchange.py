"""One HTTP exchange, byte for byte: no library tidies what is sent, and nothing that comes back is hidden."""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import urlsplit

from app.domain.tenant import KeyPolicy
from app.store.redis import Store
from app.tenants import Keyring
from tests.fleet import PEPPER, Fleet

BOUNDARY = "a-boundary-of-the-tests"


@dataclass(frozen=True)
class Answer:
    """One answer; header names in lower case, of repeated ones the last."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def document(self) -> dict[str, Any]:
        """The JSON body."""
        found: dict[str, Any] = json.loads(self.body)
        return found


Headers = Sequence[tuple[str, str | bytes]]


def send(
    url: str,
    method: str,
    target: str,
    headers: Headers = (),
    body: bytes | Iterable[bytes] = b"",
    *,
    length: bool = True,
    timeout: float = 10,
) -> Answer:
    """One exchange on a connection of its own.

    Args:
        target: the request target as it goes on the line, never normalised.
        body: bytes, or chunks, which are sent with `Transfer-Encoding: chunked`.
        length: whether a Content-Length goes with bytes; without it the headers must say where the body ends.
    """
    host = urlsplit(url).netloc
    lines = [f"{method} {target} HTTP/1.1".encode("latin-1"), f"Host: {host}".encode()]
    lines += [name.encode("latin-1") + b": " + _octets(value) for name, value in headers]
    if not isinstance(body, bytes):
        lines.append(b"Transfer-Encoding: chunked")
    elif length and (body or method in ("POST", "PUT", "PATCH")):
        lines.append(b"Content-Length: %d" % len(body))
    return exchange(url, b"\r\n".join(lines) + b"\r\n\r\n", body, method=method, timeout=timeout)


def exchange(
    url: str, head: bytes, body: bytes | Iterable[bytes] = b"", *, method: str = "POST", timeout: float = 10
) -> Answer:
    """Send these octets and read one answer; an answer that comes before the body was sent ends the sending."""
    place = urlsplit(url)
    with socket.create_connection((place.hostname, place.port), timeout=timeout) as connection:
        try:
            connection.sendall(head)
            if isinstance(body, bytes):
                connection.sendall(body)
            else:
                for chunk in body:
                    connection.sendall(b"%x\r\n%b\r\n" % (len(chunk), chunk))
                connection.sendall(b"0\r\n\r\n")
        except (BrokenPipeError, ConnectionResetError):
            pass  # refused early; what was answered is read below
        answer = http.client.HTTPResponse(connection, method=method)
        answer.begin()
        data = answer.read()
        return Answer(answer.status, {name.lower(): value for name, value in answer.getheaders()}, data)


def form(*parts: tuple[str, bytes] | tuple[str, bytes, str] | bytes, end: bool = True) -> bytes:
    """A multipart body: parts are (name, value), (name, value, more header lines), or a whole part as bytes."""
    pieces = []
    for part in parts:
        if isinstance(part, bytes):
            pieces.append(part)
            continue
        more = part[2] if len(part) == 3 else ""
        head = f'Content-Disposition: form-data; name="{part[0]}"{more}\r\n\r\n'
        pieces.append(head.encode("utf-8", "surrogatepass") + part[1])
    opening = f"--{BOUNDARY}\r\n".encode()
    return b"".join(opening + piece + b"\r\n" for piece in pieces) + (f"--{BOUNDARY}--\r\n".encode() if end else b"")


FORM = f"multipart/form-data; boundary={BOUNDARY}"
FILE = '; filename="photo.jpg"\r\nContent-Type: image/jpeg'


T = TypeVar("T")


def on_keyring(fleet: Fleet, work: Callable[[Keyring], Awaitable[T]]) -> T:
    """Do something with the fleet's keys, as the commands do it but without a process for each."""

    async def run() -> T:
        store = Store(fleet.redis_url, timeout=5, connect_timeout=5, observe=lambda *_: None)
        try:
            return await work(Keyring(store, PEPPER.encode()))
        finally:
            await store.aclose()

    return asyncio.run(run())


def make_keys(fleet: Fleet, tenants: Iterable[str]) -> dict[str, str]:
    """A new key's token for each tenant."""

    async def make(keyring: Keyring) -> dict[str, str]:
        return {name: (await keyring.create(name, "test", policy=KeyPolicy()))[1] for name in tenants}

    return on_keyring(fleet, make)


def _octets(value: str | bytes) -> bytes:
    return value if isinstance(value, bytes) else value.encode("latin-1")
