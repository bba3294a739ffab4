"""Finished pictures that come back from the upstream: are they whole, and of what type and size.

Called before a result is stored. Reads headers and ends; a large JPEG's compressed data is not searched whole.
"""

from __future__ import annotations

from app.images.probe import CONTENT_TYPES, read_header

SEARCHED = 500_000  # bytes of a JPEG's compressed data; about 0.4 ms for a million


def describe(data: bytes) -> tuple[str, int, int]:
    """Content type, width and height in pixels, as stored.

    Raises:
        ValueError: not a PNG, JPEG or WebP, cut off, animated, or with bytes after its end.
    """
    header = read_header(data, searched=SEARCHED)
    return CONTENT_TYPES[header.format], header.width, header.height
