"""PNG from its chunk headers (W3C PNG, third edition). Called by `probe`; raises Malformed, inflates nothing.

Walks chunk by chunk, so the cost is that of the number of chunks, which is bounded, and not of the bytes.
"""

from __future__ import annotations

import struct
import zlib

from app.images import exif
from app.images.header import MAX_PROFILE_BYTES, Cut, Header, Malformed

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_END = b"\0\0\0\0IEND\xaeB`\x82"
_DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
_PALETTE = 3
_MAX_CHUNKS = 10_000  # 25 MB in the smallest blocks that encoders write are about 6,000
_ANIMATION = frozenset((b"acTL", b"fcTL", b"fdAT"))
# What decides how pixels look, once each, with the largest size it can have. Every other ancillary chunk is metadata.
_KEPT = {
    b"PLTE": 768, b"tRNS": 256, b"bKGD": 6, b"hIST": 512, b"sBIT": 4, b"pHYs": 9,
    b"gAMA": 4, b"cHRM": 32, b"sRGB": 1, b"cICP": 4, b"mDCV": 24, b"cLLI": 8, b"iCCP": MAX_PROFILE_BYTES,
}  # fmt: skip
_CHUNK = struct.Struct(">I4s")


def read(data: bytes) -> Header:
    """Header of a file that begins with `SIGNATURE`."""
    width, height, palette = _size(data)
    if not data.endswith(_END):
        raise Malformed("The PNG does not end with its end marker: it is cut off, or has bytes after its end.")
    position, parts, pixels, orientation, previous = 33, 0, 0, 1, b"IHDR"
    cuts: list[Cut] = []
    seen: set[bytes] = set()
    size, chunk = len(data), _CHUNK.unpack_from
    while True:
        if position + 12 > size:
            raise Malformed("The PNG is cut off.")
        length, kind = chunk(data, position)
        end = position + 12 + length
        parts += 1
        if end > size:
            raise Malformed("The PNG is cut off.")
        if parts > _MAX_CHUNKS:
            raise Malformed("The PNG is made of too many chunks.")
        if kind == b"IDAT":
            if previous != kind and kind in seen:
                raise Malformed("The PNG's pixels are not in one run.")
            if palette and b"PLTE" not in seen:
                raise Malformed("The PNG has no palette.")
            seen.add(kind)
            pixels += length
        elif kind == b"IEND":
            if end != size:
                raise Malformed("The PNG has bytes after its end.")
            break
        elif kind in _ANIMATION:
            raise Malformed("The PNG is animated; one still picture is needed.")
        elif kind in _KEPT and (length <= _KEPT[kind] or kind != b"iCCP"):
            if kind in seen or length > _KEPT[kind]:
                raise Malformed("The PNG has a repeated or overlong chunk.")
            seen.add(kind)
        elif not kind.isalpha() or kind[:1].isupper():
            raise Malformed("The PNG has a chunk that does not belong there.")
        else:
            if kind == b"eXIf":
                orientation = exif.orientation(memoryview(data)[position + 8 : end - 4])
            cuts.append((position, end, b""))
        previous, position = kind, end
    if not pixels:
        raise Malformed("The PNG has no pixels.")
    return Header("png", width, height, orientation, tuple(cuts))


def _size(data: bytes) -> tuple[int, int, bool]:
    """Width, height and whether a palette is needed, from a checked IHDR."""
    if len(data) < 33:
        raise Malformed("The PNG is cut off.")
    if data[8:16] != b"\0\0\0\rIHDR" or zlib.crc32(data[12:29]) != int.from_bytes(data[29:33], "big"):
        raise Malformed("The PNG's header is damaged.")
    width, height, depth, colour, compression, filtering, interlace = struct.unpack_from(">IIBBBBB", data, 16)
    if depth not in _DEPTHS.get(colour, ()) or compression or filtering or interlace > 1:
        raise Malformed("The PNG's header has values that the format does not allow.")
    if not (0 < width < 2**31 and 0 < height < 2**31):
        raise Malformed("The PNG has no size.")
    return width, height, colour == _PALETTE
