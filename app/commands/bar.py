"""A progress bar on standard error: pictures finished, and for those under way their time against the typical one.

Called by `report.py` and `pictures.py`. Where standard error is no terminal there is no bar, and nothing here does
anything. It is drawn by a task of the event loop; no thread writes to the terminal.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

_NEARLY = 0.95  # a picture that takes longer than usual stays here until it is there


class Bar:
    """The bar of one command.

    Args:
        total: pictures in all.
        operation: `generate` or `edit`.
    """

    def __init__(self, total: int, operation: str) -> None:
        self.typical: Mapping[str, float] = {}
        self._operation = operation
        self._total = total
        self._ended = 0
        self._under_way: dict[int, tuple[float, str]] = {}
        self._progress: Progress | None = None
        if sys.stderr.isatty():
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
            self._progress = Progress(
                *columns, console=Console(stderr=True), auto_refresh=False, redirect_stdout=False, redirect_stderr=False
            )
            self._task = self._progress.add_task(operation, total=total)

    @property
    def shown(self) -> bool:
        """Whether there is a terminal to draw on."""
        return self._progress is not None

    def began(self, n: int, variant: str) -> None:
        """A picture is under way."""
        self._under_way[n] = (time.monotonic(), variant)

    def ended(self, n: int) -> None:
        """It is there, or failed."""
        self._under_way.pop(n, None)
        self._ended += 1

    async def draw(self) -> None:
        """Draw until cancelled."""
        while self._progress is not None:
            self._draw(self._progress)
            await asyncio.sleep(0.1)

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Take the bar away while something is printed."""
        if self._progress is None:
            yield
            return
        self._progress.live.transient = True
        self._progress.stop()
        try:
            yield
        finally:
            self._progress.live.transient = False
            self._progress.start()

    @contextmanager
    def open(self) -> Iterator[None]:
        """Show the bar; its last state stays on the screen."""
        if self._progress is None:
            yield
            return
        self._progress.start()
        try:
            yield
        finally:
            self._draw(self._progress)
            self._progress.stop()

    def _draw(self, progress: Progress) -> None:
        now, longest = time.monotonic(), max(self.typical.values(), default=float("inf"))
        parts = (  # the longest also stands for a variant that the gateway has yet to choose
            min(_NEARLY, (now - began) / self.typical.get(variant, longest))
            for began, variant in self._under_way.values()
        )
        progress.update(self._task, completed=min(self._total, self._ended + sum(parts)), refresh=True)
