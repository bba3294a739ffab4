"""Reads request bodies off the ASGI stream: bounded before buffering, strict, and off the event loop where they are
large.

Used by every surface. What cannot be read is an `InvalidRequest` with 400, 408, 411, 413 or 415, and where `intake` has
no room for it, 503 before it is read; nothing has been spent by then.
"""

from __future__ import annotations

import asyncio
import binascii
import json
import re
from collections.abc import AsyncIterator, Collection, Iterable
from dataclasses import dataclass, field
from typing import Any

import pybase64
from multipart import (
    MultipartError,
    ParserLimitReached,
    PushMultipartParser,
    parse_content_disposition,
    parse_options_header,
)
from starlette.requests import ClientDisconnect, Request

from app.domain.upload import Upload
from app.errors import InvalidRequest
from app.surfaces.intake import Charge

KB = 1024
JSON_SLACK = 64 * KB
IMAGE_BYTES = 25_000_000
FORM_BYTES = IMAGE_BYTES + 256 * KB
EDIT_JSON_BYTES = IMAGE_BYTES * 4 // 3 + JSON_SLACK
MAX_PARTS = 64
FIELD_BYTES = 64 * KB
OFF_LOOP = 256 * KB
JSON_COPIES = 3  # while a large JSON body is read, its bytes, its text and its values are in memory at the same time


@dataclass(frozen=True, slots=True)
class Part:
    """One part of a multipart body; a file has a filename or an image content type."""

    name: str
    filename: str | None
    is_file: bool
    data: bytes


@dataclass(slots=True)
class Form:
    """A multipart form: text fields (a repeated one keeps every value) and files by part name."""

    fields: dict[str, list[str]] = field(default_factory=dict)
    files: dict[str, Upload] = field(default_factory=dict)


def media_type(request: Request) -> tuple[str, dict[str, str]]:
    """Content type and its parameters; ("", {}) when absent."""
    header = request.headers.get("content-type", "")
    return parse_options_header(header) if header else ("", {})  # type: ignore[no-untyped-call]


async def read_json(request: Request, limit: int) -> dict[str, Any]:
    """The JSON object in the body.

    Raises:
        InvalidRequest: too large, not JSON, a repeated key, NaN or Infinity, not an object.
    """
    data = b"".join([chunk async for chunk in _stream(request, limit, JSON_COPIES)])
    return await asyncio.to_thread(parse_json, data) if len(data) > OFF_LOOP else parse_json(data)


def parse_json(data: bytes) -> dict[str, Any]:
    """A JSON object, strictly: UTF-8, no repeated keys, no constants that are not JSON. Raises InvalidRequest."""
    try:
        found = _STRICT.decode(data.decode("utf-8"))
    except InvalidRequest:
        raise
    except (ValueError, RecursionError):
        raise _unreadable("The body is not JSON.") from None
    if not isinstance(found, dict):
        raise InvalidRequest("The body must be a JSON object.")
    return found


async def read_form(request: Request, options: dict[str, str]) -> Form:
    """A multipart form with every part in memory; a file is a part with a filename or an image content type.

    Raises:
        InvalidRequest: too large, truncated, too many parts, a repeated file, a text field that is not UTF-8.
    """
    form = Form()
    async for part in read_parts(request, options, FORM_BYTES):
        _keep(form, part)
    return form


async def read_parts(
    request: Request, options: dict[str, str], limit: int, *, texts: Collection[str] = ()
) -> AsyncIterator[Part]:
    """The parts of a multipart body in their order, each whole.

    Args:
        limit: bytes of the body.
        texts: names of parts that are text and as short as one, whatever their headers say.

    Raises:
        InvalidRequest: too large, truncated, malformed, too many parts.
    """
    boundary = options.get("boundary", "")
    if not re.fullmatch(r"[0-9A-Za-z'()+_,./:=? -]{1,70}", boundary, re.ASCII):
        raise _unreadable("The multipart body has no usable boundary.")
    name, filename, is_file = "", None, False
    chunks: list[bytes] = []
    size = 0
    try:
        with PushMultipartParser(boundary, max_segment_count=MAX_PARTS, max_header_size=2048, strict=True) as parser:
            async for chunk in _stream(request, limit):
                for event in parser.parse(chunk):
                    if event is None:
                        yield Part(name, filename, is_file, b"".join(chunks))
                        chunks.clear()
                    elif isinstance(event, bytes | bytearray):
                        size += len(event)
                        if size > (IMAGE_BYTES if is_file else FIELD_BYTES):
                            raise _too_large("image" if is_file else "field", IMAGE_BYTES if is_file else FIELD_BYTES)
                        chunks.append(bytes(event))
                    else:
                        name, filename, is_file = _part(event.headerlist)
                        is_file = is_file and name not in texts
                        chunks, size = [], 0
    except ParserLimitReached:
        raise _too_large("form", MAX_PARTS, unit="parts") from None
    except (MultipartError, UnicodeError):
        raise _unreadable("The multipart body is malformed or truncated.") from None


def hold_only(request: Request, uploads: Iterable[Upload]) -> None:
    """From here on a request takes the room of its uploads alone, each until it is released."""
    charge: Charge | None = request.scope["state"].get("charge")
    if charge is not None:
        uploads = tuple(uploads)
        charge.shrink(sum(upload.size for upload in uploads))
        for upload in uploads:
            upload.released = charge.give


async def decode_base64(text: str, field: str) -> bytes:
    """The bytes of a base64 text. Raises InvalidRequest: not base64, or too large."""
    if len(text) > IMAGE_BYTES * 4 // 3 + 4:
        raise _too_large("image", IMAGE_BYTES)
    try:
        if len(text) > OFF_LOOP:
            return await asyncio.to_thread(pybase64.b64decode, text, validate=True)
        return pybase64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise InvalidRequest(f"`{field}` is not valid base64.", field=field) from None


async def _stream(request: Request, limit: int, copies: int = 1) -> AsyncIterator[bytes]:
    """Body chunks; refuses by the declared length before reading, and by the count while reading."""
    declared = request.headers.get("content-length")
    if declared is not None and (not declared.isdecimal() or len(declared) > 15 or int(declared) > limit):
        raise _too_large("body", limit)
    charge = request.scope["state"]["charge"] = request.app.state.intake.charge()
    size = int(declared or 0)
    charge.grow(size * copies)
    size = 0
    try:
        async for chunk in request.stream():
            size += len(chunk)
            if size > limit:
                raise _too_large("body", limit)
            charge.grow(size * copies)
            if chunk:
                yield chunk
    except ClientDisconnect:
        if "late" in request.scope["state"]:
            raise InvalidRequest("The body did not arrive in time.", code="request_timeout", retry_after=1) from None
        raise _unreadable("The body ended early.") from None


def _part(headers: list[tuple[str, str]]) -> tuple[str, str | None, bool]:
    """Name and filename of a part, and whether it is a file."""
    lower = [(name.lower(), value) for name, value in headers]
    dispositions = [value for name, value in lower if name == "content-disposition"]
    if len(dispositions) != 1 or any(name == "content-transfer-encoding" for name, _ in lower):
        raise _unreadable("A multipart part has no single Content-Disposition, or is encoded.")
    kind, name, filename = parse_content_disposition(dispositions[0])
    if kind != "form-data" or not name:
        raise _unreadable("A multipart part has no name.")
    content_type = next((value for header, value in lower if header == "content-type"), "")
    is_file = filename is not None or content_type.lower().startswith(("image/", "application/octet-stream"))
    return name, filename, is_file


def _keep(form: Form, part: Part) -> None:
    name, shown = part.name, part.name[:64]
    if part.is_file:
        if name in form.files or name in form.fields:
            raise InvalidRequest(f"`{shown}` is given more than once.", field=shown, status=400)
        form.files[name] = Upload(part.data)
        return
    try:
        text = part.data.decode("utf-8")
    except UnicodeDecodeError:
        raise InvalidRequest(f"`{shown}` is not UTF-8 text.", field=shown, status=400) from None
    if name in form.files or (name in form.fields and name != "tags"):
        raise InvalidRequest(f"`{shown}` is given more than once.", field=shown, status=400)
    form.fields.setdefault(name, []).append(text)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if not all(name.isascii() or name.isprintable() for name in found):
        raise _unreadable("A field name has characters that cannot be printed.")
    if len(found) != len(pairs):
        repeated = _first_repeated(name for name, _ in pairs)[:64]
        raise InvalidRequest(
            f"`{_printable(repeated)}` is given more than once.", field=_printable(repeated), status=400
        )
    return found


def _first_repeated(names: Iterable[str]) -> str:
    """In one pass: an object can have tens of thousands of names."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return ""


def _constant(name: str) -> None:
    raise _unreadable(f"{name} is not JSON.")


_STRICT = json.JSONDecoder(object_pairs_hook=_once, parse_constant=_constant)


def _printable(text: str) -> str:
    return text.encode("ascii", "backslashreplace").decode()


def _unreadable(detail: str) -> InvalidRequest:
    return InvalidRequest(detail, status=400)


def _too_large(what: str, limit: int, unit: str = "bytes") -> InvalidRequest:
    return InvalidRequest(f"The {what} may have at most {limit} {unit}.", code="too_large", limit=limit, unit=unit)
