"""The job document and the envelopes it travels in, byte for byte as Prodia's Go server writes them.

Pure. Key order, millisecond stamps, the 300 second expiry, the unquoted boundary of 60 hex digits and the file names
are those of live captures; see each function.
"""

import random
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson

from .config import SandboxConfig
from .inspection import Format

EXPIRY = timedelta(seconds=300)
EXTENSIONS: Mapping[Format, str] = {"jpeg": "jpg", "png": "png", "webp": "webp"}


_chance = random.Random()
"""Ids and boundaries need not be secret here, and the system's own source costs more than the rest of an answer."""


def random_id() -> str:
    """A version 4 UUID."""
    return str(uuid.UUID(int=_chance.getrandbits(128), version=4))


@dataclass(frozen=True, slots=True)
class Part:
    """One part of a multipart answer."""

    name: str
    filename: str
    content_type: str
    data: bytes


@dataclass(frozen=True, slots=True)
class Birth:
    """When a job was made and its id, a version 4 UUID."""

    created: datetime = field(default_factory=lambda: datetime.now(UTC))
    id: str = field(default_factory=random_id)


def stamp(at: datetime) -> str:
    """RFC 3339 in UTC with milliseconds and `Z`."""
    return at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def completed(
    switches: SandboxConfig,
    kind: str,
    born: Birth,
    config: Mapping[str, Any],
    elapsed: float,
    price: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """A finished job's document, keys in the captured order. `elapsed` in seconds; `price` only when asked for."""
    state: dict[str, Any] = {"current": "completed"}
    if switches.history != "absent":
        state["history"] = None if switches.history == "null" else [{"message": "completed"}]
    document = _head({"type": kind}, born) | {"state": state, "config": dict(config), "metrics": {"elapsed": elapsed}}
    return document if price is None else document | {"price": dict(price)}


def failed(asked: Mapping[str, Any], born: Birth, text: str) -> dict[str, Any]:
    """A failed job's document: no metrics, no price; `type` and `config` as sent, where they are of the right kind."""
    kind, config = asked.get("type"), asked.get("config")
    document = _head({"type": kind} if isinstance(kind, str) else {}, born)
    document["state"] = {"current": "failed", "history": [{"message": text}]}
    if isinstance(config, Mapping):
        document["config"] = dict(sorted(config.items()))
    return document | {"error": text}


def _head(start: dict[str, Any], born: Birth) -> dict[str, Any]:
    stamps = {
        "created_at": stamp(born.created),
        "updated_at": stamp(datetime.now(UTC)),
        "expires_at": stamp(born.created + EXPIRY),
    }
    return start | stamps | {"id": born.id}


def echo(client: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The config of a finished job: the client's keys in alphabetical order, then what the server added."""
    return dict(sorted(client.items())) | {key: value for key, value in defaults.items() if key not in client}


def to_json(document: Mapping[str, Any]) -> bytes:
    """Compact JSON as Go's encoder writes it, which escapes `<`, `>` and `&`."""
    raw = orjson.dumps(document)
    for letter in (b"<", b">", b"&"):
        raw = raw.replace(letter, b"\\u%04x" % letter[0])
    return raw


def job_part(document: Mapping[str, Any]) -> Part:
    return Part("job", "job.json", "application/json", to_json(document))


def output_part(switches: SandboxConfig, form: Format, picture: bytes) -> Part:
    name = switches.output_filename or f"output.{EXTENSIONS[form]}"
    return Part("output", name, f"image/{form}", picture)


def envelope(parts: Sequence[Part]) -> tuple[str, bytes]:
    """Content type and body of a multipart answer. Every part has a file name: the official client needs one."""
    boundary = f"{_chance.getrandbits(240):060x}"
    body = bytearray()
    for part in parts:
        start = b"\r\n" if body else b""
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="{part.name}"; filename="{part.filename}"\r\n'
        body += start + head.encode() + f"Content-Type: {part.content_type}\r\n\r\n".encode() + part.data
    body += f"\r\n--{boundary}--\r\n".encode()
    return f"multipart/form-data; boundary={boundary}", bytes(body)
