"""U-01, U-02, U-06 to U-08, U-10, U-11: an upstream whose every byte is meant to harm, against a real gateway."""

from __future__ import annotations

import asyncio
import io
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image

from tests.faults.checker import books, recovers, settle_down
from tests.faults.clients import History
from tests.faults.row import Run, row
from tests.faults.storm import PATIENT, tenants, token
from tests.fleet import TOKEN, Fleet, fleet
from tests.prodia.answers import BOUNDARY, MULTIPART, envelope, job, job_part, output_part
from tests.prodia.upstream import Behaviour, Upstream, Wire, http, upstream

DEADLINE = 3.0


def _picture() -> bytes:
    made = io.BytesIO()
    Image.new("RGB", (64, 64), "teal").save(made, "JPEG")
    return made.getvalue()


PICTURE = _picture()


def completed() -> bytes:
    """The body of a finished job."""
    return envelope(job_part(job(id=str(uuid.uuid4()))), output_part(PICTURE))


async def good(wire: Wire) -> None:
    """One job, then the connection is closed."""
    await wire.request()
    await asyncio.sleep(0.02)
    await wire.send(http(200, completed(), MULTIPART, "Connection: close"))


class Hostile:
    """The upstream of a run; what it does can be replaced at any moment."""

    def __init__(self) -> None:
        self.does: Behaviour = good
        self.state = Upstream()
        self._ready, self._stop = threading.Event(), asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), daemon=True)

    async def _run(self) -> None:
        self._loop = asyncio.get_running_loop()
        async with upstream(self._behave) as self.state:
            self._ready.set()
            await self._stop.wait()

    async def _behave(self, wire: Wire) -> None:
        await self.does(wire)

    def start(self) -> None:
        self._thread.start()
        self._ready.wait(10)

    def stop(self) -> None:
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)
        assert not self._thread.is_alive()


@contextmanager
def facing(folder: Path, **settings: str) -> Iterator[tuple[Fleet, Hostile, str]]:
    """One gateway before a hostile upstream, and a key."""
    enemy = Hostile()
    enemy.start()
    own = {"PRODIA_BASE_URL": enemy.state.url, "GATEWAY_UPSTREAM_DEADLINE": f"{DEADLINE}s", **PATIENT, **settings}
    try:
        with fleet(folder, tenants(None), **own) as running:
            yield running, enemy, token(running)
    finally:
        enemy.stop()


@row(
    "U-01",
    "10 of 10 probes after clients left by the hundred, sockets back to the pool",
    ci={"waves": 5},
    nightly={"waves": 100},
)
def the_pool_after_cancellations(run: Run, waves: int) -> None:
    with facing(run.folder, GATEWAY_UPSTREAM_CONCURRENCY="8") as (running, enemy, key):
        for wave in range(waves):
            leaving = History()
            seeds = range(wave * 40, wave * 40 + 40)
            leaving.send(running.urls, key, seeds, each=lambda seed: {"patience": run.draw.uniform(0.01, 0.5)})
        probes = History()
        for seed in range(10):
            probes.send(running.urls, key, [500_000 + seed])
        settle_down(running, "acme")
        time.sleep(0.2)
        figures = books(running)
        sockets, jobs = len(enemy.state.open), enemy.state.connections
        run.reached = f"{probes.outcomes().get('ok', 0)} of 10, {sockets} sockets open after {jobs} jobs"
        assert probes.outcomes() == {"ok": 10}
        assert len(enemy.state.open) <= 8
        assert not figures.outstanding
        assert not figures.violations()
        assert figures.sum("SETTLED") == 40_000 * enemy.state.connections
        assert enemy.state.connections > 10  # some were sent although their clients had left


WAITS = (
    "0", "1", "-1", "1e9", "NaN", "inf", "999999999999999999999", "9" * 5_000, "", " ", "soon", "1,2", "0x10", "١",
    "Thu, 01 Jan 1970 00:00:00 GMT", "Fri, 31 Dec 9999 23:59:59 GMT", "Thu, 99 Foo 1970 99:99:99 GMT", "1;2", "+1",
    "1.5", "0.0001", "\\x00", "null", "[]", "2\r\nRetry-After: 0", "2\r\nRetry-After: -5", "3600", "1e-9", "--",
)  # fmt: skip


@row(
    "U-02",
    "no Retry-After crashes anything or waits beyond the deadline",
    ci={"values": 12},
    nightly={"values": len(WAITS)},
)
def hostile_retry_after(run: Run, values: int) -> None:
    with facing(run.folder) as (running, enemy, key):
        asked = History()
        for seed, value in enumerate(run.draw.sample(WAITS, values)):

            async def busy(wire: Wire, value: str = value) -> None:
                await wire.request()
                enemy.does = good
                await wire.send(http(429, b"no capacity", "text/plain", f"Retry-After: {value}", "Connection: close"))

            enemy.does = busy
            asked.send(running.urls, key, [seed])
        settle_down(running, "acme")
        slowest = max(call.seconds for call in asked.calls)
        run.reached = f"{values} values: {asked.statuses()}, slowest {slowest:.1f} s"
        assert set(asked.statuses()) <= {"200 ok", "503 upstream_busy"}
        assert len(asked.answers) == values
        assert slowest < DEADLINE + run.within(1)
        assert not books(running).violations()


async def _endless(wire: Wire, head: bytes, chunk: bytes, times: int) -> None:
    await wire.request()
    await wire.send(head)
    for _ in range(times):
        await wire.send(chunk)


BOMBS = {
    "500 MB": (http(200, b"", MULTIPART, length=500_000_000), b"x" * 65_536, 8_000),
    "500 MB, chunked": (
        f"HTTP/1.1 200 OK\r\nContent-Type: {MULTIPART}\r\nTransfer-Encoding: chunked\r\n\r\n".encode(),
        b"10000\r\n" + b"x" * 65_536 + b"\r\n",
        8_000,
    ),
    "gzip": (http(200, b"", MULTIPART, "Content-Encoding: gzip", length=500_000_000), b"\x1f\x8b\x08" * 20_000, 8_000),
    "endless header": (b"HTTP/1.1 200 OK\r\nX-Long: ", b"x" * 65_536, 2_000),
    "headers without end": (b"HTTP/1.1 200 OK\r\n", b"".join(b"X-%d: y\r\n" % i for i in range(5_000)), 200),
    "a million parts": (
        f"HTTP/1.1 200 OK\r\nContent-Type: {MULTIPART}\r\nConnection: close\r\n\r\n".encode(),
        f"--{BOUNDARY}\r\nContent-Disposition: form-data; name=a\r\n\r\nx\r\n".encode() * 1_000,
        300,
    ),
}


@row(
    "U-06",
    "no answer, however large, costs more than 64 MiB or outlives its deadline; charged as ambiguous",
    ci={"rounds": 1},
    nightly={"rounds": 10},
)
def response_bombs(run: Run, rounds: int) -> None:
    with facing(run.folder) as (running, enemy, key):
        recovers(running, key, History(), requests=3)
        before, told, slowest = _peak(running), Counter[str](), 0.0
        for number in range(rounds * len(BOMBS)):
            head, chunk, times = BOMBS[list(BOMBS)[number % len(BOMBS)]]
            enemy.does = lambda wire, bomb=(head, chunk, times): _endless(wire, *bomb)
            asked = History()
            asked.send(running.urls, key, [number])
            told.update(asked.statuses())
            slowest = max(slowest, asked.calls[0].seconds)
            enemy.does = good
            asked.send(running.urls, key, [100_000 + number])
            assert asked.calls[-1].outcome == "ok"
        grown = (_peak(running) - before) / 1024
        unknown = len(books(running).ambiguous)
        run.reached = f"{dict(told)}, slowest {slowest:.1f} s, RSS +{grown:.0f} MiB, {unknown} ambiguous"
        assert set(told) <= {"502 upstream_invalid", "502 upstream_failed", "504 upstream_timeout"}
        assert unknown == rounds * len(BOMBS)
        assert slowest < DEADLINE + run.within(1)
        assert grown <= 64


def _peak(running: Fleet) -> int:
    """The most memory that the gateway ever had, in KiB."""
    status = Path(f"/proc/{running.replicas[0].process.pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0])


@row("U-07", "an answer of one byte a second ends at the deadline", ci={"jobs": 4}, nightly={"jobs": 100})
def a_trickled_answer(run: Run, jobs: int) -> None:
    async def trickle(wire: Wire) -> None:
        await wire.request()
        for byte in http(200, completed()):
            await wire.send(bytes([byte]))
            await asyncio.sleep(1)

    with facing(run.folder) as (running, enemy, key):
        enemy.does = trickle
        asked = History()
        asked.send(running.urls, key, range(jobs))
        slowest = max(call.seconds for call in asked.calls)
        run.reached = f"{asked.statuses()}, after {slowest:.1f} s of {DEADLINE} s"
        assert {(answer.status, answer.charged) for answer in asked.answers} == {(504, "unknown")}
        assert slowest < DEADLINE + run.within(1)
        assert len(books(running).ambiguous) == jobs


@row("U-08", "0 uncaught and 0 stored of spoilt answers", ci={"answers": 60}, nightly={"answers": 5_000})
def spoilt_answers(run: Run, answers: int) -> None:
    """Cut, flipped, doubled and shuffled: a picture comes through whole, or it is an error that stores nothing."""
    with facing(run.folder) as (running, enemy, key), running.redis as client:
        told: Counter[str] = Counter()
        whole = History()
        whole.send(running.urls, key, [10**6])
        for number in range(answers):
            body = bytearray(completed())
            at = run.draw.randrange(len(body))
            match number % 4:
                case 0:
                    del body[at:]
                case 1:
                    body[at] ^= 1 << run.draw.randrange(8)
                case 2:
                    body[at:at] = body[: run.draw.randrange(200)]
                case 3:
                    body[at:at] = bytes(run.draw.randrange(256) for _ in range(20))

            async def spoilt(wire: Wire, body: bytes = bytes(body)) -> None:
                await wire.request()
                await wire.send(http(200, body, MULTIPART, "Connection: close"))

            enemy.does = spoilt if number % 8 else good  # the breaker opens after ten failures in a row
            kept = sum(1 for _ in client.scan_iter("kg:*:result:*"))
            asked = History()
            asked.send(running.urls, key, [number])
            told.update(asked.statuses())
            stored = sum(1 for _ in client.scan_iter("kg:*:result:*")) - kept
            assert stored == (asked.answers[0].status == 200)
        settle_down(running, "acme")
        run.reached = f"{dict(told)}"
        assert set(told) <= {"200 ok", "502 upstream_invalid", "502 upstream_failed"}, told
        assert told["502 upstream_invalid"] > answers / 4
        assert not books(running).violations()


@row("U-10", "0 connections to where a redirect points", ci={"jobs": 5}, nightly={"jobs": 100})
def redirects(run: Run, jobs: int) -> None:
    elsewhere = Hostile()
    elsewhere.start()
    with facing(run.folder) as (running, enemy, key):
        for seed in range(jobs):

            async def redirect(wire: Wire, status: int = (301, 302, 303, 307, 308)[seed % 5]) -> None:
                await wire.request()
                await wire.send(
                    http(status, b"", "text/plain", f"Location: {elsewhere.state.url}/job", "Connection: close")
                )

            enemy.does = redirect
            asked = History()
            asked.send(running.urls, key, [seed])
            assert asked.statuses() == {"502 upstream_misconfigured": 1}
        run.reached = f"{elsewhere.state.connections} of {jobs}"
        assert elsewhere.state.connections == 0
    elsewhere.stop()


@row("U-11", "0 echoes of the upstream token in answers and logs", ci={"rounds": 1}, nightly={"rounds": 20})
def the_upstream_echoes_our_token(run: Run, rounds: int) -> None:
    echo = f"Bearer {TOKEN} {TOKEN[:9]}\u200b{TOKEN[9:]}"
    statuses = (200, 400, 401, 403, 404, 422, 429, 500, 503)
    document = job(error=f"config is invalid: {echo}", state={"current": "failed", "history": None})
    with facing(run.folder) as (running, enemy, key):
        told: Counter[str] = Counter()
        for number in range(rounds * len(statuses)):

            async def echoing(wire: Wire, status: int = statuses[number % len(statuses)]) -> None:
                await wire.request()
                body = envelope(job_part(document)) if status in (200, 400) else echo.encode()
                await wire.send(http(status, body, MULTIPART, f"X-Echo: {TOKEN}", "Connection: close"))

            enemy.does = echoing
            asked = History()
            asked.send(running.urls, key, [number])
            told.update(asked.statuses())
            assert not any(TOKEN in text for text in asked.texts)
            enemy.does = good
            asked.send(running.urls, key, [100_000 + number])
        settle_down(running, "acme")
        run.reached = f"0 in {sum(told.values())} answers {dict(told)}, 0 in logs"
        assert TOKEN.encode() not in running.replicas[0].log.read_bytes()
