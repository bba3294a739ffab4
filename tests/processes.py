"""What every test with real processes needs: a free port, and waiting with an end and a reason."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until(true: Callable[[], object], seconds: float, why: Callable[[], str] = str) -> None:
    """Wait until `true()` holds, at most `seconds`. Raises AssertionError."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if true():
            return
        time.sleep(0.02)
    raise AssertionError(f"not true after {seconds} s: {why()}")
