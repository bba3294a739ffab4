"""Uploads in crowds, of a size and of shapes that are meant to hurt; for the tests of the door and the row on them."""

from __future__ import annotations

import asyncio
from collections import Counter

from tests.door.wire import Ending, Wire, upload_head
from tests.e2e.exchange import FILE, FORM, form

MB = 1_000_000
ROOM = 192 * MB * 7 // 8
UPLOAD = form(("prompt", b"make the sky stormy"), ("image", b"\xff\xd8\xff" + b"x" * 10 * MB, FILE))
PIECE = 64 * 1024
KIND = f"Content-Type: {FORM}"


async def pour(wire: Wire, body: memoryview) -> None:
    """Send it in pieces for as long as it is taken: who sends hundreds whole, and at once, comes to read too late."""
    for at in range(0, len(body), PIECE):
        if wire.writer.is_closing():
            return
        await wire.send(body[at : at + PIECE])
        await asyncio.sleep(0)


async def early(url: str, data: bytes, body: bytes) -> Ending:
    """Send a head, and the body for as long as it is taken; the answer is waited for at the same time."""
    wire = await Wire.open(url)
    await wire.send(data)
    sending = asyncio.create_task(pour(wire, memoryview(body)))
    end = await wire.rest()
    sending.cancel()
    return end


def at_once(url: str, key: str, count: int) -> Counter[int]:
    """So many uploads of 10 MB, all begun before any is whole; how many were answered what. Those that there is no room
    for are answered while the others are still half sent."""
    whole, half = memoryview(UPLOAD), len(UPLOAD) // 2

    async def one(started: asyncio.Future[None]) -> Ending:
        wire = await Wire.open(url)
        await wire.send(upload_head(key, f"Content-Length: {len(UPLOAD)}"))
        answered, sending = asyncio.create_task(wire.rest()), asyncio.create_task(pour(wire, whole[:half]))
        await asyncio.wait((answered, started), return_when=asyncio.FIRST_COMPLETED)
        if not answered.done():
            await sending
            await wire.send(whole[half:])
        sending.cancel()
        return await answered

    async def run() -> Counter[int]:
        started = asyncio.get_running_loop().create_future()
        work = [asyncio.create_task(one(started)) for _ in range(count)]
        refused, until = 0, asyncio.get_running_loop().time() + 5
        while refused < count - ROOM // len(UPLOAD) and asyncio.get_running_loop().time() < until:
            await asyncio.sleep(0.05)
            refused = sum(task.done() for task in work)
        started.set_result(None)
        return Counter(end.statuses[0] if end.statuses else 0 for end in await asyncio.gather(*work))

    return asyncio.run(run())


# What else an upload can claim to be: the lines of its head about length, what is sent, and what it may be answered.
TRICKS: dict[str, tuple[str, bytes, set[int]]] = {
    "chunks without end": ("Transfer-Encoding: chunked", b"%x\r\n%b\r\n" % (MB, b"x" * MB) * 30, {400, 413, 503}),
    "a length of 10 GB": (f"Content-Length: {10_000 * MB}", UPLOAD, {413}),
    "a length that is too short": ("Content-Length: 1000", UPLOAD[:20_000], {400}),
    "10,000 tiny fields": (
        "Transfer-Encoding: chunked",
        b"%x\r\n%b\r\n0\r\n\r\n" % (len(many := form(*[(f"f{n}", b"x") for n in range(10_000)])), many), {400, 413},
    ),
    "10,000 tiny files": (
        "Transfer-Encoding: chunked",
        b"%x\r\n%b\r\n0\r\n\r\n" % (len(files := form(*[(f"f{n}", b"x", FILE) for n in range(10_000)])), files),
        {400, 413},
    ),
}  # fmt: skip


def tricks(url: str, key: str, each: int) -> dict[str, Counter[int]]:
    """So many of each, all at once: how they were answered."""

    async def run() -> dict[str, Counter[int]]:
        found = {}
        for name, (length, body, _) in TRICKS.items():
            ends = await asyncio.gather(*(early(url, upload_head(key, length), body) for _ in range(each)))
            found[name] = Counter(end.statuses[0] if end.statuses else 0 for end in ends)
        return found

    return asyncio.run(run())
