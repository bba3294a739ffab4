"""A receiver of webhooks: keeps what it is sent, verifies it with the library of the specification, and misbehaves."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from standardwebhooks import Webhook


@dataclass
class Receiver:
    """What came, by webhook id, and how the next ones are answered: statuses in turn, then `status`."""

    url: str = ""
    status: int = 204
    statuses: list[int] = field(default_factory=list)
    drop: float = 0.0  # share of requests that are hung up on
    stall: float = 0.0  # seconds before an answer
    got: dict[str, list[Any]] = field(default_factory=dict)
    headers: list[dict[str, str]] = field(default_factory=list)
    secrets: Sequence[str] = ()
    forged: list[str] = field(default_factory=list)
    wandered: list[str] = field(default_factory=list)  # where a redirect was followed to
    draw: random.Random = field(default_factory=lambda: random.Random(1))
    lock: threading.Lock = field(default_factory=threading.Lock)

    def take(self, headers: dict[str, str], body: bytes) -> int:
        """One request; its status, 0 to hang up."""
        with self.lock:
            self.headers.append(headers)
            told = None
            for secret in self.secrets:
                try:
                    told = Webhook(secret).verify(body, headers)
                except Exception:
                    self.forged.append(headers.get("webhook-id", ""))
            if not self.secrets:
                told = body
            if self.draw.random() < self.drop:
                return 0
            self.got.setdefault(headers["webhook-id"], []).append(told)
            return self.statuses.pop(0) if self.statuses else self.status

    @property
    def events(self) -> list[Any]:
        """Every event once, in the order of first arrival."""
        with self.lock:
            return [several[0] for several in self.got.values()]


@contextmanager
def receiving(**how: Any) -> Iterator[Receiver]:
    """Run one on loopback."""
    receiver = Receiver(**how)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            time.sleep(receiver.stall)
            status = receiver.take({name.lower(): value for name, value in self.headers.items()}, body)
            if not status:
                self.close_connection = True
                return
            self.send_response(status)
            self.send_header("Location", receiver.url + "/elsewhere")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def do_GET(self) -> None:
            receiver.wandered.append(self.path)
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 128

        def handle_error(self, *_: object) -> None:
            """A client that hangs up is no news."""

    server = Server(("127.0.0.1", 0), Handler)
    receiver.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield receiver
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
