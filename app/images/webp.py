"""WebP from its RIFF chunks (RFC 9649). Called by `probe`; raises Malformed, decodes nothing.

The size is read from the bitstream itself, and a canvas that says otherwise is refused.
"""

from __future__ import annotations

import struct

from app.images import exif
from app.images.header import MAX_PROFILE_BYTES, Cut, Header, Malformed

_MAX_CHUNKS = 1_000  # encoders write five at most
_BITSTREAMS = (b"VP8 ", b"VP8L")
_PROFILE, _METADATA, _ANIMATION = 0x20, 0x0C, 0x02  # flags of VP8X; metadata is EXIF and XMP
_CHUNK = struct.Struct("<4sI")


def matches(data: bytes) -> bool:
    """Whether the first bytes are those of a WebP."""
    return data[:4] == b"RIFF" and data[8:12] == b"WEBP"


def read(data: bytes) -> Header:
    """Header of a file that `matches`."""
    size = len(data)
    if int.from_bytes(data[4:8], "little") + 8 != size:
        raise Malformed("The WebP is not as long as it says: it is cut off, or has bytes after its end.")
    view = memoryview(data)
    position, parts, orientation, cleared = 12, 0, 1, _METADATA
    cuts: list[Cut] = []
    seen: dict[bytes, memoryview] = {}
    flags_at = 0
    while position < size:
        if position + 8 > size:
            raise Malformed("The WebP is cut off.")
        kind, length = _CHUNK.unpack_from(data, position)
        end = position + 8 + length + (length & 1)
        parts += 1
        if end > size:
            raise Malformed("The WebP is cut off.")
        if parts > _MAX_CHUNKS:
            raise Malformed("The WebP is made of too many chunks.")
        payload = view[position + 8 : position + 8 + length]
        if kind in (b"ANIM", b"ANMF"):
            raise Malformed("The WebP is animated; one still picture is needed.")
        if kind in (b"VP8X", b"ALPH", *_BITSTREAMS) or (kind == b"ICCP" and length <= MAX_PROFILE_BYTES):
            if kind in seen:
                raise Malformed("The WebP has a chunk twice.")
            seen[kind] = payload
            if kind == b"VP8X":
                flags_at = position + 8
        else:
            if kind == b"EXIF":
                orientation = exif.orientation(payload)
            if kind == b"ICCP":
                cleared |= _PROFILE
            cuts.append((position, end, b""))
        position = end
    width, height = _size(seen)
    if cuts:
        cuts = _with_headers(data, cuts, flags_at, cleared)
    return Header("webp", width, height, orientation, tuple(cuts))


def _size(seen: dict[bytes, memoryview]) -> tuple[int, int]:
    """Width and height from the one bitstream, checked against the canvas of the extended format."""
    streams = [kind for kind in _BITSTREAMS if kind in seen]
    if len(streams) != 1:
        raise Malformed("The WebP must hold exactly one picture.")
    kind = streams[0]
    if next(iter(seen)) not in (b"VP8X", kind):
        raise Malformed("The WebP's chunks are out of order.")
    size = _lossy_size(seen[kind]) if kind == b"VP8 " else _lossless_size(seen[kind])
    canvas = seen.get(b"VP8X")
    if canvas is not None:
        if len(canvas) != 10:
            raise Malformed("The WebP's header is damaged.")
        if canvas[0] & _ANIMATION:
            raise Malformed("The WebP is animated; one still picture is needed.")
        if size != (1 + int.from_bytes(canvas[4:7], "little"), 1 + int.from_bytes(canvas[7:10], "little")):
            raise Malformed("The WebP's picture has another size than its canvas.")
    return size


def _lossy_size(stream: memoryview) -> tuple[int, int]:
    if len(stream) < 10 or stream[0] & 1 or bytes(stream[3:6]) != b"\x9d\x01\x2a":
        raise Malformed("The WebP's picture is damaged.")
    width, height = (side & 0x3FFF for side in struct.unpack_from("<HH", stream, 6))
    if not width or not height:
        raise Malformed("The WebP has no size.")
    return width, height


def _lossless_size(stream: memoryview) -> tuple[int, int]:
    if len(stream) < 5 or stream[0] != 0x2F:
        raise Malformed("The WebP's picture is damaged.")
    bits = int.from_bytes(stream[1:5], "little")
    if bits >> 29:
        raise Malformed("The WebP is of a version that does not exist.")
    return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1


def _with_headers(data: bytes, cuts: list[Cut], flags_at: int, cleared: int) -> list[Cut]:
    """The cuts, with the file's length and the flags that announced what is cut put right."""
    length = len(data) - 8 - sum(stop - start for start, stop, _ in cuts)
    headers: list[Cut] = [(4, 8, length.to_bytes(4, "little"))]
    if flags_at:
        headers.append((flags_at, flags_at + 1, bytes((data[flags_at] & ~cleared,))))
    return sorted(headers + cuts)
