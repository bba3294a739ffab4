"""Real processes for tests: a Valkey with an append-only file, the sandbox upstream with its bill, and gateway
replicas.

Everything listens on loopback on free ports and ends with the test. `program` is what is run as a replica; `PROGRAM`
puts a deliberately wrong variant of the gateway in the place of `python -m app` for whatever runs in the block. `LOOK`
looks at every fleet whose block has come to its end, while its processes still live.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import redis
from prometheus_client.parser import text_string_to_metric_families

from app.domain.tenant import KeyPolicy, parse_limits
from app.quota import epoch
from app.store.redis import Store
from app.tenants import Keyring
from tests.processes import free_port, wait_until
from tests.redis_server import LEDGER, RedisServer

T = TypeVar("T")
ROOT = Path(__file__).resolve().parent.parent
TOKEN = "upstream-token-of-the-tests"
PEPPER = "pepper-of-the-tests-0123456789abcdef"
Metrics = dict[tuple[str, tuple[tuple[str, str], ...]], float]  # (name, sorted labels) -> value
APP = (sys.executable, "-m", "app")
PROGRAM: ContextVar[Sequence[str]] = ContextVar("PROGRAM", default=APP)  # what fleets run as replicas


def get_json(url: str, *, data: object = None, method: str | None = None, token: str | None = None) -> Any:
    """One plain HTTP exchange with a control or ops endpoint, or with a key's token."""
    body = None if data is None else json.dumps(data).encode()
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {token}"} if token else {})
    request = urllib.request.Request(url, data=body, method=method, headers=headers)
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.loads(answer.read() or b"null")


def total(metrics: Metrics, name: str, **labels: str) -> float:
    """Sum of a metric's samples that carry the given labels."""
    wanted = set(labels.items())
    return sum(value for (found, at), value in metrics.items() if found == name and wanted <= set(at))


@dataclass
class Replica:
    """One gateway process."""

    process: subprocess.Popen[bytes]
    url: str
    ops: str
    log: Path

    def is_ready(self) -> bool:
        """Whether it takes requests by now. Raises AssertionError where it has ended."""
        assert self.process.poll() is None, self.log.read_text()
        try:
            return bool(get_json(self.ops + "/readyz")["status"] == "ready")
        except (urllib.error.URLError, OSError):
            return False

    def metrics(self) -> Metrics:
        """Every sample of this replica as {(name, sorted labels): value}."""
        with urllib.request.urlopen(self.ops + "/metrics", timeout=10) as answer:
            text = answer.read().decode()
        return {
            (sample.name, tuple(sorted(sample.labels.items()))): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    def total(self, name: str, **labels: str) -> float:
        """Sum of a metric's samples that carry the given labels."""
        return total(self.metrics(), name, **labels)

    def kill(self) -> None:
        """kill -9, as a crash does."""
        self.process.kill()
        self.process.wait()

    def freeze(self) -> None:
        """SIGSTOP."""
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """SIGCONT."""
        self.process.send_signal(signal.SIGCONT)

    def stop(self, timeout: float = 20) -> int:
        """SIGTERM and wait; the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout)


@dataclass
class Fleet:
    """What a test talks to; `server` is the ledger's Redis."""

    folder: Path
    server: RedisServer
    upstream: str
    environment: dict[str, str]
    program: Sequence[str] = APP
    replicas: list[Replica] = field(default_factory=list)
    policies: list[str] = field(default_factory=list)  # every tenants file that was in force

    @property
    def redis_url(self) -> str:
        """The ledger, without anything in between."""
        return self.server.url

    @property
    def redis(self) -> redis.Redis:
        """A client of the ledger."""
        return self.server.client()

    def bill(self) -> dict[str, Any]:
        """The upstream's own bill: the oracle."""
        found: dict[str, Any] = get_json(self.upstream + "/sandbox/bill")
        return found

    def stats(self) -> dict[str, Any]:
        """What the upstream received."""
        found: dict[str, Any] = get_json(self.upstream + "/sandbox/stats")
        return found

    def faults(self, script: Sequence[dict[str, Any]]) -> None:
        """Replace the upstream's fault script."""
        get_json(self.upstream + "/sandbox/faults", data=list(script), method="PUT")

    def tenants(self, text: str, *, bad: bool = False) -> None:
        """Replace the tenants file, atomically; by a bad one, which no replica takes."""
        fresh = self.folder / "tenants.new"
        fresh.write_text(text)
        fresh.replace(self.folder / "tenants.yaml")
        self.policies += [] if bad else [text]

    def command(self, *arguments: str, code: int = 0) -> str:
        """Run a `kontext-gateway` command against this fleet's ledger; its output. Fails on another exit code than
        this."""
        done = subprocess.run(
            [*APP, *arguments], env=self.environment, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == code, (done.returncode, done.stdout, done.stderr)
        return done.stdout

    def key(self, tenant: str, *options: str) -> str:
        """A new key's token."""
        made = json.loads(self.command("keys", "create", "--tenant", tenant, "--name", "test", "--json", *options))
        return str(made["token"])

    def start(self, **environment: str) -> Replica:
        """Start one more replica and wait until it is ready."""
        replica = self.launch(**environment)
        self.ready(replica)
        return replica

    def ready(self, *replicas: Replica) -> None:
        """Wait until they are."""
        for replica in replicas:
            wait_until(replica.is_ready, 60, replica.log.read_text)

    @property
    def alive(self) -> list[Replica]:
        """The replicas that live."""
        return [replica for replica in self.replicas if replica.process.poll() is None]

    @property
    def urls(self) -> list[str]:
        """The public listeners of all replicas that live."""
        return [replica.url for replica in self.alive]

    def token(self, tenant: str, *budgets: str) -> str:
        """As `key`, without a process of its own."""
        policy = KeyPolicy(parse_limits(requests=None, images=(), concurrency=None, budgets=budgets), None, None)

        return self._on_ledger(lambda store: Keyring(store, PEPPER.encode()).create(tenant, "test", policy=policy))[1]

    def initialise(self) -> None:
        """As `ledger init`, without a process of its own."""
        self._on_ledger(epoch.initialise)

    def _on_ledger(self, work: Callable[[Store], Awaitable[T]]) -> T:
        async def go() -> T:
            store = Store(self.redis_url, timeout=5, connect_timeout=5, observe=lambda *_: None)
            try:
                return await work(store)
            finally:
                await store.aclose()

        return asyncio.run(go())

    def launch(self, **environment: str) -> Replica:
        """Start one more replica, whether it becomes ready or not."""
        return self._launch(free_port(), free_port(), environment)

    def relaunch(self, replica: Replica, **environment: str) -> Replica:
        """Start a replica that has ended again, on its addresses; the one that ended stays in the list."""
        port, ops = (int(url.rsplit(":", 1)[1]) for url in (replica.url, replica.ops))
        return self._launch(port, ops, environment)

    def _launch(self, port: int, ops: int, environment: Mapping[str, str]) -> Replica:
        log = self.folder / f"gateway-{port}.log"
        own = {"GATEWAY_LISTEN": f"127.0.0.1:{port}", "GATEWAY_OPS_LISTEN": f"127.0.0.1:{ops}"}
        with log.open("ab") as out:
            process = subprocess.Popen(
                [*self.program, "serve"], env=self.environment | own | environment, cwd=ROOT, stdout=out, stderr=out
            )
        replica = Replica(process, f"http://127.0.0.1:{port}", f"http://127.0.0.1:{ops}", log)
        self.replicas.append(replica)
        return replica


LOOK: ContextVar[Callable[[Fleet], object]] = ContextVar("LOOK", default=lambda fleet: None)


@contextmanager
def fleet(
    folder: Path,
    tenants: str,
    *,
    replicas: int = 1,
    sandbox: Sequence[str] = ("--time-scale", "0.05", "--picture", "small"),
    program: Sequence[str] | None = None,
    server: RedisServer | None = None,
    **environment: str,
) -> Iterator[Fleet]:
    """Start everything, yield it, end everything. `server` takes the place of a Valkey that keeps a ledger."""
    server = (server or RedisServer(folder / "redis", LEDGER)).start()
    port = free_port()
    upstream = f"http://127.0.0.1:{port}"
    settings = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(ROOT),
        "PRODIA_TOKEN": TOKEN,
        "PRODIA_BASE_URL": upstream + "/v2",
        "REDIS_URL": server.url,
        "GATEWAY_KEY_PEPPER": PEPPER,
        "GATEWAY_TENANTS_FILE": str(folder / "tenants.yaml"),
        "GATEWAY_DATA_DIR": str(folder / "data"),
        "GATEWAY_DRAIN_DELAY": "0",
        **environment,
    }
    made = Fleet(folder, server, upstream, settings, program or PROGRAM.get())
    made.tenants(tenants)
    upstream_options = ["--listen", f"127.0.0.1:{port}", "--token", TOKEN, "--bill", str(folder / "bill.jsonl")]
    with (folder / "sandbox.log").open("wb") as log:
        stand_in = subprocess.Popen([*APP, "sandbox", *upstream_options, *sandbox], cwd=ROOT, stdout=log, stderr=log)
    try:
        made.initialise()
        started = [made.launch() for _ in range(replicas)]
        wait_until(lambda: _answers(upstream), 20)
        made.ready(*started)
        yield made
        LOOK.get()(made)
    finally:
        for replica in made.replicas:
            if replica.process.poll() is None:
                replica.process.kill()
                replica.process.wait()
        stand_in.kill()
        stand_in.wait()
        server.kill()


def _answers(upstream: str) -> bool:
    try:
        get_json(upstream + "/sandbox/stats")
    except (urllib.error.URLError, OSError):
        return False
    return True
