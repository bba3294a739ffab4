"""The pictures that travel: real JPEGs of a wanted size. Used by the canned upstream and by the load."""

from __future__ import annotations

import io
import random

from PIL import Image


def noise(side: int, quality: int) -> bytes:
    """A JPEG of coloured noise, `side` pixels wide and high."""
    small = Image.frombytes("RGB", (256, 256), random.Random(1).randbytes(256 * 256 * 3))
    raw = io.BytesIO()
    small.resize((side, side)).save(raw, "JPEG", quality=quality)
    return raw.getvalue()


def reply(size: int = 200_000) -> tuple[bytes, bytes]:
    """What stands before and after 8 bytes that can be filled in at will, in a JPEG of `size` bytes: padding in its
    comments."""
    data = noise(1024, 30)
    start, rest, comments = data[:2], data[2:], b""
    while (missing := size - len(data) - len(comments)) > 4:
        length = min(65_533, missing - 4)
        comments += b"\xff\xfe" + (length + 2).to_bytes(2, "big") + bytes(length)
    if len(comments) < 12:
        raise ValueError(f"a picture of {size} bytes has no room for a number")
    return start + comments[:4], comments[12:] + rest


def upload(limit: int = 1_000_000) -> bytes:
    """The largest JPEG of plain noise, without metadata, that does not exceed `limit` bytes."""
    made = (noise(1536, quality) for quality in range(97, 30, -1))
    return next(data for data in made if len(data) <= limit)
