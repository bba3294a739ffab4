"""One request as it arrived: JSON or multipart, parts in any order, with or without file names.

Called by the job endpoint, off the event loop for large bodies. A body that cannot be read is not an exception but a
request whose `unreadable` says why: it is still logged and answered like any other.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl

import orjson
from multipart import MultipartError, MultipartSegment, PushMultipartParser, parse_options_header

from .inspection import Inspection, inspect


@dataclass(frozen=True, slots=True)
class Upload:
    """One part beside `job`. Its bytes are dropped from memory when its request is done."""

    name: str
    filename: str | None
    content_type: str | None
    data: bytes
    inspection: Inspection


@dataclass(slots=True)
class JobRequest:
    """What was asked, unchecked: `document` is the parsed job, an empty mapping when it was not readable."""

    document: Mapping[str, Any]
    uploads: list[Upload]
    accept: str
    wants_price: bool
    unreadable: str | None = None
    too_large: bool = False

    @property
    def type(self) -> object:
        return self.document.get("type")

    @property
    def config(self) -> object:
        return self.document.get("config")


def read_request(headers: Mapping[str, str], query: bytes, body: bytes) -> JobRequest:
    """Parses one request; `headers` has lower-case names."""
    asked = JobRequest({}, [], headers.get("accept", ""), (b"price", b"true") in parse_qsl(query))
    content_type = headers.get("content-type", "")
    kind, options = parse_options_header(content_type)  # type: ignore[no-untyped-call]
    try:
        if kind == "application/json":
            asked.document = _job(body)
        elif kind == "multipart/form-data":
            asked.document, asked.uploads = _parts(options.get("boundary", ""), body)
        else:
            asked.unreadable = "Content-Type must be application/json or multipart/form-data"
    except MultipartError:
        asked.unreadable = "the multipart body is malformed"
    except _UnreadableError as error:
        asked.unreadable = str(error)
    return asked


class _UnreadableError(Exception):
    pass


def _job(raw: bytes) -> dict[str, Any]:
    try:
        document = orjson.loads(raw)
    except ValueError:
        raise _UnreadableError("the job is not valid JSON") from None
    if not isinstance(document, dict):
        raise _UnreadableError("the job is not a JSON object")
    return document


def _parts(boundary: str, body: bytes) -> tuple[dict[str, Any], list[Upload]]:
    jobs: list[bytes] = []
    uploads: list[Upload] = []
    segment: MultipartSegment | None = None
    chunks: list[bytes] = []
    with PushMultipartParser(boundary, max_header_size=16_384) as parser:
        for event in parser.parse(body):
            if isinstance(event, MultipartSegment):
                segment, chunks = event, []
            elif event is not None:
                chunks.append(bytes(event))
            elif segment is not None and segment.name == "job":
                jobs.append(b"".join(chunks))
            elif segment is not None:
                data = b"".join(chunks)
                uploads.append(Upload(segment.name or "", segment.filename, segment.content_type, data, inspect(data)))
    if len(jobs) != 1:
        raise _UnreadableError(f"want exactly one part named job, got {len(jobs)}")
    return _job(jobs[0]), uploads
