"""What an upload of a job type must be: read by the catalogue, held by the input gate. Pure, standard library only."""

from __future__ import annotations

import re
from dataclasses import dataclass

FORMATS = ("png", "jpeg", "webp")


@dataclass(frozen=True, slots=True)
class InputRule:
    """One input of a job type: formats, pixels per side, bytes. The default is FLUX.1 Kontext's. Raises ValueError."""

    name: str = "image"
    formats: tuple[str, ...] = FORMATS
    min_side: int = 256
    max_side: int = 1920
    max_bytes: int = 10_000_000

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z][a-z0-9_]{0,31}", self.name):
            raise ValueError("an input's name is lower case, up to 32 letters, digits and underscores")
        if not self.formats or set(self.formats) - set(FORMATS):
            raise ValueError("formats are png, jpeg and webp")
        if not 1 <= self.min_side <= self.max_side <= 16_384:
            raise ValueError("sides go from 1 to 16384 pixels, min_side up to max_side")
        if not 1 <= self.max_bytes <= 25_000_000:
            raise ValueError("max_bytes goes from 1 to 25000000")
