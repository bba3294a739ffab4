"""L-01, S-06, S-07: connections that are slow, ambiguous or of another protocol, at the gateway and through HAProxy."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.door.test_deadlines import KINDS, good
from tests.door.test_framing import LENGTH, SHAPES, post
from tests.door.wire import LATE, Ending, Wire, gateway, head
from tests.e2e.exchange import make_keys
from tests.faults.row import Run, row
from tests.faults.rows.deploys import balanced
from tests.faults.storm import PATIENT
from tests.fleet import Fleet

UPGRADES = (
    ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQAAP__"),
    ("Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
     "Sec-WebSocket-Version: 13"),
)  # fmt: skip
FOREIGN = {
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc",
    "CONNECT": b"CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n",
}


@contextmanager
def both(run: Run) -> Iterator[tuple[Fleet, str, dict[str, str]]]:
    """A gateway, a key, and the two ways to it."""
    with gateway(run.folder, **PATIENT) as (running, replica), balanced(run.folder, [replica]) as balancer:
        yield running, make_keys(running, ["acme"])["acme"], {"direct": replica.url, "HAProxy": balancer}


def heard(url: str, *pieces: bytes, seconds: float = 7) -> Ending:
    """Everything that comes back for these pieces, sent one after the other, until an end or so many seconds."""

    async def run() -> Ending:
        wire, data = await Wire.open(url), b""
        for piece in pieces:
            await wire.send(piece)
            await asyncio.sleep(0.02)
        with suppress(ConnectionError, TimeoutError):
            async with asyncio.timeout(seconds):
                while piece := await wire.reader.read(65_536):
                    data += piece
        await wire.drop()
        return Ending(data, seconds)

    return asyncio.run(run())


@row(
    "L-01",
    "slow and silent connections end on time, and good traffic beside them succeeds, with and without HAProxy",
    ci={"each": 20, "kinds": 3},
    nightly={"each": 300, "kinds": 5},
)
def slow_connections(run: Run, each: int, kinds: int) -> None:
    wanted = dict(list(KINDS.items())[:kinds])

    async def attack(url: str, key: str) -> tuple[list[Ending], list[float]]:
        ends = asyncio.gather(*(kind(url, key) for kind in wanted for _ in range(each)))
        took = await good(url, key, ends)
        return await ends, took

    async def attack_both(urls: Iterable[str], key: str) -> list[tuple[list[Ending], list[float]]]:
        return await asyncio.gather(*(attack(url, key) for url in urls))

    told = []
    with both(run) as (_, key, ways):
        for way, (ends, took) in zip(ways, asyncio.run(attack_both(ways.values(), key)), strict=True):
            for number, (kind, (seconds, statuses)) in enumerate(wanted.items()):
                mine = ends[number * each : (number + 1) * each]
                late = max(end.seconds for end in mine)
                # HAProxy gives a silent connection as long as a slow head, and says so.
                limit = max(seconds, 10.0) if way == "HAProxy" else seconds
                assert late <= limit + run.within(LATE), (way, kind.__name__, late)
                assert way == "HAProxy" or all(end.statuses == statuses for end in mine), (way, kind.__name__)
            p99 = statistics.quantiles(took, n=100)[98] * 1000
            told.append(
                f"{way}: {len(ends)} closed in {max(end.seconds for end in ends):.0f} s at most, "
                f"{len(took)} good ones with p99 {p99:.0f} ms"
            )
            run.reached = "; ".join(told)


@row(
    "S-06",
    f"0 of {len(SHAPES)} ambiguous framings accepted, 0 second answers, and HAProxy and gateway see the same requests",
    ci={"rounds": 1},
    nightly={"rounds": 5},
)
def ambiguous_framing(run: Run, rounds: int) -> None:
    told: dict[str, Counter[str]] = {"direct": Counter(), "HAProxy": Counter()}
    with both(run) as (running, key, ways):
        smuggled, log = head("GET", "/v1/me", key, "Connection: close"), running.replicas[0].log
        before = _requests(log)
        for way, url in ways.items():
            for lines, body in [*SHAPES.values()] * rounds:
                whole = post(key, *lines, body=body)
                for pieces in ((whole + smuggled,), (post(key, *lines, body=b""), body, smuggled)):
                    end = heard(url, *pieces, seconds=7)
                    told[way][" ".join(map(str, end.statuses))] += 1
                    if way == "direct":
                        assert end.statuses == [400], (lines, end.data)
                    # What HAProxy takes, it may make unambiguous; a request that only the gateway sees is smuggled.
                    now = _requests(log)
                    seen, before = now - before, now
                    assert seen <= len(end.statuses), (way, lines, seen, end.data)
            end = heard(url, post(key, LENGTH), head("GET", "/v1/me", key, "Connection: close"))
            assert end.statuses[0] == 422
            before = _requests(log)
    run.reached = "; ".join(f"{way}: {dict(found)}" for way, found in told.items())


def _requests(log: Path) -> int:
    """Requests that were seen so far, once the log is at rest: what the door refuses in the application's place, this
    logs when it comes to know."""
    size = -1
    while (now := log.stat().st_size) != size:
        size = now
        time.sleep(0.2)
    return log.read_bytes().count(b'"event":"request"')


@row("S-07", "0 upgrades, 0 answers in or to another protocol than HTTP/1", ci={}, nightly={})
def other_protocols(run: Run) -> None:
    told: dict[str, Counter[str]] = {"direct": Counter(), "HAProxy": Counter()}
    with both(run) as (running, key, ways):
        log = running.replicas[0].log
        for way, url in ways.items():
            for lines in UPGRADES:
                pieces = (
                    head("GET", "/v1/me", key, *lines) + FOREIGN["HTTP/2"],
                    head("GET", "/v1/me", key, "Connection: close"),
                )
                end = heard(url, *pieces, seconds=7)
                told[way][" ".join(map(str, end.statuses))] += 1
                assert 101 not in end.statuses
                assert end.statuses[:1] == [200] or set(end.statuses) == {400}
            for name, data in FOREIGN.items():
                before = log.read_bytes().count(b'"status":200')
                end = heard(url, data, seconds=3)
                told[way][f"{name} " + " ".join(map(str, end.statuses))] += 1
                assert all(400 <= status < 500 for status in end.statuses)
                assert log.read_bytes().count(b'"status":200') == before  # HAProxy itself may speak HTTP/2
                assert way == "HAProxy" or not end.data or end.data.startswith(b"HTTP/1.")
    run.reached = "; ".join(f"{way}: {dict(found)}" for way, found in told.items())
