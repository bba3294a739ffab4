"""Where the body of a job waits for its turn: in memory when small, else in an unlinked file of the private data
directory.

Used by the pipeline between preparing an input and sending it; a retry reads it again. The file has no name, so
nothing is left behind by a crash. A directory that cannot be written is refused at the start; a disk that fills up
later refuses that one upload as `overloaded`, before any money is held.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO

from app.errors import GatewayError

IN_MEMORY = 256 * 1024
CHUNK = 120 * 1024  # few writes, and below the size from which malloc maps fresh pages for every buffer
OFF_LOOP = 1024 * 1024  # bytes from which writing leaves the event loop: below, a thread's wake-up costs more than it
RETRY_S = 5  # what fills the disk is mostly other uploads, which go within seconds


class Blob:
    """`size` bytes that can be read again, from the start each time, and by several at once. Closed by the garbage
    collector with its last user."""

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
        for at in range(0, self.size, CHUNK):
            yield os.pread(self._file.fileno(), CHUNK, at)


class Spool:
    """Makes blobs, in a folder of the data directory that is made for this user only."""

    def __init__(self, data_dir: Path) -> None:
        self._folder = data_dir / "spool"

    def open(self) -> None:
        """See that files can be made where they will be needed. Raises OSError, which names the setting."""
        try:
            self._file().close()
        except OSError as error:
            text = f"GATEWAY_DATA_DIR: files cannot be written in {self._folder}: {error.strerror}"
            raise OSError(text) from None

    async def keep(self, data: bytes) -> Blob:
        """A blob of the data; what is larger than 256 KB leaves memory.

        Raises:
            GatewayError: overloaded, where there is no room on the disk.
        """
        if len(data) <= IN_MEMORY:
            return Blob(data, None)
        try:
            return self._write(data) if len(data) <= OFF_LOOP else await asyncio.to_thread(self._write, data)
        except OSError:
            text = "There is no room to keep this upload until it can be sent; nothing was dispatched."
            raise GatewayError("overloaded", text, retry_after=RETRY_S) from None

    def _write(self, data: bytes) -> Blob:
        file = self._file()
        try:
            file.write(data)
            file.flush()  # read without its buffer
        except OSError:
            with suppress(OSError):  # closing tries once more to write what did not fit
                file.close()
            raise
        return Blob(data, file)

    def _file(self) -> IO[bytes]:
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        return tempfile.TemporaryFile(dir=self._folder)
