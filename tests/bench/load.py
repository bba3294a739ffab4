"""The load: POSTs with distinct seeds, from a process of its own, so that neither its CPU nor its memory is anybody
else's.

The tables describe a `Load` and hand it to `Generator.run`. A number of workers that each send one request after the
other, or arrivals spread evenly over `arrivals` seconds whatever becomes of them.
"""

from __future__ import annotations

import asyncio
import itertools
import multiprocessing
import re
import statistics
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Self

import aiohttp
import uvloop

TIMEOUT = 120  # seconds for one request


@dataclass(frozen=True, slots=True)
class Body:
    """A request's body around its seed; made once, however often it is sent."""

    content_type: str
    before: bytes
    after: bytes

    def pieces(self, seed: int) -> tuple[bytes, bytes]:
        """In two pieces, so that a large rest is not copied for each request."""
        return self.before + str(seed).encode(), self.after


GENERATE = Body("application/json", b'{"prompt": "a lighthouse at dawn", "seed": ', b"}")


def edit(image: bytes) -> Body:
    """A form with the picture as its last part."""
    fields = (
        b'--bench\r\nContent-Disposition: form-data; name="prompt"\r\n\r\nmake the sky stormy\r\n'
        b'--bench\r\nContent-Disposition: form-data; name="seed"\r\n\r\n'
    )
    head = (
        b'--bench\r\nContent-Disposition: form-data; name="image"; filename="a.jpg"\r\nContent-Type: image/jpeg\r\n\r\n'
    )
    return Body("multipart/form-data; boundary=bench", fields, b"\r\n" + head + image + b"\r\n--bench--\r\n")


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """One run: `seeds` says how many requests and with which seeds; the URLs take turns."""

    urls: tuple[str, ...]
    seeds: Sequence[int]
    headers: Mapping[str, str]
    body: Body = GENERATE
    concurrency: int = 1
    arrivals: float | None = None


@dataclass(frozen=True, slots=True)
class Taken:
    """What came of it: latencies of what succeeded in seconds, sorted, the reasons of what failed, and how many were in
    flight at most."""

    seconds: list[float]
    failed: Counter[str]
    most: int

    @property
    def p50(self) -> float:
        """Median; NaN without a success."""
        return statistics.median(self.seconds) if self.seconds else float("nan")

    @property
    def p99(self) -> float:
        """NaN without a success."""
        return self.seconds[int(len(self.seconds) * 0.99)] if self.seconds else float("nan")


class Generator:
    """The process; it is started at the first load."""

    def __init__(self) -> None:
        self._pool = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))

    def run(self, load: Load) -> Taken:
        """Run it to its end."""
        return self._pool.submit(_run, load).result()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()


def _run(load: Load) -> Taken:
    return uvloop.run(_all(load))


async def _all(load: Load) -> Taken:
    seconds: list[float] = []
    failed: Counter[str] = Counter()
    now = most = 0
    work = zip(load.seeds, itertools.cycle(load.urls), strict=False)

    async def one(session: aiohttp.ClientSession, seed: int, url: str) -> None:
        nonlocal now, most
        now, began = now + 1, time.perf_counter()
        most = max(most, now)
        try:
            if refusal := await _post(session, url, load.body.pieces(seed)):
                failed[refusal] += 1
                return
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            failed[type(error).__name__] += 1
            return
        finally:
            now -= 1
        seconds.append(time.perf_counter() - began)

    async def worker(session: aiohttp.ClientSession) -> None:
        for seed, url in work:
            await one(session, seed, url)

    async with (
        aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),
            timeout=aiohttp.ClientTimeout(total=TIMEOUT),
            headers={**load.headers, "Content-Type": load.body.content_type},
        ) as session,
        asyncio.TaskGroup() as group,
    ):
        if load.arrivals is None:
            for _ in range(load.concurrency):
                group.create_task(worker(session))
        else:
            began, step = time.perf_counter(), load.arrivals / len(load.seeds)
            for number, (seed, url) in enumerate(work):
                await asyncio.sleep(max(0, began + number * step - time.perf_counter()))
                group.create_task(one(session, seed, url))
    return Taken(sorted(seconds), failed, most)


async def _post(session: aiohttp.ClientSession, url: str, pieces: tuple[bytes, bytes]) -> str | None:
    """None, or the status and the code of the error."""
    length = sum(map(len, pieces))

    async def stream() -> AsyncIterator[bytes]:
        for piece in pieces:
            yield piece

    data = b"".join(pieces) if length < 65_536 else stream()
    async with session.post(url, data=data, headers={"Content-Length": str(length)}) as answer:
        body = await answer.read()
        if answer.status == 200:
            return None
        code = re.search(rb'"code": ?"(\w+)"', body)
        return f"{answer.status} {code[1].decode() if code else ''}".strip()
