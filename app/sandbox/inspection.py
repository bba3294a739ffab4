"""What an uploaded picture is, read from its bytes without decoding a pixel.

Called while a request is read. Names, declared types and file extensions are ignored, as Prodia ignores them: its own
client labels every upload `image/jpeg`. Broken bytes give an unknown format or unknown sides, never an exception.
"""

import hashlib
import struct
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

Format = Literal["jpeg", "png", "webp"]
MOST_CHUNKS = 10_000
"""No picture of the allowed size has more; bytes made to have millions of empty ones would cost seconds."""


@dataclass(frozen=True, slots=True)
class Inspection:
    """Facts about one upload. `metadata` holds any of: exif, gps, xmp, icc, iptc, comment."""

    sha256: str
    size: int
    format: Format | None
    width: int | None
    height: int | None
    metadata: tuple[str, ...]


def inspect(data: bytes) -> Inspection:
    """Looks at the container of a JPEG, PNG or WebP: sides in pixels and which metadata it carries."""
    found: set[str] = set()
    sides: tuple[int, int] | None = None
    form = _sniff(data)
    try:
        match form:
            case "jpeg":
                sides = _jpeg(data, found)
            case "png":
                sides = _png(data, found)
            case "webp":
                sides = _webp(data, found)
    except (struct.error, IndexError):
        sides = None
    width, height = sides or (None, None)
    return Inspection(hashlib.sha256(data).hexdigest(), len(data), form, width, height, tuple(sorted(found)))


def _sniff(data: bytes) -> Format | None:
    if data.startswith(b"\xff\xd8\xff"):
        return "jpeg"
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    return None


def _jpeg(data: bytes, found: set[str]) -> tuple[int, int] | None:
    sides: tuple[int, int] | None = None
    for marker, payload in _jpeg_segments(data):
        if marker in range(0xC0, 0xD0) and marker not in (0xC4, 0xC8, 0xCC):
            height, width = struct.unpack_from(">HH", payload, 1)
            sides = (width, height)
        elif marker == 0xE1 and payload.startswith(b"Exif\x00"):
            _exif(payload[6:], found)
        elif marker == 0xE1:
            found.add("xmp")
        elif marker == 0xE2 and payload.startswith(b"ICC_PROFILE"):
            found.add("icc")
        elif marker == 0xED:
            found.add("iptc")
        elif marker == 0xFE:
            found.add("comment")
    return sides


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, bytes]]:
    at = 2
    for _ in range(MOST_CHUNKS):
        if at + 4 > len(data) or data[at] != 0xFF:
            return
        marker = data[at + 1]
        if marker == 0xFF:
            at += 1
        elif marker == 0x01 or marker in range(0xD0, 0xD8):
            at += 2
        elif marker in (0xD9, 0xDA):
            return
        else:
            length = struct.unpack_from(">H", data, at + 2)[0]
            yield marker, data[at + 4 : at + 2 + length]
            at += 2 + length


def _png(data: bytes, found: set[str]) -> tuple[int, int] | None:
    sides: tuple[int, int] | None = None
    at = 8
    for _ in range(MOST_CHUNKS):
        if at + 8 > len(data):
            break
        length, kind = struct.unpack_from(">I4s", data, at)
        if kind == b"IEND":
            break
        payload = data[at + 8 : at + 8 + min(length, 65_536)]
        if kind == b"IHDR":
            width, height = struct.unpack_from(">II", payload)
            sides = (width, height)
        elif kind == b"eXIf":
            _exif(payload, found)
        elif kind == b"iTXt" and payload.startswith(b"XML:com.adobe.xmp"):
            found.add("xmp")
        elif kind in (b"tEXt", b"zTXt", b"iTXt"):
            found.add("comment")
        elif kind == b"iCCP":
            found.add("icc")
        at += 12 + length
    return sides


def _webp(data: bytes, found: set[str]) -> tuple[int, int] | None:
    sides: tuple[int, int] | None = None
    at = 12
    for _ in range(MOST_CHUNKS):
        if at + 8 > len(data):
            break
        kind, length = struct.unpack_from("<4sI", data, at)
        payload = data[at + 8 : at + 8 + min(length, 65_536)]
        if kind == b"VP8X":
            sides = (1 + int.from_bytes(payload[4:7], "little"), 1 + int.from_bytes(payload[7:10], "little"))
        elif kind == b"VP8 " and sides is None:
            width, height = struct.unpack_from("<HH", payload, 6)
            sides = (width & 0x3FFF, height & 0x3FFF)
        elif kind == b"VP8L" and sides is None:
            bits = struct.unpack_from("<I", payload, 1)[0]
            sides = (1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF))
        elif kind == b"EXIF":
            _exif(payload.removeprefix(b"Exif\x00\x00"), found)
        elif kind == b"XMP ":
            found.add("xmp")
        elif kind == b"ICCP":
            found.add("icc")
        at += 8 + length + length % 2
    return sides


def _exif(tiff: bytes, found: set[str]) -> None:
    """Notes EXIF, and GPS when the first directory points to a GPS directory (tag 0x8825)."""
    found.add("exif")
    order = "<" if tiff[:2] == b"II" else ">"
    with suppress(struct.error):
        start = struct.unpack_from(f"{order}I", tiff, 4)[0]
        count = struct.unpack_from(f"{order}H", tiff, start)[0]
        for entry in range(count):
            if struct.unpack_from(f"{order}H", tiff, start + 2 + 12 * entry)[0] == 0x8825:
                found.add("gps")
