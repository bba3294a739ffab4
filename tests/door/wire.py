"""Raw connections to a gateway, and what a process read and holds: no client library tidies or hides anything."""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any
from urllib.parse import urlsplit

from tests.e2e.exchange import BOUNDARY
from tests.fleet import Fleet, Replica, fleet

LATE = 6.0  # seconds: a sweep every second, on a machine that does other things too
TENANTS = {
    "acme": {},
    "other": {},
    "slow": {"limits": {"requests": {"rate": "1/1h", "burst": 1}}},
    "peruser": {"limits": {"per_user": {"images": [{"max": 1000, "per": "day"}]}}},
}


@contextmanager
def gateway(
    folder: Path, *sandbox: str, program: Sequence[str] | None = None, **environment: str
) -> Iterator[tuple[Fleet, Replica]]:
    """One replica, its upstream answering at once unless said otherwise."""
    text = json.dumps({"version": 1, "tenants": TENANTS}) + "\n"
    speed = sandbox or ("--time-scale", "0", "--picture", "small")
    with fleet(folder, text, sandbox=speed, program=program, **environment) as running:
        yield running, running.replicas[0]


def head(method: str, path: str, key: str | None, *lines: str) -> bytes:
    """A request's head."""
    carrier = [] if key is None else [f"Authorization: Bearer {key}"]
    return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: gateway", *carrier, *lines, "", ""]).encode("latin-1")


def upload_head(key: str | None, *length: str) -> bytes:
    """The head of an edit as a form."""
    return head("POST", "/v1/edit", key, f"Content-Type: multipart/form-data; boundary={BOUNDARY}", *length)


@dataclass
class Ending:
    """What came back on a connection until it was closed, and after how many seconds that was."""

    data: bytes
    seconds: float

    @property
    def statuses(self) -> list[int]:
        """The status of every answer."""
        return [int(status) for status in re.findall(rb"HTTP/1\.[01] (\d{3})", self.data)]

    @property
    def code(self) -> str:
        """The code of the one problem document."""
        found: dict[str, Any] = json.loads(self.data.partition(b"\r\n\r\n")[2])
        return str(found["code"])


class Wire:
    """One connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer, self.began = reader, writer, monotonic()

    @classmethod
    async def open(cls, url: str, **options: Any) -> Wire:
        """Connect."""
        place = urlsplit(url)
        return cls(*await asyncio.open_connection(place.hostname, place.port, **options))

    async def send(self, data: bytes | memoryview) -> bool:
        """Send all of it; False when the other side does not take it any more."""
        with suppress(ConnectionError):
            self.writer.write(data)
            await self.writer.drain()
            return True
        return False

    async def rest(self, seconds: float = 60) -> Ending:
        """What comes until the other side closes."""
        data = b""
        with suppress(ConnectionError):
            async with asyncio.timeout(seconds):
                while piece := await self.reader.read(65_536):
                    data += piece
        seconds = monotonic() - self.began
        await self.drop()
        return Ending(data, seconds)

    async def drop(self) -> None:
        """Be gone without a word."""
        self.writer.transport.abort()
        await asyncio.sleep(0.01)


def established(pid: int, port: int) -> bool:
    """Whether the server's side of the connection from this port of a client is open, or half open and not let go."""
    rows = [row.split() for row in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]]
    return any(row[2].endswith(f":{port:04X}") and (row[3] == "01" or row[9] != "0") for row in rows)


def bytes_read(replica: Replica) -> int:
    """What the process has read so far, from sockets and files."""
    text = Path(f"/proc/{replica.process.pid}/io").read_text()
    return int(re.search(r"rchar: (\d+)", text)[1])  # type: ignore[index]


def memory(replica: Replica, name: str = "VmHWM") -> float:
    """MiB of memory: the most it ever was, or `VmRSS`."""
    text = Path(f"/proc/{replica.process.pid}/status").read_text()
    return int(re.search(rf"{name}:\s+(\d+)", text)[1]) / 1024  # type: ignore[index]


def cpu_seconds(replica: Replica) -> float:
    """CPU time of the process so far."""
    fields = Path(f"/proc/{replica.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
