"""Makes a finished picture exactly as large as a load test wants it, and still valid.

The filler goes where each format keeps what decoders skip: comment segments, a private chunk, an unknown chunk.
"""

import struct
import zlib

from .inspection import Format

SEGMENT = 65_533
"""Most bytes that one JPEG segment can hold beside its marker and its length."""


def padded(data: bytes, form: Format, size: int) -> bytes:
    """The picture with filler up to `size` bytes (WebP: the next even number); unchanged if the filler does not fit."""
    match form:
        case "jpeg":
            return _jpeg(data, size - len(data))
        case "png":
            return _png(data, size - len(data))
        case "webp":
            return _webp(data, size)


def _jpeg(data: bytes, missing: int) -> bytes:
    filler = bytearray()
    while missing >= 4:
        payload = min(missing - 4, SEGMENT)
        if 0 < missing - 4 - payload < 4:  # the rest must be able to hold a segment of its own
            payload -= 4
        filler += struct.pack(">BBH", 0xFF, 0xFE, payload + 2) + bytes(payload)
        missing -= payload + 4
    return data[:2] + bytes(filler) + data[2:]


def _png(data: bytes, missing: int) -> bytes:
    if missing < 12:
        return data
    chunk = b"fiLl" + bytes(missing - 12)
    end = len(data) - 12
    return data[:end] + struct.pack(">I", missing - 12) + chunk + struct.pack(">I", zlib.crc32(chunk)) + data[end:]


def _webp(data: bytes, size: int) -> bytes:
    """Unknown chunks are legal only in the extended format, so a VP8X chunk without feature flags comes first."""
    extended = data[12:16] == b"VP8X"
    missing = size + size % 2 - len(data) - (0 if extended else 18)
    if missing < 8:
        return data
    header = b"" if extended else _vp8x(data)
    body = b"WEBP" + header + data[12:] + struct.pack("<4sI", b"FILL", missing - 8) + bytes(missing - 8)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def _vp8x(data: bytes) -> bytes:
    width: int
    height: int
    width, height = struct.unpack_from("<HH", data, 26)  # of a lossy frame, the only kind drawn here
    sides = ((width & 0x3FFF) - 1).to_bytes(3, "little") + ((height & 0x3FFF) - 1).to_bytes(3, "little")
    return struct.pack("<4sI", b"VP8X", 10) + bytes(4) + sides
