"""JPEG from its segments (ITU-T T.81; JFIF 1.02). Called by `probe`; raises Malformed, decodes nothing.

Segments are walked by their lengths. Compressed data has none: it is searched for the next marker, as far as the caller
asks for (about 0.4 ms per MB), and the file's last bytes are looked at in any case.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator

from app.images import exif
from app.images.header import MAX_PROFILE_BYTES, Cut, Header, Malformed

SIGNATURE = b"\xff\xd8\xff"
_SOI, _EOI, _SOS, _FILL = 0xD8, 0xD9, 0xDA, 0xFF
_APP0, _APP1, _APP2, _APP14, _COM = 0xE0, 0xE1, 0xE2, 0xEE, 0xFE
_APPLICATION = range(0xE0, 0xF0)
_FRAMES = frozenset((0xC0, 0xC1, 0xC2))  # baseline, extended and progressive, Huffman coded: what everyone decodes
_TABLES = frozenset((0xC4, 0xDB, 0xDD))  # DHT, DQT, DRI
_MAX_SCANS = 64  # encoders write about ten; each one costs a decoder a pass over all pixels
_MAX_SEGMENTS = 2_000  # 25 MB of full ones are 400
_MAX_FILL = 64  # bytes of FF that may stand before markers
_WINDOW = 1 << 20  # one search holds the interpreter's lock, so a long one is done in steps of this many bytes
_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")  # inside a scan FF is followed by 00 or a restart marker
_LENGTH = struct.Struct(">H")


def read(data: bytes, *, searched: int | None) -> Header:
    """Header of a file that begins with `SIGNATURE`; so many bytes of compressed data are searched, None for all."""
    if not data.endswith(b"\xff\xd9"):
        raise Malformed("The JPEG does not end with its end marker: it is cut off, or has bytes after its end.")
    frame: tuple[int, int] | None = None
    orientation, scans, marker = 1, 0, _SOI
    cuts: list[Cut] = []
    profile: list[Cut] = []
    for marker, start, end in _segments(data, searched):
        payload = memoryview(data)[start + 4 : end]
        if marker in _FRAMES:
            if frame is not None:
                raise Malformed("The JPEG has more than one frame.")
            frame = _size(payload)
        elif marker == _SOS:
            scans += 1
            if frame is None or scans > _MAX_SCANS:
                raise Malformed("The JPEG has a scan without a frame, or too many scans.")
        elif marker in _APPLICATION or marker == _COM:
            if marker == _APP1 and not scans and orientation == 1 and bytes(payload[:6]) == b"Exif\0\0":
                orientation = exif.orientation(payload)
            if marker == _APP2 and bytes(payload[:12]) == b"ICC_PROFILE\0":
                profile.append((start, end, b""))
            elif (kept := _kept(marker, payload)) != data[start:end]:
                cuts.append((start, end, kept))
        elif marker not in _TABLES and marker != _EOI:
            raise Malformed("The JPEG has more than one picture in it, or a coding that few decoders know.")
    if frame is None or not scans:
        raise Malformed("The JPEG has no pixels.")
    if sum(end - start for start, end, _ in profile) > MAX_PROFILE_BYTES:
        cuts = sorted(cuts + profile)
    return Header("jpeg", *frame, orientation, tuple(cuts), complete=marker == _EOI)


def _segments(data: bytes, searched: int | None) -> Iterator[tuple[int, int, int]]:
    """Marker, start and end of every segment; the last is the end marker, unless the search stopped before it."""
    size = limit = len(data)
    position, parts, fill = 2, 0, 0
    while True:
        if position + 2 > size or data[position] != 0xFF:
            raise Malformed("The JPEG is damaged between its segments.")
        marker = data[position + 1]
        if marker == _FILL and fill < _MAX_FILL:
            position, fill = position + 1, fill + 1
            continue
        if marker == _EOI:
            break
        if position + 4 > size:
            raise Malformed("The JPEG is cut off.")
        end = position + 2 + _LENGTH.unpack_from(data, position + 2)[0]
        parts += 1
        if end < position + 4 or end > size:
            raise Malformed("The JPEG is cut off, or has a segment of impossible length.")
        if parts > _MAX_SEGMENTS:
            raise Malformed("The JPEG is made of too many segments.")
        yield marker, position, end
        position = end
        if marker == _SOS:
            if searched is not None:
                limit, searched = min(size, end + searched), None
            found = _next_marker(data, end, limit)
            if found is None and limit < size:
                return
            if found is None:
                raise Malformed("The JPEG is cut off.")
            position = found
    if position + 2 != size:
        raise Malformed("The JPEG has bytes after its end, such as a second picture.")
    yield _EOI, position, size


def _next_marker(data: bytes, position: int, limit: int) -> int | None:
    """Offset of the first marker in compressed data from `position`, or None if there is none before `limit`."""
    while position < limit:
        if found := _MARKER.search(data, position, min(position + _WINDOW + 1, limit)):
            return found.start()
        position += _WINDOW
    return None


def _size(payload: memoryview) -> tuple[int, int]:
    """Width and height from a frame header with 8 bits per sample and 1, 3 or 4 components."""
    if len(payload) < 6:
        raise Malformed("The JPEG's frame header is cut off.")
    precision, height, width, components = struct.unpack_from(">BHHB", payload)
    if precision != 8 or components not in (1, 3, 4) or len(payload) != 6 + 3 * components:
        raise Malformed("The JPEG's frame header has values that few decoders know.")
    if not width or not height:
        raise Malformed("The JPEG has no size.")
    return width, height


def _kept(marker: int, payload: memoryview) -> bytes:
    """What stays of an application segment: the JFIF header without its thumbnail, and Adobe's colour transform."""
    head = bytes(payload[:12])
    if marker == _APP0 and head.startswith(b"JFIF\0") and len(head) == 12:
        return b"\xff\xe0\x00\x10" + head + b"\0\0"
    if marker == _APP14 and head.startswith(b"Adobe") and len(head) == 12:
        return b"\xff\xee\x00\x0e" + head
    return b""
