"""What a table is measured on: a Valkey with an append-only file, the canned upstream, gateways with everything on,
and the process that makes the load.

`stand` starts it all on loopback and ends it. A reference is a `Target` like the gateway: processes, a URL, a body.
"""

from __future__ import annotations

import itertools
import os
import socket
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from tests.fleet import ROOT, Fleet, Replica, fleet, free_port, wait_until

from . import meter
from .load import GENERATE, Body, Generator, Load, Taken

SLOTS = 5000
TENANTS = """
version: 1
tenants:
  bench:
    safety: {generate: {ceiling: 2}, edit: {ceiling: 1}}
    limits:
      requests: {rate: 1000000/1m, burst: 1000000}
      images: [{max: 100000000, per: day}]
      concurrency: 5000
      budgets: [{usd: "1000000.00", per: day}, {usd: "10000000.00", per: month}]
"""
SETTINGS = {"GATEWAY_UPSTREAM_CONCURRENCY": str(SLOTS), "GATEWAY_REDIS_TIMEOUT": "1s"}


@dataclass(frozen=True, slots=True)
class Target:
    """Something that answers: the roots of its processes, and how it is asked."""

    name: str
    pids: tuple[int, ...]
    urls: tuple[str, ...]
    headers: Mapping[str, str] = field(default_factory=dict)
    body: Body = GENERATE


@dataclass(frozen=True, slots=True)
class Sample:
    """One run against one target: CPU in ms per request, latencies in ms."""

    cpu: float
    valkey: float
    p50: float
    p99: float
    failed: Counter[str]


@dataclass(slots=True)
class Stand:
    """Everything that runs; `numbers` gives each request a seed that was not used before."""

    fleet: Fleet
    upstream: str
    key: str
    folder: Path
    generator: Generator
    closing: ExitStack
    numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1_000_000))

    @property
    def headers(self) -> dict[str, str]:
        """What the gateway wants to see."""
        return {"Authorization": f"Bearer {self.key}"}

    @property
    def valkey(self) -> int:
        """Its process."""
        return int(self.fleet.redis.info("server")["process_id"])

    def gateway(self, *replicas: Replica, name: str = "gateway", path: str = "/v1/generate") -> Target:
        """Replicas as one target."""
        urls = tuple(replica.url + path for replica in replicas)
        return Target(name, tuple(replica.process.pid for replica in replicas), urls, self.headers)

    def seeds(self, count: int) -> list[int]:
        """So many new ones."""
        return list(itertools.islice(self.numbers, count))

    def load(self, target: Target, seeds: list[int], concurrency: int = 1, *, arrivals: float | None = None) -> Taken:
        """Ask a target with these seeds: so many at once, or spread over `arrivals` seconds."""
        asked = Load(
            urls=target.urls, seeds=seeds, headers=target.headers, body=target.body,
            concurrency=concurrency, arrivals=arrivals,
        )  # fmt: skip
        return self.generator.run(asked)

    def sample(
        self, target: Target, seeds: list[int], concurrency: int = 1, *, arrivals: float | None = None
    ) -> Sample:
        """The same, measured."""
        valkey = self.valkey
        before, valkey_before = meter.cpu(target.pids), meter.cpu([valkey])
        taken = self.load(target, seeds, concurrency, arrivals=arrivals)
        used, valkey_used = meter.cpu(target.pids) - before, meter.cpu([valkey]) - valkey_before
        each = 1000 / len(seeds)
        return Sample(
            used * each, valkey_used * each, taken.p50 * 1000, taken.p99 * 1000, taken.failed
        )  # fmt: skip

    def bare(self, transport: str, path: str, name: str) -> Target:
        """A process of `bare`, served as the gateway is."""
        port = free_port()
        arguments = ["--port", str(port), "--no-access-log", "--log-level", "error", "--backlog", "4096"]
        url, pid = self.run(
            [sys.executable, "-m", "uvicorn", "tests.bench.bare:app", *arguments], port,
            BENCH_UPSTREAM=self.upstream, BENCH_TRANSPORT=transport, BENCH_REDIS=self.fleet.redis_url,
        )  # fmt: skip
        return Target(name, (pid,), (url + path,))

    def run(self, command: list[str], port: int, *, seconds: float = 30, **environment: str) -> tuple[str, int]:
        """Start a server of one's own, wait until it listens; its URL and process. It ends with the stand."""
        log = self.folder / f"server-{port}.log"
        process = _started(self.closing, command, log, **environment)
        wait_until(lambda: process.poll() is not None or _listens(port), seconds, log.read_text)
        if process.returncode is not None:
            raise AssertionError(f"{log.read_text()}\n{Path(command[0]).name} ended with {process.returncode}")
        return f"http://127.0.0.1:{port}", process.pid


@contextmanager
def stand(replicas: int = 1) -> Iterator[Stand]:
    """Start everything, yield it, end everything."""
    port = free_port()
    upstream = f"http://127.0.0.1:{port}"
    with ExitStack() as closing:
        folder = Path(closing.enter_context(tempfile.TemporaryDirectory()))
        _started(closing, [sys.executable, "-m", "tests.bench.upstream", str(port)], folder / "upstream.log")
        running = closing.enter_context(
            fleet(folder, TENANTS, replicas=replicas, PRODIA_BASE_URL=upstream + "/v2", **SETTINGS)
        )
        wait_until(lambda: _listens(port), 20, (folder / "upstream.log").read_text)
        generator = closing.enter_context(Generator())
        yield Stand(running, upstream, running.key("bench"), folder, generator, closing)


def medians(samples: list[Sample]) -> Sample:
    """Field by field; failures are added up."""
    middle = {name: median(getattr(sample, name) for sample in samples) for name in ("cpu", "valkey", "p50", "p99")}
    return Sample(**middle, failed=sum((sample.failed for sample in samples), Counter()))


def _started(closing: ExitStack, command: list[str], log: Path, **environment: str) -> subprocess.Popen[bytes]:
    with log.open("wb") as out:
        process = subprocess.Popen(command, cwd=ROOT, env=os.environ | environment, stdout=out, stderr=out)
    closing.callback(_end, process)
    return process


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
