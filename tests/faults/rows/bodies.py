"""L-03, L-07, I-01: what is uploaded takes bounded memory, holds up nobody, and is never decoded for nothing."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.door.uploads import ROOM, TRICKS, UPLOAD, at_once, tricks
from tests.door.wire import bytes_read, gateway, memory, upload_head
from tests.e2e.exchange import FILE, FORM, Answer, exchange, form, make_keys, send
from tests.faults.row import Run, row
from tests.faults.storm import PATIENT
from tests.fleet import Fleet, Replica
from tests.images.pictures import encoded, noise
from tests.images.test_bombs import DISARMED, REFUSED

QUIET = 0.01  # seconds that the health of an idle replica takes at most, with nothing else to do
LARGE = 25_000_000 + 256 * 1024  # bytes of the largest form


@row(
    "L-03",
    "<= 512 MiB under 10 MB uploads beyond the room, which are refused unread; 413 by length or count; no file is left",
    ci={"uploads": 40, "each": 8},
    nightly={"uploads": 500, "each": 64},
)
def more_uploads_than_there_is_room_for(run: Run, uploads: int, each: int) -> None:
    with gateway(run.folder, **PATIENT) as (running, replica):
        key, room = make_keys(running, ["acme"])["acme"], ROOM // len(UPLOAD)
        for _ in range(2):  # the second time proves that everything was given back
            found = at_once(replica.url, key, uploads)
            run.reached = f"{dict(found)} of {uploads} uploads, most memory {memory(replica):.0f} MiB"
            assert found == {422: room, 503: uploads - room}, found
        told = tricks(replica.url, key, each)
        before = bytes_read(replica)
        over = exchange(replica.url, upload_head(key, f"Content-Length: {LARGE + 1}"), UPLOAD)
        read = bytes_read(replica) - before
        run.reached += f"; {each} of each trick: {', '.join(f'{n}: {dict(c)}' for n, c in told.items())}"
        run.reached += (
            f"; most memory {memory(replica):.0f} MiB, {read / 1024:.0f} KiB read of what says it is too long"
        )
        assert {
            name: set(codes) - TRICKS[name][2] for name, codes in told.items() if set(codes) - TRICKS[name][2]
        } == {}
        assert (over.status, read <= 128 * 1024) == (413, True)
        assert memory(replica) <= 512
        assert not list(running.folder.rglob("spool/*"))


@dataclass
class Probe:
    """How long requests that need nothing took, again and again: the event loop's lag, seen from outside. Beside it the
    same of an idle replica, which is what the machine itself makes them wait."""

    busy: list[float] = field(default_factory=list)
    idle: list[float] = field(default_factory=list)

    @property
    def stretch(self) -> float:
        """How much slower than a quiet machine this one is, by its idle replica: limits are that much wider."""
        return max(1.0, _share(self.idle, 0.99) / QUIET)

    def lag(self, share: float) -> float:
        """Seconds that this share was not above, as a quiet machine would have it."""
        return _share(self.busy, share) / self.stretch

    def __str__(self) -> str:
        told = (f"{_share(of, at) * 1000:.0f}" for at in (0.99, 1) for of in (self.busy, self.idle))
        return "lag p99 {} ms (idle {}), most {} ms (idle {})".format(*told)


def _share(seconds: list[float], of: float) -> float:
    return sorted(seconds)[min(len(seconds) - 1, int(len(seconds) * of))]


# A process of its own: what uploads in this one would be taken for the gateway's lag.
PROBE = """
import http.client, select, sys, time
place, found = sys.argv[1], []
while not select.select([sys.stdin], [], [], 0.01)[0]:
    connection = http.client.HTTPConnection(place, timeout=30)
    connection.connect()
    began = time.monotonic()
    connection.request("GET", "/healthz")
    connection.getresponse().read()
    found.append(time.monotonic() - began)
    connection.close()
print(*found)
"""


@contextmanager
def probing(replica: Replica, idle: Replica) -> Iterator[Probe]:
    """Ask for the health of both beside the block; the probe has its seconds when the block ends."""
    probe = Probe()
    asking = [
        subprocess.Popen(
            [sys.executable, "-c", PROBE, one.ops.removeprefix("http://")],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )
        for one in (replica, idle)
    ]  # fmt: skip
    try:
        yield probe
        probe.busy, probe.idle = (
            [float(x) for x in one.communicate("stop\n", timeout=60)[0].split()] for one in asking
        )
    finally:
        for one in asking:
            one.kill()
            with one:  # which closes its pipes too
                pass


@row(
    "L-07",
    "the event loop lags <= 50 ms (p99) and <= 250 ms (most) while the largest pictures are taken",
    ci={"pictures": 12},
    nightly={"pictures": 50},
)
def the_largest_pictures(run: Run, pictures: int) -> None:
    """Half of them conform, so that they are hashed, cut and forwarded; half have to be decoded and made smaller."""
    conforms = encoded(noise(1_790, 1_790), "png", compress_level=0)
    decoded = encoded(noise(2_880, 2_880), "png", compress_level=0)
    assert 9_000_000 < len(conforms) <= 10_000_000 < 24_000_000 < len(decoded) <= 25_000_000
    files = [run.folder / "conforms.png", run.folder / "decoded.png"]
    for path, data in zip(files, (conforms, decoded), strict=True):
        path.write_bytes(data)
    with gateway(run.folder, **PATIENT) as (running, replica):
        key = make_keys(running, ["acme"])["acme"]

        def upload(number: int) -> str:
            """By a process of its own, so that this one has nothing to do but to ask."""
            given = ["-F", f"image=@{files[number % 2]}", "-F", "prompt=make the sky stormy", "-F", f"seed={number}"]
            done = subprocess.run(
                ["curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", "-H", f"Authorization: Bearer {key}", *given,
                 f"{replica.url}/v1/edit"], capture_output=True, text=True, check=True,
            )  # fmt: skip
            return done.stdout

        upload(0), upload(1)
        with probing(replica, running.start()) as probe, ThreadPoolExecutor(4) as pool:
            codes = Counter(pool.map(upload, range(2, 2 + pictures)))
        run.reached = f"{dict(codes)}; {len(probe.busy)} probes, {probe}"
        assert codes == {"200": pictures}
        assert probe.lag(0.99) <= run.within(0.05)
        assert probe.lag(1) <= run.within(0.25)


@row(
    "I-01",
    f"{len(REFUSED)} bombs refused in <= 20 ms each and {len(DISARMED)} disarmed, 20 at once: memory +<= 100 MiB, "
    "the loop as in L-07",
    ci={"rounds": 2},
    nightly={"rounds": 30},
)
def pixel_bombs(run: Run, rounds: int) -> None:
    with gateway(run.folder, **PATIENT) as (running, replica):
        key = make_keys(running, ["acme"])["acme"]
        headers = [("Authorization", f"Bearer {key}"), ("Content-Type", FORM)]

        def upload(name: str) -> Answer:
            body = form(("prompt", b"make the sky stormy"), ("image", (REFUSED | DISARMED)[name], FILE))
            return send(replica.url, "POST", "/v1/edit", headers, body, timeout=60)

        upload(next(iter(DISARMED)))
        before, told, slowest = _tree(running), Counter[str](), 0.0
        names = [*REFUSED, *DISARMED] * rounds
        run.draw.shuffle(names)
        with probing(replica, running.start()) as probe, _growth(running) as most, ThreadPoolExecutor(20) as pool:
            try:
                for name, answer in zip(names, pool.map(upload, names), strict=True):
                    told[str(answer.status)] += 1
                    assert (answer.status in (413, 422)) == (name in REFUSED), f"{name} was answered {answer.status}"
            finally:
                pool.shutdown(cancel_futures=True)
        for name in REFUSED:  # alone, so that nothing is timed but itself; the best of three
            slowest = max(slowest, min(_told(upload(name)) for _ in range(3)))
        grown = (max(most) - before) / 1024
        run.reached = (
            f"{dict(told)}, slowest refusal {slowest:.0f} ms with its upload; memory +{grown:.0f} MiB; {probe}"
        )
        assert grown <= 100
        assert slowest / 1000 <= run.within(0.02)
        assert probe.lag(0.99) <= run.within(0.05)


def _told(answer: Answer) -> float:
    """Milliseconds that the gateway says it took."""
    return float(re.search(r"total;dur=([\d.]+)", answer.headers["server-timing"])[1])  # type: ignore[index]


@contextmanager
def _growth(running: Fleet) -> Iterator[list[int]]:
    most, stop = [0], threading.Event()

    def run() -> None:
        while not stop.wait(0.02):
            most[0] = max(most[0], _tree(running))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield most
    finally:
        stop.set()
        thread.join()


def _tree(running: Fleet) -> int:
    """KiB of memory of the gateway and of its decode processes now."""
    total, wanted = 0, {running.replicas[0].process.pid}
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            text = status.read_text()
        except OSError:
            continue
        pid, parent = (int(re.search(rf"^{name}:\s+(\d+)", text, re.M)[1]) for name in ("Pid", "PPid"))  # type: ignore[index]
        if (pid in wanted or parent in wanted) and (found := re.search(r"^VmRSS:\s+(\d+)", text, re.M)):
            total += int(found[1])
    return total
