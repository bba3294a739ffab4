"""Where the body of a job waits for its turn: in memory when small, else in an unlinked file of the private data
directory.

Used by the pipeline between preparing an input and sending it; a retry reads it again. The file has no name, so
nothing is left behind by a crash. A full disk raises OSError before any money is held.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

IN_MEMORY = 256 * 1024
CHUNK = 120 * 1024  # few writes, and below the size from which malloc maps fresh pages for every buffer
OFF_LOOP = 1024 * 1024  # bytes from which writing leaves the event loop: below, a thread's wake-up costs more than it


class Blob:
    """`size` bytes that can be read again, from the start each time. Closed by the garbage collector with its last
    user."""

    def __init__(self, data: bytes, file: IO[bytes] | None) -> None:
        self.size = len(data)
        self._data = data if file is None else b""
        self._file = file

    def chunks(self) -> Iterator[bytes]:
        """All bytes, in pieces of at most `CHUNK`."""
        if self._file is None:
            for at in range(0, len(self._data), CHUNK):
                yield self._data[at : at + CHUNK]
            return
        self._file.seek(0)
        while piece := self._file.read(CHUNK):
            yield piece


class Spool:
    """Makes blobs; `folder` is made for this user only."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    async def keep(self, data: bytes) -> Blob:
        """A blob of the data; what is larger than 256 KB leaves memory. Raises OSError when the disk is full."""
        if len(data) <= IN_MEMORY:
            return Blob(data, None)
        return self._write(data) if len(data) <= OFF_LOOP else await asyncio.to_thread(self._write, data)

    def _write(self, data: bytes) -> Blob:
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        file = tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115
        file.write(data)
        file.flush()
        return Blob(data, file)
