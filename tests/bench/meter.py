"""What processes use, read from /proc: CPU and memory of a process with all its descendants, and what they hold in
files that have no name.

Used by the tables. A process that ends between two looks is left out, but its CPU is in that of its parent.
"""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Self

TICK = os.sysconf("SC_CLK_TCK")
GONE = (FileNotFoundError, ProcessLookupError)


def _stat(pid: int) -> list[str]:
    """The fields of /proc/<pid>/stat from the state on."""
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()


def tree(roots: Iterable[int]) -> set[int]:
    """These processes and all their living descendants."""
    parents: dict[int, int] = {}
    for entry in os.listdir("/proc"):
        if entry.isdecimal():
            with suppress(*GONE):
                parents[int(entry)] = int(_stat(int(entry))[1])
    found = set(roots) & parents.keys()
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return found


def cpu(roots: Iterable[int]) -> float:
    """User and system seconds so far, of children that have ended too."""
    ticks = 0
    for pid in tree(roots):
        with suppress(*GONE):
            ticks += sum(int(field) for field in _stat(pid)[11:15])
    return ticks / TICK


def resident(pid: int, line: str = "VmRSS") -> int:
    """Bytes of memory now, or at the peak with `VmHWM`."""
    for row in Path(f"/proc/{pid}/status").read_text().splitlines():
        if row.startswith(line + ":"):
            return int(row.split()[1]) * 1024
    return 0


def nameless(pid: int) -> int:
    """Bytes in unlinked files that a process has open, which is what a spool consists of."""
    size, folder = 0, f"/proc/{pid}/fd"
    for number in os.listdir(folder):
        with suppress(OSError):
            found = os.stat(f"{folder}/{number}")
            if stat.S_ISREG(found.st_mode) and found.st_nlink == 0:
                size += found.st_size
    return size


class Watch:
    """While it is open: the peak of each process's memory, and of what all hold in files without a name or in `folder`.

    Args:
        roots: the processes; their descendants are found again at every look, four times a second.
        folder: files in it count as well.
    """

    def __init__(self, roots: Iterable[int], folder: Path) -> None:
        self._roots, self._folder = tuple(roots), folder
        self._peaks: dict[int, int] = {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.idle = sum(resident(pid) for pid in tree(self._roots))
        self.spool = 0

    @property
    def memory(self) -> int:
        """Bytes: the sum of the processes' peaks."""
        return sum(self._peaks.values())

    def __enter__(self) -> Self:
        for pid in tree(self._roots):
            Path(f"/proc/{pid}/clear_refs").write_text("5")  # the peak begins anew
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self._look()

    def _run(self) -> None:
        while not self._over.wait(0.25):
            self._look()

    def _look(self) -> None:
        for pid in tree(self._roots):
            with suppress(*GONE):
                self._peaks[pid] = max(self._peaks.get(pid, 0), resident(pid, "VmHWM"))
        self.spool = max(self.spool, self._spool())

    def _spool(self) -> int:
        size = 0
        for pid in tree(self._roots):
            with suppress(*GONE):
                size += nameless(pid)
        for path in self._folder.rglob("*"):
            with suppress(*GONE):
                size += path.stat().st_size
        return size
