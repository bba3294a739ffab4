"""An upstream that costs next to nothing: a canned picture of 200 KB for every POST, each with a number of its own.

The benchmark's own, `python -m tests.bench.upstream PORT`. It validates nothing, so that what is measured is what
stands in front of it. `/after/6/...` answers after six seconds; a path that ends in `/images/generations` is answered
as OpenAI does, every other one as Prodia does.
"""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import sys

import httptools
import uvloop

from .picture import reply

BOUNDARY = "6b" * 30
BEFORE, AFTER = reply()
JOB = {
    "type": "inference.flux-kontext.pro.txt2img.v2",
    "id": "0b7c2f52-6a0e-4a53-9d3e-2f6f6f0f9a11",
    "state": {"current": "completed", "history": None},
    "price": {"product": "bench", "dollars": 0.04},
}
FORM_BEFORE = (
    f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="job"; filename="job.json"\r\n'
    f"Content-Type: application/json\r\n\r\n{json.dumps(JOB)}\r\n--{BOUNDARY}\r\n"
    'Content-Disposition: form-data; name="output"; filename="output.jpg"\r\n'
    "Content-Type: image/jpeg\r\n\r\n"
).encode() + BEFORE
FORM_AFTER = AFTER + f"\r\n--{BOUNDARY}--\r\n".encode()
OPENAI = json.dumps(
    {"created": 1, "data": [{"b64_json": base64.b64encode(BEFORE + bytes(8) + AFTER).decode()}]}
).encode()


def _head(content_type: str, length: int) -> bytes:
    return f"HTTP/1.1 200 OK\r\nContent-Type: {content_type}\r\nContent-Length: {length}\r\n\r\n".encode()


FORM_HEAD = _head(f"multipart/form-data; boundary={BOUNDARY}", len(FORM_BEFORE) + 8 + len(FORM_AFTER))
OPENAI_HEAD = _head("application/json", len(OPENAI))
NUMBERS = itertools.count()


class Canned(asyncio.Protocol):
    """One connection."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: asyncio.WriteTransport = transport  # type: ignore[assignment]
        self.parser = httptools.HttpRequestParser(self)

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)

    def on_url(self, url: bytes) -> None:
        self.url = url

    def on_message_complete(self) -> None:
        first, seconds, *_ = [*self.url.split(b"/")[1:], b""]
        if first == b"after":
            asyncio.get_running_loop().call_later(float(seconds), self.answer)
        else:
            self.answer()

    def answer(self) -> None:
        if self.transport.is_closing():
            return
        if self.url.endswith(b"/images/generations"):
            self.transport.writelines([OPENAI_HEAD, OPENAI])
        else:
            number = next(NUMBERS).to_bytes(8, "big")
            self.transport.writelines([FORM_HEAD, FORM_BEFORE, number, FORM_AFTER])


async def serve(port: int) -> None:
    """Until the process is ended."""
    server = await asyncio.get_running_loop().create_server(Canned, "127.0.0.1", port, backlog=4096)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1])))
