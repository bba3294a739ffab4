"""Answers of Prodia as bytes, composed after its documentation; used by the codec's and the client's tests."""

from __future__ import annotations

import json
from typing import Any

BOUNDARY = "7f3a" * 15
MULTIPART = f"multipart/form-data; boundary={BOUNDARY}"
JPEG = b"\xff\xd8\xff\xe0picture\xff\xd9"
PNG = b"\x89PNG\r\n\x1a\npicture\x00\x00\x00\x00IEND\xaeB`\x82"
WEBP = b"RIFF" + (13).to_bytes(4, "little") + b"WEBPVP8 picture"[:13]
PICTURES = {"jpeg": JPEG, "png": PNG, "webp": WEBP}
JOB_ID = "0b7c2f52-6a0e-4a53-9d3e-2f6f6f0f9a11"


def job(**over: Any) -> dict[str, Any]:
    """The document of a completed job, with some members replaced."""
    document = {
        "type": "inference.flux-kontext.pro.img2img.v2",
        "created_at": "2026-03-01T10:00:00.250Z",
        "updated_at": "2026-03-01T10:00:06.410Z",
        "expires_at": "2026-03-01T10:05:00.250Z",
        "id": JOB_ID,
        "state": {"current": "completed", "history": None},
        "config": {"aspect_ratio": "16:9", "prompt": "make the sky stormy"},
        "metrics": {"elapsed": 5.82},
        "price": {"product": "inference-flux-kontext-pro", "dollars": 0.04},
    }
    return document | over


def failed(text: str, **over: Any) -> dict[str, Any]:
    document = job(error=text, state={"current": "failed", "history": [{"message": text}]})
    del document["price"]
    return document | over


def part(name: str, data: bytes, content_type: str | None, filename: str | None) -> bytes:
    head = f'Content-Disposition: form-data; name="{name}"' + (f'; filename="{filename}"' if filename else "")
    if content_type:
        head += f"\r\nContent-Type: {content_type}"
    return f"--{BOUNDARY}\r\n{head}\r\n\r\n".encode() + data + b"\r\n"


def job_part(document: Any, *, filename: str | None = "job.json") -> bytes:
    raw = document if isinstance(document, bytes) else json.dumps(document).encode()
    return part("job", raw, "application/json", filename)


def output_part(
    image: bytes = JPEG, content_type: str | None = "image/jpeg", filename: str | None = "output.jpg"
) -> bytes:
    return part("output", image, content_type, filename)


def envelope(*parts: bytes) -> bytes:
    return b"".join(parts) + f"--{BOUNDARY}--\r\n".encode()


COMPLETED = envelope(job_part(job()), output_part())
