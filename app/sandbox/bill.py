"""The sandbox's bill: what Prodia would charge, one JSON line per billed job, on disk before the answer leaves.

The job endpoint appends and waits; jobs that end at the same time share one fsync, made off the event loop. A write
that fails is raised to every job that waited for it, which then answers 500. Without a path the bill lives in memory.
"""

import asyncio
import csv
import io
import os
from collections import deque
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

FIELDS = ("id", "at", "type", "micro_usd", "outcome", "seed", "prompt_sha256", "safety_tolerance")


START = b'{"id":"'


@dataclass(frozen=True, slots=True)
class Charge:
    """One billed job. Money in micro-dollars; `seed` and `safety_tolerance` as received, None when absent."""

    id: str
    at: str
    type: str
    micro_usd: int
    outcome: str
    seed: object
    prompt_sha256: str | None
    safety_tolerance: object

    def line(self) -> bytes:
        return orjson.dumps({name: getattr(self, name) for name in FIELDS}, option=orjson.OPT_APPEND_NEWLINE)


class Bill:
    """Append-only. Totals are exact; of the rows the last `keep` are held in memory, all are in the file."""

    def __init__(self, path: Path | None, keep: int) -> None:
        self._rows: deque[bytes] = deque(maxlen=keep)
        self._waiting: list[tuple[bytes, int, asyncio.Future[None]]] = []
        self._flushing: asyncio.Task[None] | None = None
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="sandbox-bill")
        self.jobs = 0
        self.micro_usd = 0
        self._file = None if path is None else self._continued(path)

    def _continued(self, path: Path) -> int:
        """Counts what the file already holds and opens it for appending.

        A kill may have left half a last row, which no answer ever waited for: it is cut off. A file that holds anything
        else is refused with ValueError and left alone.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            whole = 0
            with os.fdopen(file, "rb", closefd=False) as earlier:
                for line in earlier:
                    if line.endswith(b"\n"):
                        self._count(line, int(orjson.loads(line)["micro_usd"]))
                        whole += len(line)
                    elif not line.startswith(START[: len(line)]):
                        raise ValueError
            os.ftruncate(file, whole)
        except (ValueError, KeyError, TypeError):
            os.close(file)
            raise ValueError(f"{path} holds a line that is not a bill row") from None
        return file

    async def append(self, charge: Charge) -> None:
        """Returns once the row is safe on disk. Raises OSError when it cannot be written."""
        if self._file is None:
            self._count(charge.line(), charge.micro_usd)
            return
        done = asyncio.get_running_loop().create_future()
        self._waiting.append((charge.line(), charge.micro_usd, done))
        if self._flushing is None:
            self._flushing = asyncio.create_task(self._flush())
        await asyncio.shield(done)

    async def _flush(self) -> None:
        loop = asyncio.get_running_loop()
        while self._waiting:
            batch, self._waiting = self._waiting, []
            try:
                await loop.run_in_executor(self._writer, self._write, b"".join(line for line, _, _ in batch))
            except OSError as error:
                for _, _, done in batch:
                    done.set_exception(OSError(error.errno, "the bill cannot be written"))
            else:
                for line, micro_usd, done in batch:
                    self._count(line, micro_usd)
                    done.set_result(None)
        self._flushing = None

    def _write(self, lines: bytes) -> None:
        file = self._file
        assert file is not None  # noqa: S101
        before = os.fstat(file).st_size
        try:
            left = memoryview(lines)
            while left:
                left = left[os.write(file, left) :]
            os.fsync(file)
        except OSError:
            os.ftruncate(file, before)  # half a row would spoil the next one
            raise

    def _count(self, line: bytes, micro_usd: int) -> None:
        self._rows.append(line)
        self.jobs += 1
        self.micro_usd += micro_usd

    def rows(self) -> list[bytes]:
        """The last rows, oldest first, each a JSON object ending in a line feed."""
        return list(self._rows)

    def reset(self) -> None:
        """Totals and rows start from nothing; what is in the file stays there."""
        self._rows.clear()
        self.jobs = 0
        self.micro_usd = 0

    async def close(self) -> None:
        if self._flushing is not None:
            await self._flushing
        self._writer.shutdown()
        if self._file is not None:
            os.close(self._file)
            self._file = None


def as_csv(rows: Iterable[bytes]) -> str:
    """The rows as CSV with a header line."""
    text = io.StringIO()
    writer = csv.DictWriter(text, FIELDS, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        parsed: dict[str, Any] = orjson.loads(row)
        writer.writerow(parsed)
    return text.getvalue()
