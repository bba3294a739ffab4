"""A TCP proxy that misbehaves on demand: between gateway and Redis, or between gateway and upstream.

It runs in a thread with a loop of its own. `weather` may be changed at any moment, and holds from the next bytes on;
draws come from a seed. A reply that is dropped or cut belongs to a command that did run.
"""

from __future__ import annotations

import asyncio
import random
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from urllib.parse import urlsplit

RESET = b"\x01\x00\x00\x00\x00\x00\x00\x00"  # SO_LINGER on, 0 s: close with an RST


@dataclass(frozen=True)
class Weather:
    """What goes wrong. Probabilities are per exchange: bytes of a request, then bytes of its reply.

    Args:
        delay: seconds that every reply comes later.
        jitter: up to so many seconds more, drawn evenly.
        cut_request: the connection is reset and the request never arrives.
        cut_reply: the connection is reset in the place of the reply.
        drop_reply: the reply, and all that would follow on this connection, is swallowed.
        only: exchanges whose request holds these bytes; the others pass.
        throttle: most bytes a second towards the client; None: no limit.
        stall: nothing passes in either direction, connections stay open.
        refuse: new connections are reset at once, and those that exist are cut.
    """

    delay: float = 0.0
    jitter: float = 0.0
    cut_request: float = 0.0
    cut_reply: float = 0.0
    drop_reply: float = 0.0
    only: bytes = b""
    throttle: float | None = None
    stall: bool = False
    refuse: bool = False


CALM = Weather()
FROZEN = Weather(stall=True)
DOWN = Weather(refuse=True)


@dataclass(eq=False)
class _Link:
    """One client's connection and its other end."""

    client: asyncio.StreamWriter
    server: asyncio.StreamWriter
    fate: str | None = None  # of the exchange under way
    swallowed: bool = False

    def reset(self) -> None:
        for writer in (self.client, self.server):
            if (sock := writer.get_extra_info("socket")) is not None:
                with suppress(OSError):
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            writer.transport.abort()


@dataclass
class Proxy:
    """Use `weathered` to get one that runs."""

    host: str
    port: int
    draw: random.Random
    target: str
    listens: int
    weather: Weather = CALM
    done: Counter[str] = field(default_factory=Counter)  # exchanges by what became of them
    connects: list[float] = field(default_factory=list)  # when, on the monotonic clock
    _links: set[_Link] = field(default_factory=set)
    _loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.new_event_loop)
    _changed: asyncio.Event = field(default_factory=asyncio.Event)
    _serving: set[asyncio.Task[None]] = field(default_factory=set)

    @property
    def at(self) -> str:
        """The target's URL with this proxy in between."""
        return self.target.replace(f"{self.host}:{self.port}", f"127.0.0.1:{self.listens}")

    @property
    def open(self) -> int:
        """Connections that are open now."""
        return len(self._links)

    def set(self, weather: Weather) -> None:
        """From now on."""
        self._loop.call_soon_threadsafe(self._set, weather)

    def _set(self, weather: Weather) -> None:
        self.weather = weather
        self._changed.set()
        self._changed = asyncio.Event()
        if weather.refuse:
            self._cut_all()

    def cut(self) -> None:
        """Reset every connection there is, once."""
        self._loop.call_soon_threadsafe(self._cut_all)

    def _cut_all(self) -> None:
        for link in list(self._links):
            link.reset()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._serving.add(task)
        self.connects.append(time.monotonic())
        link = None
        try:
            if self.weather.refuse:
                writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                writer.transport.abort()
                return
            answers, requests = await asyncio.open_connection(self.host, self.port)
            link = _Link(writer, requests)
            self._links.add(link)
            await asyncio.wait(
                [asyncio.ensure_future(self._forward(link, reader)), asyncio.ensure_future(self._back(link, answers))],
                return_when=asyncio.ALL_COMPLETED,
            )
        except OSError:
            writer.transport.abort()
        finally:
            if link is not None:
                self._links.discard(link)
                link.server.close()
            writer.close()
            self._serving.discard(task)

    async def _forward(self, link: _Link, reader: asyncio.StreamReader) -> None:
        """Client to server."""
        with suppress(OSError, asyncio.IncompleteReadError):
            while data := await reader.read(65_536):
                await self._while_stalled()
                if link.fate is None:
                    link.fate = self._fate(data)
                if link.fate == "cut request":
                    self.done[link.fate] += 1
                    link.reset()
                    return
                link.server.write(data)
                await link.server.drain()
        link.server.close()

    async def _back(self, link: _Link, reader: asyncio.StreamReader) -> None:
        """Server to client."""
        with suppress(OSError, asyncio.IncompleteReadError):
            while data := await reader.read(65_536):
                await self._while_stalled()
                fate, link.fate = link.fate or "passed", None
                self.done[fate] += 1
                if fate == "cut reply":
                    link.reset()
                    return
                link.swallowed = link.swallowed or fate == "drop reply"
                if link.swallowed:
                    continue
                weather = self.weather
                if weather.delay or weather.jitter:
                    await asyncio.sleep(weather.delay + self.draw.uniform(0, weather.jitter))
                await self._write(link.client, data, weather.throttle)
        link.client.close()

    async def _write(self, writer: asyncio.StreamWriter, data: bytes, throttle: float | None) -> None:
        step = len(data) if throttle is None else max(1, int(throttle / 10))
        for start in range(0, len(data), step):
            writer.write(data[start : start + step])
            await writer.drain()
            if throttle is not None:
                await asyncio.sleep(0.1)

    def _fate(self, request: bytes) -> str:
        weather = self.weather
        if weather.only not in request:
            return "passed"
        drawn = self.draw.random()
        for word, share in (
            ("cut request", weather.cut_request),
            ("cut reply", weather.cut_reply),
            ("drop reply", weather.drop_reply),
        ):
            if drawn < share:
                return word
            drawn -= share
        return "passed"

    async def _while_stalled(self) -> None:
        while self.weather.stall:
            await self._changed.wait()

    async def _run(self, listener: socket.socket, stop: asyncio.Event) -> None:
        server = await asyncio.start_server(self._serve, sock=listener)
        await stop.wait()
        server.close()
        self._set(CALM)
        self._cut_all()
        if self._serving:
            await asyncio.wait(self._serving, timeout=5)


@contextmanager
def weathered(target: str, seed: int = 0) -> Iterator[Proxy]:
    """A proxy in front of a URL's host and port, which ends with the block; `listens` is its port on loopback."""
    place = urlsplit(target)
    assert place.hostname is not None
    assert place.port is not None
    listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
    proxy = Proxy(place.hostname, place.port, random.Random(seed), target, listener.getsockname()[1])
    stop = asyncio.Event()

    def run() -> None:
        asyncio.set_event_loop(proxy._loop)
        proxy._loop.run_until_complete(proxy._run(listener, stop))
        proxy._loop.close()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        proxy._loop.call_soon_threadsafe(stop.set)
        thread.join(10)
