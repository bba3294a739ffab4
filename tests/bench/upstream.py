"""An upstream that costs next to nothing: one canned 200 KB answer, as fast as uvicorn can write it.

The benchmark's own; it has no delay and no validation, so that what is measured is what stands in front of it.
"""

from __future__ import annotations

import io
import json
import random
from typing import Any

from PIL import Image

BOUNDARY = "6b" * 30


def picture(size: int = 200_000) -> bytes:
    """A real JPEG padded to `size` bytes with comments."""
    noise = Image.frombytes("RGB", (256, 256), random.Random(1).randbytes(256 * 256 * 3))
    raw = io.BytesIO()
    noise.resize((1024, 1024)).save(raw, "JPEG", quality=60)
    data = raw.getvalue()
    head, tail = data[:2], data[2:]
    while size - len(data) > 4:
        length = min(65_533, size - len(data) - 4)
        comment = b"\xff\xfe" + (length + 2).to_bytes(2, "big") + bytes(length)
        tail, data = comment + tail, data + comment
    return head + tail


def _answer() -> bytes:
    job = {
        "type": "inference.flux-kontext.pro.txt2img.v2",
        "id": "0b7c2f52-6a0e-4a53-9d3e-2f6f6f0f9a11",
        "state": {"current": "completed", "history": None},
        "price": {"product": "bench", "dollars": 0.04},
    }
    return b"".join(
        (
            f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="job"; filename="job.json"\r\n'
            f"Content-Type: application/json\r\n\r\n{json.dumps(job)}\r\n--{BOUNDARY}\r\n"
            'Content-Disposition: form-data; name="output"; filename="output.jpg"\r\n'
            "Content-Type: image/jpeg\r\n\r\n".encode(),
            picture(),
            f"\r\n--{BOUNDARY}--\r\n".encode(),
        )
    )


BODY = _answer()
HEADERS = [
    (b"content-type", f"multipart/form-data; boundary={BOUNDARY}".encode()),
    (b"content-length", str(len(BODY)).encode()),
]


async def app(scope: Any, receive: Any, send: Any) -> None:
    """ASGI: read the body, answer."""
    if scope["type"] != "http":
        return
    while (await receive()).get("more_body"):
        pass
    await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
    await send({"type": "http.response.body", "body": BODY})
