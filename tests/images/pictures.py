"""Pictures for the tests: made by Pillow, then bent by hand where no encoder would write such a file."""

from __future__ import annotations

import random
import struct
import zlib
from io import BytesIO
from typing import Any

from PIL import Image, ImageCms

FORMATS = ("png", "jpeg", "webp")
SECRET = b"52 31 12.0 N 13 24 17.9 E"
PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
PNG_END = struct.pack(">I4sI", 0, b"IEND", zlib.crc32(b"IEND"))


def drawn(width: int, height: int, mode: str = "RGB") -> Image.Image:
    """Four flat quarters: red, green, blue, white, from the upper left, clockwise: which way is up can be told."""
    image = Image.new("RGB", (width, height), (255, 255, 255))
    half = (width // 2, height // 2)
    image.paste((255, 0, 0), (0, 0, *half))
    image.paste((0, 255, 0), (half[0], 0, width, half[1]))
    image.paste((0, 0, 255), (half[0], half[1], width, height))
    return image.convert(mode)


def noise(width: int, height: int, mode: str = "RGB") -> Image.Image:
    """Noise, the same every time, which no encoder can make small."""
    size = width * height * len(mode)
    return Image.frombytes(mode, (width, height), random.Random(7).randbytes(size))


def encoded(image: Image.Image, format: str, **options: Any) -> bytes:
    written = BytesIO()
    if format == "webp":
        options = {"method": 0, **options}
    image.save(written, format.upper(), **options)
    return written.getvalue()


def picture(format: str, width: int = 400, height: int = 300, **options: Any) -> bytes:
    return encoded(drawn(width, height), format, **options)


def decoded(data: bytes) -> Image.Image:
    image = Image.open(BytesIO(data))
    image.load()
    return image


def exif(orientation: int = 1) -> bytes:
    """EXIF with the orientation, a place, and enough else to look like a camera's."""
    tags = Image.Exif()
    tags[0x0112] = orientation
    tags[0x010F] = "Camera"
    tags[0x9286] = SECRET.decode()
    tags.get_ifd(0x8825)[1] = "N"
    tags.get_ifd(0x8825)[2] = (52.0, 31.0, 12.0)
    return tags.tobytes()


def chunk(kind: bytes, payload: bytes = b"") -> bytes:
    """One PNG chunk."""
    return struct.pack(">I", len(payload)) + kind + payload + struct.pack(">I", zlib.crc32(kind + payload))


def png(width: int, height: int, *extra: bytes, depth: int = 8, colour: int = 0, pixels: bytes = b"") -> bytes:
    """A PNG of chunks, whatever they are."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return PNG_SIGNATURE + header + b"".join(extra) + chunk(b"IDAT", pixels or zlib.compress(b"\0" * 64)) + PNG_END


def after_header(data: bytes, *chunks: bytes) -> bytes:
    """The PNG with chunks put in before its pixels."""
    return data[:33] + b"".join(chunks) + data[33:]


def segment(marker: int, payload: bytes = b"") -> bytes:
    """One JPEG segment."""
    return bytes((0xFF, marker)) + struct.pack(">H", len(payload) + 2) + payload


def after_start(data: bytes, *segments: bytes) -> bytes:
    """The JPEG with segments put in where cameras put them: after the start, or the JFIF header."""
    at = 20 if data[2:4] == b"\xff\xe0" else 2
    return data[:at] + b"".join(segments) + data[at:]


def riff(*chunks: tuple[bytes, bytes]) -> bytes:
    """A WebP of chunks."""
    body = b"WEBP" + b"".join(
        kind + struct.pack("<I", len(payload)) + payload + b"\0" * (len(payload) & 1) for kind, payload in chunks
    )
    return b"RIFF" + struct.pack("<I", len(body)) + body


def canvas(width: int, height: int, flags: int = 0) -> tuple[bytes, bytes]:
    """The extended WebP header."""
    return b"VP8X", bytes((flags, 0, 0, 0)) + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")


def stream(width: int, height: int) -> tuple[bytes, bytes]:
    """A lossy WebP bitstream that says it has this size."""
    data = bytearray(picture("webp")[20:])
    data[6:10] = struct.pack("<HH", width, height)
    return b"VP8 ", bytes(data)


def sized_jpeg(width: int, height: int) -> bytes:
    """A small JPEG whose frame header says another size."""
    data = bytearray(picture("jpeg"))
    at = data.index(b"\xff\xc0") + 5
    data[at : at + 4] = struct.pack(">HH", height, width)
    return bytes(data)
