"""A gateway with its upstream for all tests of the client, commands run against it, and a server that answers amiss."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from tests.fleet import APP, ROOT, Fleet, get_json

TENANTS = """
version: 1
tenants:
  acme: {limits: {budgets: [{usd: "50.00", per: month}]}}
  slow: {limits: {requests: {rate: 1/2s, burst: 1}}}
  poor: {limits: {budgets: [{usd: "0.05", per: month}]}}
  few: {limits: {images: [{max: 1, per: month}]}}
"""


@dataclass
class Shop:
    """A running gateway, its keys, and a folder to run commands in."""

    fleet: Fleet
    keys: dict[str, str]
    folder: Path

    @property
    def url(self) -> str:
        """Its public address."""
        return self.fleet.replicas[0].url

    @property
    def received(self) -> int:
        """Jobs that the upstream has received so far."""
        return int(self.fleet.stats()["received"])

    def environment(self, **more: str) -> dict[str, str]:
        """What a command finds."""
        own = {"GATEWAY_URL": self.url, "GATEWAY_KEY": self.keys["acme"], "COLUMNS": "100", "TERM": "xterm"}
        return {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)} | own | more

    def run(self, *words: str, stdin: str = "", **more: str) -> subprocess.CompletedProcess[str]:
        """One command to its end."""
        return subprocess.run(
            [*APP, *words], cwd=self.folder, env=self.environment(**more), input=stdin, capture_output=True, text=True,
            timeout=60, check=False,
        )  # fmt: skip

    def started(self, *words: str, stderr: int = subprocess.PIPE, **more: str) -> subprocess.Popen[bytes]:
        """One command under way, which Ctrl-C reaches: what runs in the background of a shell is born deaf to it."""
        signal.signal(signal.SIGINT, signal.default_int_handler)
        return subprocess.Popen(
            [*APP, *words], cwd=self.folder, env=self.environment(**more), stdout=subprocess.PIPE, stderr=stderr
        )

    def fresh(self) -> None:
        """Forget the upstream's counters and faults."""
        self.fleet.faults([])
        get_json_or_nothing(self.fleet.upstream + "/sandbox/reset")


def get_json_or_nothing(url: str) -> None:
    """A POST whose answer is empty."""
    get_json(url, data={}, method="POST")


def problem(status: str, text: str, *headers: str) -> bytes:
    """An answer of the gateway's kind."""
    head = [f"HTTP/1.1 {status}", "Content-Type: application/problem+json", f"Content-Length: {len(text)}", *headers]
    return ("\r\n".join(head) + "\r\n\r\n" + text).encode()


@dataclass
class Amiss:
    """What a server of scripted answers has received, one entry per request."""

    url: str
    heads: list[str] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)

    def header(self, name: str) -> list[str]:
        """The values of a header, request by request."""
        lines = [[line.partition(": ") for line in head.split("\r\n")] for head in self.heads]
        return [value for head in lines for found, _, value in head if found.lower() == name.lower()]


@contextmanager
def amiss(answers: Sequence[bytes | None], *, read: bool = True) -> Iterator[Amiss]:
    """A server that gives these answers in order, each on a connection of its own; None ends the connection instead.

    When all are given it refuses connections, so that a request too many fails at once.
    Without `read` it closes as soon as it has the head, with the body unread: the peer meets a reset.
    """
    with socket.create_server(("127.0.0.1", 0)) as listener:
        found = Amiss(f"http://127.0.0.1:{listener.getsockname()[1]}")
        server = threading.Thread(target=_serve, args=(listener, found, answers, read), daemon=True)
        server.start()
        yield found
        with suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        server.join(10)


def _serve(listener: socket.socket, found: Amiss, answers: Sequence[bytes | None], read: bool) -> None:
    for answer in answers:
        try:
            connection = listener.accept()[0]
        except OSError:
            return
        with connection:
            data = b""
            while b"\r\n\r\n" not in data:
                data += connection.recv(65_536)
            head, _, body = data.partition(b"\r\n\r\n")
            found.heads.append(head.decode())
            length = next((int(v) for v in found.header("content-length")[-1:]), 0)
            while read and len(body) < length:
                body += connection.recv(65_536)
            found.bodies.append(body)
            if len(found.heads) == len(answers):
                listener.close()
            if answer is not None:
                connection.sendall(answer.replace(b"\r\n", b"\r\nConnection: close\r\n", 1))
