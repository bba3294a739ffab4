"""What happens to processes: killed, frozen, or run under a false clock; by a seeded schedule."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

LIBRARY = next(iter(sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))), Path("libfaketimeMT.so.1"))


def _preloaded() -> dict[str, str]:
    """A library that is not there is no error to the loader: every clock would be right, and nothing be tested."""
    assert LIBRARY.is_absolute(), "libfaketime is not installed"
    return {"LD_PRELOAD": str(LIBRARY), "FAKETIME_DONT_FAKE_MONOTONIC": "1"}


def skewed(seconds: float) -> Mapping[str, str]:
    """The environment of a process whose wall clock is off by so many seconds; its monotonic clock is right."""
    return {**_preloaded(), "FAKETIME": f"{seconds:+.0f}s"}


def hurried(times: int) -> Mapping[str, str]:
    """The environment of a process whose wall clock runs so many times faster."""
    return {**skewed(0), "FAKETIME": f"+0 x{times}"}


class SteppingClock:
    """The environment of a process whose wall clock can be set while it runs."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self.step(0)

    def step(self, seconds: float) -> None:
        """From now on the clock is off by so many seconds."""
        fresh = self._file.with_suffix(".new")
        fresh.write_text(f"{seconds:+.0f}s\n")
        fresh.replace(self._file)

    @property
    def environment(self) -> Mapping[str, str]:
        """To be given to the process."""
        return {**_preloaded(), "FAKETIME_TIMESTAMP_FILE": str(self._file), "FAKETIME_NO_CACHE": "1"}


@contextmanager
def meanwhile(
    draw: random.Random, work: Callable[[], object], *, times: int, between: tuple[float, float]
) -> Iterator[Callable[[], bool]]:
    """Do `work` so many times beside the block, at moments drawn from `between` seconds apart; ask the value whether
    it is over. The block ends when it is."""
    stop, done, trouble = threading.Event(), threading.Event(), []

    def run() -> None:
        try:
            for _ in range(times):
                if stop.wait(draw.uniform(*between)):
                    return
                work()
        except Exception as error:
            trouble.append(error)
        finally:
            done.set()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield done.is_set
        done.wait()
    finally:
        stop.set()
        thread.join(60)
    if trouble:
        raise trouble[0]
