"""Which format is it, by its first bytes alone, and what do its headers say. Called by all who read a file here.

Never looks at a file name or a declared type. Raises Malformed, and UnknownFormat for everything but the three.
"""

from __future__ import annotations

from app.images import jpeg, png, webp
from app.images.header import Header, UnknownFormat

CONTENT_TYPES = {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp"}


def read_header(data: bytes, *, searched: int | None = None) -> Header:
    """The header of a PNG, JPEG or WebP. Of a JPEG's compressed data, `searched` bytes are searched for what may hide
    there; None for all, which for a large one is done off the event loop."""
    if data.startswith(png.SIGNATURE):
        return png.read(data)
    if data.startswith(jpeg.SIGNATURE):
        return jpeg.read(data, searched=searched)
    if webp.matches(data):
        return webp.read(data)
    raise UnknownFormat("The file is not a PNG, JPEG or WebP picture.")
