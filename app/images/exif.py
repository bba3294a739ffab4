"""The one EXIF tag that changes pixels: orientation. Called by the three format readers on the event loop.

Reads at most one directory of bounded length; whatever is broken means "upright", as browsers have it.
"""

from __future__ import annotations

import struct

_ORIENTATION = 0x0112
_SHORT, _LONG = 3, 4
_MAX_ENTRIES = 500  # cameras write a few dozen, in ascending order of tags, and this tag is a low one


def orientation(block: memoryview) -> int:
    """Orientation 1 to 8 from a TIFF block, with or without ``Exif\\0\\0`` before it (EXIF 2.32, 4.6.4), or 1."""
    if bytes(block[:6]) == b"Exif\0\0":
        block = block[6:]
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(bytes(block[:4]))
    if order is None:
        return 1
    try:
        (directory,) = struct.unpack_from(order + "I", block, 4)
        (entries,) = struct.unpack_from(order + "H", block, directory)
        for index in range(min(entries, _MAX_ENTRIES)):
            tag, kind, count, value = struct.unpack_from(order + "HHI4s", block, directory + 2 + 12 * index)
            if tag == _ORIENTATION and count == 1 and kind in (_SHORT, _LONG):
                (turn,) = struct.unpack_from(order + ("H" if kind == _SHORT else "I"), value)
                return int(turn) if 1 <= turn <= 8 else 1
    except struct.error:
        return 1
    return 1
