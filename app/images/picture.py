"""Finished pictures that come back from the upstream: are they whole, and of what type and size.

Called before a result is stored. Reads headers and ends only; a large JPEG's compressed data is not searched.
"""

from __future__ import annotations

from app.images.probe import CONTENT_TYPES, read_header


def describe(data: bytes) -> tuple[str, int, int]:
    """Content type, width and height in pixels, as stored.

    Raises:
        ValueError: not a PNG, JPEG or WebP, cut off, animated, or with bytes after its end.
    """
    header = read_header(data)
    return CONTENT_TYPES[header.format], header.width, header.height
