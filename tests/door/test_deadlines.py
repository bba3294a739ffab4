"""A client that is slow or silent is cut off on time, and everybody else is served meanwhile.

Forty connections of each kind stand for the two thousand of the design's figure.
"""

from __future__ import annotations

import asyncio
import socket
import statistics
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import monotonic, sleep

from tests.door.wire import LATE, Ending, Wire, established, gateway, head, upload_head
from tests.e2e.exchange import form, make_keys, send
from tests.fleet import Replica

EACH = 40
EARLY = 1.0  # seconds by which a client that is held up may begin to count after the server did
PICTURE = 3_000_000
OPENING = form(("prompt", b"make"), end=False)[:-2]


async def silent(url: str, key: str) -> Ending:
    return await (await Wire.open(url)).rest()


async def idle(url: str, key: str) -> Ending:
    wire = await Wire.open(url)
    await wire.send(head("GET", "/v1/me", key))
    await wire.reader.readuntil(b"\r\n\r\n")
    return await wire.rest()


async def drip(wire: Wire, octet: bytes) -> Ending:
    """Send one octet a second until there is an end."""

    async def feed() -> None:
        while await wire.send(octet):  # noqa: ASYNC110  # slowness is what is sent
            await asyncio.sleep(1)

    feeding = asyncio.create_task(feed())
    try:
        return await wire.rest()
    finally:
        feeding.cancel()


async def slow_head(url: str, key: str) -> Ending:
    wire = await Wire.open(url)
    await wire.send(b"POST /v1/edit HTTP/1.1\r\nHost: gateway\r\nX-Slow: ")
    return await drip(wire, b"x")


async def slow_body(url: str, key: str) -> Ending:
    wire = await Wire.open(url)
    await wire.send(upload_head(key, "Content-Length: 5000") + OPENING)
    return await drip(wire, b"x")


async def slow_chunks(url: str, key: str) -> Ending:
    wire = await Wire.open(url)
    await wire.send(upload_head(key, "Transfer-Encoding: chunked") + b"%x\r\n%b\r\n" % (len(OPENING), OPENING))
    return await drip(wire, b"1\r\nx\r\n")


KINDS = {
    silent: (5.0, []),
    idle: (5.0, []),
    slow_head: (10.0, [408]),
    slow_body: (30.0, [408]),
    slow_chunks: (30.0, [408]),
}


async def good(url: str, key: str, until: asyncio.Future[object]) -> list[float]:
    """Twenty requests a second that mean well; how long each took."""
    took = []
    while not until.done():
        wire, began = await Wire.open(url), monotonic()
        await wire.send(head("GET", "/v1/me", key, "Connection: close"))
        assert (await wire.rest()).statuses == [200]
        took.append(monotonic() - began)
        await asyncio.sleep(0.05)
    return took


def reader_that_stops(replica: Replica, key: str) -> float:
    """Ask for a large picture and take none of it; seconds until the server's side is closed."""
    body = b'{"prompt":"a lighthouse","seed":1}'
    headers = [("Authorization", f"Bearer {key}"), ("Content-Type", "application/json")]
    made = send(replica.url, "POST", "/v1/generate", headers, body)
    with socket.socket() as reader:
        reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        reader.connect(("127.0.0.1", int(replica.url.rpartition(":")[2])))
        reader.sendall(head("GET", f"/v1/images/{made.headers['gateway-image-id']}", key))
        began = monotonic()
        while established(replica.process.pid, reader.getsockname()[1]):
            assert monotonic() - began < 30 + PICTURE / 32_768 + LATE
            sleep(0.5)
        return monotonic() - began


def test_slow_and_silent_connections_end_on_time_and_nobody_else_notices(tmp_path: Path) -> None:
    sandbox = ("--time-scale", "0", "--picture", "small", "--set", f"picture_bytes={PICTURE}")
    with gateway(tmp_path, *sandbox) as (running, replica), ThreadPoolExecutor(1) as beside:
        key = make_keys(running, ["acme"])["acme"]
        reading = beside.submit(reader_that_stops, replica, key)

        async def attack() -> None:
            ends = asyncio.gather(*(kind(replica.url, key) for kind in KINDS for _ in range(EACH)))
            took = await good(replica.url, key, ends)
            found = await ends
            for number, (kind, (seconds, statuses)) in enumerate(KINDS.items()):
                mine = found[number * EACH : (number + 1) * EACH]
                for end in mine:
                    assert end.statuses == statuses, (kind.__name__, end)
                    assert seconds - EARLY <= end.seconds <= seconds + LATE, (kind.__name__, end.seconds)
                    assert not statuses or end.code == "request_timeout"
                print(f"\n{kind.__name__}: closed after {max(end.seconds for end in mine):.1f} s at the latest", end="")
            print(f"; {len(took)} good requests, p99 {statistics.quantiles(took, n=100)[98] * 1000:.0f} ms")

        asyncio.run(attack())
        assert reading.result() > 30
        lines = replica.log.read_text().splitlines()
        assert sum('"outcome":"request_timeout"' in line and '"status":408' in line for line in lines) == 2 * EACH
