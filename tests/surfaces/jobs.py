"""Jobs in Prodia's wire form for tests, byte for byte: sent to the gateway, or straight to the stand-in."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from email.parser import BytesParser
from email.policy import HTTP
from typing import Any

from tests.e2e.exchange import FORM, Answer, form, send

GENERATE = "inference.flux-kontext.pro.txt2img.v2"
MAX = "inference.flux-kontext.max.txt2img.v2"
EDIT = "inference.flux-kontext.pro.img2img.v2"
DEV = "inference.flux-fast.dev-kontext.img2img.v1"
BOTH = "multipart/form-data"
JPEG = '; filename="image.jpg"\r\nContent-Type: image/jpeg'
JSON = '; filename="job.json"\r\nContent-Type: application/json'


@dataclass(frozen=True)
class Part:
    """One part of an answer."""

    name: str
    filename: str | None
    content_type: str
    data: bytes


def body(kind: object, **config: Any) -> bytes:
    """A job's JSON."""
    return json.dumps({"type": kind, "config": {"prompt": "a lighthouse at dawn"} | config}).encode()


def post(
    url: str,
    token: str | None,
    content: bytes,
    *,
    inputs: tuple[bytes, ...] = (),
    accept: str | None = BOTH,
    target: str = "/v2/job",
    content_type: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> Answer:
    """One job: JSON without inputs, else as the official client sends it, with the inputs first."""
    kind = "application/json"
    if inputs:
        content, kind = form(*(("input", data, JPEG) for data in inputs), ("job", content, JSON)), FORM
    given = [("Content-Type", content_type or kind), *(headers or {}).items()]
    given += [("Accept", accept)] if accept is not None else []
    given += [("Authorization", f"Bearer {token}")] if token is not None else []
    return send(url, "POST", target, given, content, timeout=30)


def parts(answer: Answer) -> list[Part]:
    """The parts of an envelope."""
    content_type = answer.headers["content-type"]
    assert re.fullmatch(r"multipart/form-data; boundary=[0-9a-f]{60}", content_type), content_type
    message: Any = BytesParser(policy=HTTP).parsebytes(
        b"Content-Type: " + content_type.encode() + b"\r\n\r\n" + answer.body
    )
    return [
        Part(
            part.get_param("name", header="content-disposition"), part.get_filename(), part.get_content_type(),
            part.get_payload(decode=True),
        )
        for part in message.iter_parts()
    ]  # fmt: skip


def document(answer: Answer) -> dict[str, Any]:
    """The job document of an answer, in an envelope or bare."""
    raw = parts(answer)[0].data if answer.headers["content-type"].startswith("multipart/") else answer.body
    found: dict[str, Any] = json.loads(raw)
    return found
