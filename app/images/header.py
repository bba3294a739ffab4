"""What the format readers (`png`, `jpeg`, `webp`) tell about a file they have not decoded, and how they refuse one.

Pure: no I/O, no Pillow. `Malformed` never leaves this package: the gate turns it into the caller's `InvalidImage`,
`picture` into a plain `ValueError`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

MAX_PIXELS = 50_000_000  # of an upload; more is never decoded
MAX_PROFILE_BYTES = 1_000_000  # an ICC profile above this is no profile, and goes with the metadata

Cut = tuple[int, int, bytes]
"""From this offset, up to this one, write these bytes instead."""


class Malformed(ValueError):
    """The file breaks its format, or a bound of this package; the text is one constant public sentence."""

    code: ClassVar[str] = "invalid_image"


class UnknownFormat(Malformed):
    """The first bytes are of no format that is read here."""

    code = "unsupported_type"


class TooHeavy(Malformed):
    """No encoding that may be used brings the picture under the byte limit."""

    code = "too_large"


@dataclass(frozen=True, slots=True)
class Header:
    """A file as its headers describe it: size in pixels as stored, EXIF orientation 1 to 8, metadata to cut, in order.

    `complete` is False where a large JPEG's compressed data was not searched for what may hide in it.
    """

    format: str
    width: int
    height: int
    orientation: int
    cuts: tuple[Cut, ...]
    complete: bool = True

    def without_metadata(self, data: bytes) -> bytes:
        """The same file with the cuts applied; the compressed pixels are copied, never decoded."""
        view = memoryview(data)
        pieces: list[bytes | memoryview] = []
        position = 0
        for start, stop, instead in self.cuts:
            pieces += (view[position:start], instead)
            position = stop
        return b"".join((*pieces, view[position:]))

    def size_without_metadata(self, size: int) -> int:
        """Bytes that `without_metadata` will return for a file of `size` bytes."""
        return size - sum(stop - start - len(instead) for start, stop, instead in self.cuts)
