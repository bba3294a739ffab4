"""A steady load beside a fault: so many requests a second until the block ends, and what its clients saw when."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from tests.faults.clients import Call, History


@dataclass
class Load(History):
    """The history of a load that may still run."""

    next_seed: int = 0
    marks: dict[str, float] = field(default_factory=dict)
    logged: int = 0  # bytes that the replicas wrote of it meanwhile

    def mark(self, name: str) -> None:
        """Remember this moment."""
        self.marks[name] = time.monotonic()

    def between(self, first: str, last: str) -> list[Call]:
        """What was asked and answered between two marks."""
        return [call for call in self.calls if self.marks[first] <= call.began and call.ended < self.marks[last]]


@contextmanager
def steady(urls: Sequence[str], token: str, rate: float, load: Load | None = None, **fields: Any) -> Iterator[Load]:
    """Run it; the block ends when every answer is there."""
    load, stop = load or Load(), threading.Event()

    def run() -> None:
        while not stop.is_set():
            seeds = range(load.next_seed, load.next_seed + max(1, int(rate / 2)))
            load.next_seed = seeds.stop
            began = time.monotonic()
            waves.append(threading.Thread(target=load.send, args=(urls, token, seeds), kwargs={"rate": rate, **fields}))
            waves[-1].start()
            stop.wait(max(0.0, began + len(seeds) / rate - time.monotonic()))

    waves: list[threading.Thread] = []
    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield load
    finally:
        stop.set()
        thread.join()
        for wave in waves:
            wave.join()


def percentile(calls: Sequence[Call], share: float) -> float:
    """Seconds that this share of the calls did not exceed."""
    times = sorted(call.seconds for call in calls)
    return times[min(len(times) - 1, int(len(times) * share))] if times else 0.0
