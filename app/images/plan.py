"""The cheap look at an upload: what it is, whether it may be sent, and what would have to be done to it first.

`inspect` is pure and runs on the event loop: it reads headers, decodes nothing, and takes less than 1 ms for 25 MB.
It raises InvalidImage for what it refuses; `Gate.prepare` carries out what it plans.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from app.domain.inputs import InputRule
from app.errors import InvalidImage
from app.images.header import MAX_PIXELS, Header, Malformed
from app.images.probe import read_header

UPLOAD_MAX_BYTES = 25_000_000
UPLOAD_MAX_PIXELS = MAX_PIXELS
SEARCHED = 1_000_000  # bytes of a JPEG's compressed data that are searched on the event loop

_REENCODING = frozenset(("orientation", "fit", "recompress"))


@dataclass(frozen=True, slots=True)
class Plan:
    """What an upload is and what will be done to it; nothing has been decoded.

    `actions`, in this order where they apply: ``metadata`` (cut), ``orientation`` (turned upright), ``fit`` (another
    size in pixels), ``recompress`` (only fewer bytes). All but the first encode the picture anew.
    """

    format: str  # png, jpeg or webp, by the first bytes, never by name or declared type
    width: int  # pixels, as stored
    height: int
    oriented: tuple[int, int]  # width and height after the EXIF orientation is applied
    actions: tuple[str, ...]
    fitted: str | None  # "1920x1440" when the size in pixels will change
    target: tuple[int, int]  # width and height that will be sent
    header: Header
    keep_metadata: bool = False

    @property
    def reencoded(self) -> bool:
        """Whether the picture must be decoded and encoded anew."""
        return not _REENCODING.isdisjoint(self.actions)


def inspect(
    data: bytes, rule: InputRule, *, fit: Literal["auto", "strict"] = "auto", keep_metadata: bool = False
) -> Plan:
    """Judge an upload by its headers.

    Args:
        data: the file; its bytes count as they would be sent, that is without metadata that will be cut.
        rule: what the job type takes.
        fit: ``auto`` plans what is needed to make the picture conform, ``strict`` refuses what would need it. Cutting
            metadata is no such change.
        keep_metadata: leave it in. It still goes when the picture is encoded anew, or when that meets the byte limit.

    Raises:
        InvalidImage: `unsupported_type` for another format, `too_large` for too many bytes or pixels, `invalid_image`
            for all else; with the ranges of the rule, and width and height where known, as extra members.
    """
    size = len(data)
    if not size:
        raise refusal("invalid_image", "The image is empty.", rule)
    if size > UPLOAD_MAX_BYTES:
        raise refusal("too_large", f"The image has more than {UPLOAD_MAX_BYTES:,} bytes.", rule)
    try:
        header = read_header(data, searched=SEARCHED)
    except Malformed as wrong:
        raise refusal(wrong.code, str(wrong), rule) from None
    if header.format not in rule.formats:
        raise refusal("unsupported_type", f"A {header.format.upper()} is not taken here.", rule)
    stored = (header.width, header.height)
    oriented = stored if header.orientation < 5 else stored[::-1]
    if header.width * header.height > UPLOAD_MAX_PIXELS:
        raise refusal("too_large", f"The image has more than {UPLOAD_MAX_PIXELS:,} pixels.", rule, oriented)
    target = _fit(oriented, rule)
    if target is None or (fit == "strict" and target != oriented):
        problem = "its ratio is too extreme to be fitted into" if target is None else "its sides must be within"
        raise refusal(
            "invalid_image",
            f"The image is {_times(oriented)} pixels; {problem} {rule.min_side} to {rule.max_side} pixels per side.",
            rule,
            oriented,
        )
    turned = header.orientation != 1
    if turned and fit == "strict":
        raise refusal("invalid_image", "The image is stored rotated (EXIF orientation).", rule, oriented)
    keep_metadata = keep_metadata and (fit == "strict" or size <= rule.max_bytes)
    sent = size if keep_metadata else header.size_without_metadata(size)
    heavy = not turned and target == oriented and sent > rule.max_bytes
    if heavy and fit == "strict":
        raise refusal("too_large", f"The image has more than {rule.max_bytes:,} bytes.", rule, oriented)
    reencoded = turned or heavy or target != oriented
    planned = {
        "metadata": bool(header.cuts) and (reencoded or not keep_metadata),
        "orientation": turned,
        "fit": target != oriented,
        "recompress": heavy,
    }
    return Plan(
        format=header.format,
        width=header.width,
        height=header.height,
        oriented=oriented,
        actions=tuple(action for action, needed in planned.items() if needed),
        fitted=_times(target) if target != oriented else None,
        target=target,
        header=header,
        keep_metadata=keep_metadata and not reencoded,
    )


def refusal(code: str, detail: str, rule: InputRule, size: tuple[int, int] | None = None) -> InvalidImage:
    """The gate's refusal, with the ranges that would have been accepted."""
    ranges = {
        "formats": list(rule.formats),
        "min_side": rule.min_side,
        "max_side": rule.max_side,
        "max_bytes": rule.max_bytes,
    }
    if size is not None:
        ranges |= {"width": size[0], "height": size[1]}
    return InvalidImage(detail, field=rule.name, code=code, **ranges)


def _fit(size: tuple[int, int], rule: InputRule) -> tuple[int, int] | None:
    """The nearest size of the same ratio whose sides are in the rule's range; None if that ratio has none."""
    short, long = min(size), max(size)
    if short < rule.min_side:
        short, long = rule.min_side, _scaled(long, rule.min_side, short)
    elif long > rule.max_side:
        short, long = _scaled(short, rule.max_side, long), rule.max_side
    if short < rule.min_side or long > rule.max_side:
        return None
    return (long, short) if size[0] >= size[1] else (short, long)


def _scaled(side: int, numerator: int, denominator: int) -> int:
    """The side times the fraction, rounded half up, in whole numbers so that it never depends on a float."""
    return (2 * side * numerator + denominator) // (2 * denominator)


def _times(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"
