"""An upstream that knows no job type: it records what it was sent, byte for byte, and answers with a picture.

The sandbox knows Kontext's types alone; this one is for an operator's own.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.parser import BytesParser
from email.policy import HTTP
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.pipeline.calls import picture

BOUNDARY = "stand-in-boundary-0123456789"


@dataclass(frozen=True)
class Sent:
    """One part as it was received."""

    name: str
    filename: str | None
    content_type: str
    data: bytes


@dataclass
class StandIn:
    """The jobs received, each as its parts; a JSON body is one part without a name."""

    url: str = ""
    price: float = 0.06
    received: list[list[Sent]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)

    @property
    def last(self) -> tuple[dict[str, Any], list[Sent]]:
        """Document of the last job and its inputs."""
        job, *inputs = self.received[-1]
        document: dict[str, Any] = json.loads(job.data)
        return document, inputs


@contextmanager
def stand_in() -> Iterator[StandIn]:
    """Serve one on a free port of loopback."""
    state = StandIn()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            state.paths.append(self.path)
            state.received.append(_parts(self.headers["Content-Type"], body))
            answer = _answer(state)
            self.send_response(200)
            self.send_header("Content-Type", f"multipart/form-data; boundary={BOUNDARY}")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, format: str, *args: object) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    state.url = f"http://127.0.0.1:{server.server_port}/v2"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _parts(content_type: str, body: bytes) -> list[Sent]:
    if not content_type.startswith("multipart/"):
        return [Sent("", None, content_type, body)]
    message: Any = BytesParser(policy=HTTP).parsebytes(b"Content-Type: " + content_type.encode() + b"\r\n\r\n" + body)
    found = []
    for part in message.iter_parts():
        name = str(part.get_param("name", header="content-disposition"))
        data = bytes(part.get_payload(decode=True))
        found.append(Sent(name, part.get_filename(), part.get_content_type(), data))
    return found


def _answer(state: StandIn) -> bytes:
    document = {
        "id": f"job-{len(state.received)}",
        "type": json.loads(state.received[-1][0].data)["type"],
        "state": {"current": "completed", "history": None},
        "metrics": {"elapsed": 0.01},
        "price": {"product": "any", "dollars": state.price},
    }
    job = b'Content-Disposition: form-data; name="job"; filename="job.json"\r\nContent-Type: application/json\r\n\r\n'
    output = b'Content-Disposition: form-data; name="output"; filename="output.png"\r\nContent-Type: image/png\r\n\r\n'
    line = f"--{BOUNDARY}\r\n".encode()
    end = f"\r\n--{BOUNDARY}--\r\n".encode()
    return line + job + json.dumps(document).encode() + b"\r\n" + line + output + picture((200, 10, 10)) + end
