"""What every test with real processes needs: a free port, and waiting with an end and a reason."""

from __future__ import annotations

import os
import random
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import cycle
from pathlib import Path


def _ports() -> Iterator[int]:
    """In no order, none twice before all were given, and none that a worker beside this one gives: it could take a port
    before a process that is still starting listens on it. So could a client, hence they are below those of clients."""
    clients = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    ports = range(10_000 + worker, max(clients, 30_000), int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")))
    return cycle(random.SystemRandom().sample(ports, len(ports)))


_PORTS = _ports()


def free_port() -> int:
    """A port that was free a moment ago."""
    while True:
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", next(_PORTS)))
            return int(probe.getsockname()[1])


def wait_until(true: Callable[[], object], seconds: float, why: Callable[[], str] = str) -> None:
    """Wait until `true()` holds, at most `seconds`. Raises AssertionError."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if true():
            return
        time.sleep(0.02)
    raise AssertionError(f"not true after {seconds} s: {why()}")
