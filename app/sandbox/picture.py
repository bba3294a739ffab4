"""Draws the picture of one job: really encoded, of true size, the same bytes for the same job.

Called in a worker thread. A generated picture is a field of colours and shapes that follow from the prompt, the seed,
the type and the parameters; an edited one is the input itself, tinted and marked by the same rule. A caption says what
it is. Raises `UnusableInputError` when the input does not decode.
"""

import hashlib
import io
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import orjson
from PIL import Image, ImageDraw, ImageFont, ImageOps

from .inspection import Format
from .jobtypes import JobType
from .padding import padded

MEGAPIXEL = 1_024 * 1_024
STEP = 16
LONGEST = 16_368
"""The longest side: the largest multiple of 16 that every format can hold."""
UNSEEN = ("safety_tolerance", "images")
"""Parameters that do not change pixels."""
TINT = 0.15
BILINEAR = Image.Resampling.BILINEAR

Colour = tuple[int, int, int]


class UnusableInputError(Exception):
    """The input picture cannot be decoded."""


@dataclass(frozen=True, slots=True)
class Commission:
    """All that decides the pixels. `config` is effective: defaults filled in, seed chosen. `size` in pixels."""

    job: JobType
    config: Mapping[str, Any]
    format: Format
    size: tuple[int, int]
    source: bytes | None
    source_sha256: str | None
    small: bool
    pad_to: int | None


def size_of(config: Mapping[str, Any], source: tuple[int, int] | None) -> tuple[int, int]:
    """Width and height: as asked in pixels, else one megapixel in the asked ratio or the input's, in steps of 16."""
    if "width" in config:
        return int(config["width"]), int(config["height"])
    if "aspect_ratio" in config:
        wide, high = (int(side) for side in config["aspect_ratio"].split(":"))
    else:
        wide, high = source or (1, 1)
    ratio = wide / high
    return _side(math.sqrt(MEGAPIXEL * ratio)), _side(math.sqrt(MEGAPIXEL / ratio))


def _side(length: float) -> int:
    return min(max(round(length / STEP), 4) * STEP, LONGEST)


def draw(commission: Commission) -> bytes:
    """The encoded picture."""
    seen = {key: value for key, value in sorted(commission.config.items()) if key not in UNSEEN}
    marks = hashlib.sha512(
        orjson.dumps([commission.job.name, seen, commission.source_sha256], option=orjson.OPT_NON_STR_KEYS)
    ).digest()
    if commission.small:
        image = _field(marks, (max(commission.size[0] // 16, 1), max(commission.size[1] // 16, 1)))
    elif commission.source is None:
        image = _shapes(_field(marks, commission.size), marks)
        _caption(image, commission)
    else:
        image = _edited(commission.source, commission.size, marks)
        _caption(image, commission)
    data = _encoded(image, commission)
    return data if commission.pad_to is None else padded(data, commission.format, commission.pad_to)


def _colours(marks: bytes) -> list[Colour]:
    return [(marks[at], marks[at + 1], marks[at + 2]) for at in range(0, 36, 3)]


@lru_cache(2)
def _gradients(side: int) -> tuple[Image.Image, Image.Image, Image.Image]:
    slope, disc = (shape.resize((side, side)) for shape in (Image.linear_gradient("L"), Image.radial_gradient("L")))
    return slope, slope.transpose(Image.Transpose.ROTATE_90), disc


def _field(marks: bytes, size: tuple[int, int]) -> Image.Image:
    start, end = _colours(marks)[:2]
    turned = marks[40] % 3
    gradients = _gradients(256 if max(size) > 256 else 32)
    bands = [
        gradients[(channel + turned) % 3].point(
            [start[channel] + (end[channel] - start[channel]) * v // 255 for v in range(256)]
        )
        for channel in range(3)
    ]
    return Image.merge("RGB", bands).resize(size, BILINEAR)


def _shapes(image: Image.Image, marks: bytes) -> Image.Image:
    pen = ImageDraw.Draw(image)
    wide, high = image.size
    for place, colour in enumerate(_colours(marks)[2:10]):
        x, y = marks[41 + place] * wide // 255, marks[49 + place] * high // 255
        reach = (marks[54 + place] + 64) * min(image.size) // 1_600
        box = (x - reach, y - reach, x + reach, y + reach)
        if marks[41 + place] % 2:
            pen.ellipse(box, fill=colour)
        else:
            pen.rectangle(box, fill=colour)
    return image


def _edited(source: bytes, size: tuple[int, int], marks: bytes) -> Image.Image:
    """The input in the new size, under a veil of one colour, with a frame and a row of dots from the digest."""
    try:
        with Image.open(io.BytesIO(source), formats=("JPEG", "PNG", "WEBP")) as opened:
            opened.draft("RGB", size)
            plain = opened.convert("RGBA") if opened.mode == "P" else opened
            image = ImageOps.fit(plain.convert("RGB"), size, BILINEAR)
    except Exception:  # Pillow's decoders raise many kinds for broken bytes
        raise UnusableInputError from None
    colours = _colours(marks)
    image = Image.blend(image, Image.new("RGB", size, colours[0]), TINT)
    pen = ImageDraw.Draw(image)
    unit = max(min(size) // 64, 2)
    pen.rectangle((0, 0, size[0] - 1, size[1] - 1), outline=colours[1], width=unit // 2)
    for place, colour in enumerate(colours[2:10]):
        x, y = unit * (2 + 3 * place), unit * (2 + marks[41 + place] % 4)
        pen.ellipse((x, y, x + 2 * unit, y + 2 * unit), fill=colour)
    return image


def _caption(image: Image.Image, commission: Commission) -> None:
    prompt = "".join(letter if letter.isprintable() else " " for letter in commission.config["prompt"][:64])
    text = f"sandbox: {commission.job.title}, seed {commission.config['seed']}\n{prompt}"
    pen = ImageDraw.Draw(image)
    top = image.size[1] - 84
    pen.rectangle(
        (12, top, 700, top + 72), fill="black"
    )  # of one size, so that it covers the caption of an edit's input
    pen.multiline_text((24, top + 8), text, fill="white", font=_font())


@lru_cache(1)
def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(20)


def _encoded(image: Image.Image, commission: Commission) -> bytes:
    out = io.BytesIO()
    match commission.format:
        case "jpeg":
            image.save(out, "JPEG", quality=85, progressive=bool(commission.config.get("progressive", False)))
        case "png":
            image.save(out, "PNG", compress_level=1)
        case "webp":
            image.save(out, "WEBP", quality=80, method=0)
    return out.getvalue()
