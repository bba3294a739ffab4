"""Prodia's own dialect of Accept, which is not that of RFC 9110: `multipart/form-data; image/png` means a multipart
envelope whose output is encoded as PNG. Pure; read once per request."""

from dataclasses import dataclass
from typing import Literal

from .inspection import Format

IMAGE_TYPES: dict[str, Format] = {"image/jpeg": "jpeg", "image/png": "png", "image/webp": "webp"}
ANY_IMAGE = ("image/*", "*/*", "")


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the caller will take: the container, and the picture's format.

    `format` is None for a job document without pixels. `refused` is an output type that no Kontext job can give.
    """

    container: Literal["multipart", "image", "json"]
    format: Format | None = "jpeg"
    refused: str | None = None


def parse_accept(header: str) -> Wanted:
    """The first entry of the list that can be met; without any, the first entry is what is refused."""
    choices = [_entry(entry) for entry in header.split(",")]
    return next((choice for choice in choices if choice.refused is None), choices[0])


def _entry(entry: str) -> Wanted:
    kind, *rest = (token.strip().lower() for token in entry.split(";"))
    output = next((token for token in rest if "/" in token), None)
    if kind == "multipart/form-data":
        if output is None:
            return Wanted("multipart")
        if output == "application/json":
            return Wanted("multipart", None)
        return Wanted("multipart", IMAGE_TYPES.get(output), None if output in IMAGE_TYPES else output[:100])
    if kind == "application/json":
        return Wanted("json", None)
    if kind in ANY_IMAGE:
        return Wanted("image")
    return Wanted("image", IMAGE_TYPES.get(kind), None if kind in IMAGE_TYPES else kind[:100])
