"""Prodia's `POST /v2/job` on the wire: requests out of `Call`, answers into `Completed` or a `Fault`. No I/O.

`client` is the only caller. The answer side is tolerant in form (multipart, JSON or text; parts in any order) and
strict in substance: a picture is `Completed` only if the answer is whole and of the type that was asked for.
"""

from __future__ import annotations

import json
import re
import secrets as random_tokens
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import ROUND_CEILING, Context, Decimal
from functools import cached_property
from typing import Any, Literal, Protocol

import orjson
from multipart import MultipartSegment, PushMultipartParser, parse_options_header

from app.prodia.faults import Fault, Moderation, clean, field_at_fault, is_validation
from app.prodia.retry import parse_retry_after

CHUNK = 65_536
MAX_PARTS = 64
MAX_PRICE_USD = 1000
MAX_MESSAGE = 300


class Blob(Protocol):
    """Bytes that can be read again for a re-send; `chunks` gives `size` bytes in all, each time from the start."""

    @property
    def size(self) -> int: ...

    def chunks(self) -> Iterator[bytes]: ...


@dataclass(frozen=True, slots=True)
class BytesBlob:
    """A blob that is small enough to be held in memory."""

    data: bytes

    @property
    def size(self) -> int:
        return len(self.data)

    def chunks(self) -> Iterator[bytes]:
        return (self.data[at : at + CHUNK] for at in range(0, len(self.data), CHUNK))


@dataclass(frozen=True, slots=True)
class Part:
    """One `input` part. A config refers to it by its filename."""

    filename: str
    content_type: str
    body: Blob


@dataclass(frozen=True, slots=True)
class Call:
    """One job as it is sent: no defaults are added and nothing is checked."""

    job_type: str
    config: Mapping[str, Any]
    parts: tuple[Part, ...]
    output: Literal["jpeg", "png", "webp"]


@dataclass(frozen=True, slots=True)
class Encoded:
    """A request's body and the headers that describe it; `chunks()` starts from the beginning each time."""

    content_type: str
    accept: str
    length: int
    chunks: Callable[[], Iterator[bytes]]


@dataclass(frozen=True, slots=True)
class Completed:
    """A finished picture.

    Args:
        price_micro_usd: the reported price in whole micro-dollars, a fraction rounded up; None without a usable one.
        elapsed: seconds of work, as reported.
    """

    image: bytes
    content_type: str
    upstream_id: str | None
    price_micro_usd: int | None
    elapsed: float | None


# --- requests ---------------------------------------------------------------------------------------------------------

_QUOTED = str.maketrans({'"': "%22", "\r": "%0D", "\n": "%0A"})  # as browsers escape a filename


def encode(call: Call) -> Encoded:
    """The request for a job: JSON without parts, else multipart with the job part first."""
    accept = f"multipart/form-data; image/{call.output}"
    job = orjson.dumps({"type": call.job_type, "config": dict(call.config)})
    if not call.parts:
        return Encoded("application/json", accept, len(job), lambda: iter((job,)))

    boundary = random_tokens.token_hex(30)
    pieces: list[bytes | Blob] = [_head(boundary, "job", "job.json", "application/json") + job + b"\r\n"]
    for part in call.parts:
        pieces += [_head(boundary, "input", part.filename, part.content_type), part.body, b"\r\n"]
    pieces.append(f"--{boundary}--\r\n".encode())

    def chunks() -> Iterator[bytes]:
        for piece in pieces:
            if isinstance(piece, bytes):
                yield piece
            else:
                yield from piece.chunks()

    length = sum(len(piece) if isinstance(piece, bytes) else piece.size for piece in pieces)
    return Encoded(f"multipart/form-data; boundary={boundary}", accept, length, chunks)


def _head(boundary: str, name: str, filename: str, content_type: str) -> bytes:
    if not content_type.isprintable():
        raise ValueError("a part's content type holds control characters")
    return (
        f"--{boundary}\r\n"
        f'Content-Disposition: form-data; name="{name}"; filename="{filename.translate(_QUOTED)}"\r\n'
        f"Content-Type: {content_type}\r\n\r\n"
    ).encode()


# --- answers ----------------------------------------------------------------------------------------------------------


def decode(
    status: int,
    content_type: str,
    body: bytes,
    *,
    output: str,
    retry_after: Sequence[str] = (),
    patterns: Moderation,
    secrets: Sequence[str] = (),
) -> Completed:
    """A finished picture, or why there is none. The status line decides; text only explains.

    Args:
        body: as much of the body as was read. A refusal may be cut short; a success may not.
        output: jpeg, png or webp: what was asked for, and the only thing accepted.
        retry_after: the values of all `Retry-After` headers.
        secrets: never shown, even if the upstream echoes them.

    Raises:
        Fault: anything else than a whole picture of that type.
    """
    parts, whole, enveloped = _parts(content_type, body)
    job = _job(parts, enveloped, secrets)
    try:
        return _judged(status, parts, whole, enveloped, job, output, secrets, retry_after, patterns)
    except Fault as fault:
        fault.upstream_id = job.id if job else None
        raise


def id_in(content_type: str, body: bytes, *, secrets: Sequence[str]) -> str | None:
    """The job's id in an answer that was cut short, where its document had arrived whole."""
    parts, _, enveloped = _parts(content_type, body)
    job = _job(parts, enveloped, secrets)
    return job.id if job else None


def _judged(
    status: int,
    parts: Sequence[_Part],
    whole: bool,
    enveloped: bool,
    job: _Job | None,
    output: str,
    secrets: Sequence[str],
    retry_after: Sequence[str],
    patterns: Moderation,
) -> Completed:
    images = [(part_kind, data) for name, part_kind, data in parts if name == "output"]

    if status != 200:
        raise _refusal(status, job or _Job(b"", enveloped, secrets), retry_after, patterns)
    if not whole or (job and not isinstance(job.document, dict)):
        raise Fault("malformed", status=status)
    if job and job.failed and not images:
        raise _job_fault(job, patterns, status)
    if not images or (job and job.failed):
        raise Fault("malformed", status=status)

    image_type = f"image/{output}"
    part_kind, image = images[0]
    # Without an envelope only the picture itself can show that it was not cut short.
    if not image or (_sniff(image) or part_kind) != image_type or not (enveloped or _ends(image)):
        raise Fault("malformed", status=status)
    if job is None:
        return Completed(image, image_type, None, None, None)
    return Completed(image, image_type, job.id, job.price_micro_usd, job.elapsed)


def _refusal(status: int, job: _Job, retry_after: Sequence[str], patterns: Moderation) -> Fault:
    """An answer other than 200. A failed job document says more than its status, whichever that is."""
    wait = parse_retry_after(retry_after, datetime.now(UTC))
    if status == 401 or 300 <= status < 400:
        return Fault("misconfigured", status=status)
    if status < 300:
        return Fault("malformed", status=status)
    if job.failed or status == 400 or (status in (422, 429) and is_validation(job.text)):
        fault = _job_fault(job, patterns, status)
        if status not in (402, 429) or fault.outcome != "failed":
            return fault
    if status == 429:
        return Fault("busy", status=status, retry_after=wait)
    if status == 403:
        return Fault("misconfigured", status=status)
    if status < 500:
        return Fault("refused", status=status)
    if status == 503 and wait is not None:
        return Fault("unavailable", status=status, retry_after=wait)
    return Fault("error", status=status)


def _job_fault(job: _Job, patterns: Moderation, status: int) -> Fault:
    """Validation is recognised first: its texts quote parameter names, which a moderation pattern could match."""
    if is_validation(job.text):
        return Fault("invalid", status=status, field=field_at_fault(job.text), message=job.message)
    if patterns.matches(job.text):
        return Fault("moderated", status=status)
    return Fault("failed", status=status, message=job.message)


class _Job:
    """What an answer says about the job: its document if there is a readable one, and the texts that explain a failure.

    Args:
        enveloped: whether this was the `job` part of a multipart answer, and not a body of its own.
    """

    def __init__(self, raw: bytes, enveloped: bool, secrets: Sequence[str]) -> None:
        self._secrets = secrets
        self.document = _json(raw)
        self._enveloped = enveloped
        self._scrap = raw[:CHUNK] if self.document is None else b""

    @cached_property
    def _explanations(self) -> list[str]:
        if self.document is not None:
            return list(_texts(self.document))
        scrap = self._scrap.decode("utf-8", "replace")
        return [scrap] if "{" not in scrap and "<" not in scrap else _QUOTED_TEXT.findall(scrap)

    @property
    def message(self) -> str | None:
        """The most telling explanation, fit to be shown."""
        return clean(self._explanations[0], self._secrets)[:MAX_MESSAGE] or None if self._explanations else None

    @property
    def text(self) -> str:
        """All explanations, to be recognised by."""
        return clean("\n".join(self._explanations), self._secrets)

    @property
    def failed(self) -> bool:
        """Whether this is the document of a failed job, and not just any JSON of a proxy with an `error` in it."""
        if not isinstance(self.document, dict):
            return False
        state = self.document.get("state")
        if isinstance(state, dict) and "current" in state:
            return bool(state["current"] == "failed")
        known = self._enveloped or {"id", "type"} <= self.document.keys()
        return known and bool(self.document.get("error"))

    @property
    def id(self) -> str | None:
        value = self.document.get("id") if isinstance(self.document, dict) else None
        if not isinstance(value, str) or not re.fullmatch(r"[A-Za-z0-9._:-]{1,100}", value):
            return None
        return None if any(secret in value for secret in self._secrets if secret) else value

    @property
    def price_micro_usd(self) -> int | None:
        price = self.document.get("price")
        dollars = _amount(price.get("dollars"), MAX_PRICE_USD) if isinstance(price, dict) else None
        if dollars is None:
            return None
        return int(_UPWARDS.multiply(dollars, Decimal(1_000_000)).to_integral_value(ROUND_CEILING))

    @property
    def elapsed(self) -> float | None:
        metrics = self.document.get("metrics")
        seconds = _amount(metrics.get("elapsed"), 86_400) if isinstance(metrics, dict) else None
        return None if seconds is None else float(seconds)


_UPWARDS = Context(prec=28, rounding=ROUND_CEILING, traps=[])
_Part = tuple[str, str, bytes]  # name, content type, content
_QUOTED_TEXT = re.compile(r'"(?:error|detail|message)"\s*:\s*"([^"\\]*(?:\\.[^"\\]*)*)"')


def _amount(value: Any, most: int) -> Decimal | None:
    if not isinstance(value, Decimal) or not value.is_finite() or not 0 <= value <= most:
        return None
    return value


def _number(text: str) -> Decimal:
    try:
        return Decimal(text)
    except ArithmeticError:  # an exponent out of all range
        return Decimal("NaN")


def _json(raw: bytes) -> Any:
    """JSON with every number as an exact Decimal, or None."""
    try:
        return json.loads(raw, parse_float=_number, parse_int=_number, parse_constant=_number)
    except (ValueError, RecursionError):
        return None


def _texts(value: Any, depth: int = 0) -> Iterator[str]:
    """The explanations in a document, the most telling first; never its config, which quotes the caller."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list) and depth < 5:
        for item in reversed(value):
            yield from _texts(item, depth + 1)
    elif isinstance(value, dict) and depth < 5:
        for key in ("error", "history", "state", "detail", "details", "message", "msg"):
            yield from _texts(value.get(key), depth + 1)


def _parts(content_type: str, body: bytes) -> tuple[list[_Part], bool, bool]:
    """The parts of an answer, whether they are whole, and whether they came in an envelope."""
    kind, options = parse_options_header(content_type)  # type: ignore[no-untyped-call]
    if kind.startswith("multipart/"):
        return *_split(options.get("boundary", ""), body), True
    return [("output" if kind.startswith("image/") else "job", kind, body)], True, False


def _job(parts: Sequence[_Part], enveloped: bool, secrets: Sequence[str]) -> _Job | None:
    return next((_Job(data, enveloped, secrets) for name, _, data in parts if name == "job"), None)


def _split(boundary: str, body: bytes) -> tuple[list[_Part], bool]:
    """(name, content type, bytes) of each part, the last perhaps cut short; and whether the envelope was closed."""
    parts: list[tuple[str, str, list[bytes]]] = []
    try:
        with PushMultipartParser(boundary, max_segment_count=MAX_PARTS) as parser:
            for event in parser.parse(body):
                if isinstance(event, MultipartSegment):
                    parts.append((event.name or "", event.content_type or "", []))
                elif event is not None:
                    parts[-1][2].append(bytes(event))
        whole = True
    except ValueError:  # the parser's own errors are ValueErrors, and so is a boundary that cannot be encoded
        whole = False
    return [(name, kind, b"".join(chunks)) for name, kind, chunks in parts], whole


def _sniff(image: bytes) -> str | None:
    """The type a picture's first bytes show."""
    if image.startswith(b"\xff\xd8\xff"):
        return "image/jpeg"
    if image.startswith(b"\x89PNG\r\n\x1a\n"):
        return "image/png"
    if image.startswith(b"RIFF") and image[8:12] == b"WEBP":
        return "image/webp"
    return None


def _ends(image: bytes) -> bool:
    """Whether a picture's last bytes are those of a whole one."""
    if image.startswith(b"RIFF"):
        return len(image) >= 8 + int.from_bytes(image[4:8], "little")
    return image.endswith((b"\xff\xd9", b"IEND\xaeB`\x82"))
