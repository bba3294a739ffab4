"""Pictures that do not conform come out upright, of the planned size, within the byte limit and without metadata."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from io import BytesIO

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from app.errors import InvalidImage
from app.images import worker
from app.images.gate import Gate, InputRule, Prepared, inspect
from app.images.header import Malformed
from app.images.probe import read_header
from tests.images.pictures import (
    FORMATS,
    PROFILE,
    SECRET,
    after_header,
    chunk,
    decoded,
    drawn,
    encoded,
    exif,
    noise,
    picture,
    png,
    sized_jpeg,
)

RULE = InputRule()
RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


async def prepared(gate: Gate, data: bytes, rule: InputRule = RULE) -> Prepared:
    plan = inspect(data, rule)
    result = await gate.prepare(data, plan, rule)
    header = read_header(result.data)
    assert (header.format, header.width, header.height) == (result.format, *plan.target)
    assert (result.width, result.height) == plan.target
    assert (header.orientation, header.cuts) == (1, ())
    assert len(result.data) <= rule.max_bytes
    assert inspect(result.data, rule, fit="strict").actions == ()
    assert decoded(result.data).size == plan.target
    return result


def quarters(image: Image.Image) -> list[tuple[int, ...]]:
    """The nearest plain colour in the middle of each quarter, from the upper left, clockwise."""
    width, height = image.size
    places = [(width // 4, height // 4), (3 * width // 4, height // 4)]
    places += [(3 * width // 4, 3 * height // 4), (width // 4, 3 * height // 4)]
    seen = image.convert("RGB")
    return [tuple(255 * (value > 127) for value in seen.getpixel(place)) for place in places]  # type: ignore[union-attr]


STORED = {  # how a camera held that way stores the picture: the inverse of what makes it upright
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


@pytest.mark.parametrize("orientation", range(2, 9))
@pytest.mark.parametrize(("format", "size"), [*((name, (400, 300)) for name in FORMATS), ("jpeg", (2400, 1800))])
async def test_every_orientation_comes_out_upright(
    gate: Gate, format: str, orientation: int, size: tuple[int, int]
) -> None:
    turn = STORED[orientation]
    assert turn is not None
    data = encoded(drawn(*size).transpose(turn), format, exif=exif(orientation))
    result = await prepared(gate, data)
    assert (result.width, result.height) == ((400, 300) if size == (400, 300) else (1920, 1440))
    assert quarters(decoded(result.data)) == [RED, GREEN, BLUE, WHITE]
    assert SECRET not in result.data
    assert result.notes[:2] == ("metadata removed", "rotated upright")
    assert result.notes[2:] == (() if size == (400, 300) else ("reduced to 1920x1440",))


@pytest.mark.parametrize("format", FORMATS)
async def test_a_picture_with_too_long_a_side_is_reduced(gate: Gate, format: str) -> None:
    result = await prepared(gate, picture(format, 4032, 3024))
    assert (result.width, result.height, result.format) == (1920, 1440, format)
    assert result.notes == ("reduced to 1920x1440",)
    assert quarters(decoded(result.data)) == [RED, GREEN, BLUE, WHITE]


@pytest.mark.parametrize("format", FORMATS)
async def test_a_picture_with_too_short_a_side_is_enlarged(gate: Gate, format: str) -> None:
    result = await prepared(gate, picture(format, 100, 200))
    assert (result.width, result.height, result.format) == (256, 512, format)
    assert result.notes == ("enlarged to 256x512",)
    assert quarters(decoded(result.data)) == [RED, GREEN, BLUE, WHITE]


async def test_a_reduced_photo_is_still_the_photo(gate: Gate) -> None:
    photo = drawn(3840, 2160).rotate(13, resample=Image.Resampling.BICUBIC)
    result = decoded((await prepared(gate, encoded(photo, "jpeg", quality=95))).data)
    fair = photo.resize((1920, 1080), Image.Resampling.LANCZOS)
    pairs = zip(result.convert("L").tobytes(), fair.convert("L").tobytes(), strict=True)
    assert sum(abs(a - b) for a, b in pairs) / (1920 * 1080) < 1.0


def sixteen_bits(colour: int, channels: int) -> bytes:
    row = b"\0" + b"".join(struct.pack(">H", 257 * (x * 255 // 1999)) * channels for x in range(2000))
    return png(2000, 300, depth=16, colour=colour, pixels=zlib.compress(row * 300))


KINDS: dict[str, Callable[[], bytes]] = {
    "cmyk jpeg": lambda: encoded(drawn(2000, 1500, "CMYK"), "jpeg"),
    "grey jpeg": lambda: encoded(drawn(2000, 1500, "L"), "jpeg"),
    "progressive jpeg": lambda: picture("jpeg", 2000, 1500, progressive=True),
    "palette png": lambda: encoded(drawn(2000, 1500).quantize(8), "png"),
    "palette png with transparency": lambda: encoded(drawn(2000, 1500).quantize(8), "png", transparency=0),
    "one-bit png": lambda: encoded(drawn(2000, 1500, "1"), "png"),
    "one-bit png with transparency": lambda: encoded(drawn(2000, 1500, "1"), "png", transparency=0),
    "grey png with alpha": lambda: encoded(drawn(2000, 1500, "LA"), "png"),
    "png with alpha": lambda: encoded(drawn(2000, 1500, "RGBA"), "png"),
    "png with a transparent colour": lambda: encoded(drawn(2000, 1500), "png", transparency=(255, 0, 0)),
    "16-bit grey png": lambda: sixteen_bits(0, 1),
    "16-bit grey png with a transparent grey": lambda: after_header(sixteen_bits(0, 1), chunk(b"tRNS", b"\1\1")),
    "16-bit png": lambda: sixteen_bits(2, 3),
    "16-bit png with alpha": lambda: sixteen_bits(6, 4),
    "lossless webp with alpha": lambda: encoded(drawn(2000, 1500, "RGBA"), "webp", lossless=True),
}


@pytest.mark.parametrize("made", KINDS.values(), ids=KINDS.keys())
async def test_every_kind_of_pixels_is_reduced(gate: Gate, made: Callable[[], bytes]) -> None:
    data = made()
    result = await prepared(gate, data)
    assert result.format == read_header(data).format
    assert decoded(result.data).mode in ("L", "LA", "RGB", "RGBA")


async def test_sixteen_bits_become_eight_by_scale_and_not_by_clipping(gate: Gate) -> None:
    result = decoded((await prepared(gate, sixteen_bits(0, 1))).data)
    assert result.getextrema() == (0, 255)
    assert abs(result.getpixel((960, 100)) - 128) <= 2  # type: ignore[operator]


async def test_transparency_survives_and_an_opaque_alpha_does_not(gate: Gate) -> None:
    clear = drawn(2000, 1500, "RGBA")
    clear.putalpha(Image.linear_gradient("L").resize((2000, 1500)))
    alpha = decoded((await prepared(gate, encoded(clear, "png"))).data).getchannel("A")
    assert alpha.getextrema() == (0, 255)
    assert decoded((await prepared(gate, encoded(drawn(2000, 1500, "RGBA"), "png"))).data).mode == "RGB"


@pytest.mark.parametrize("format", FORMATS)
async def test_the_colour_profile_is_carried_over(gate: Gate, format: str) -> None:
    result = await prepared(gate, picture(format, 2000, 1500, icc_profile=PROFILE))
    assert decoded(result.data).info["icc_profile"] == PROFILE


async def test_a_profile_of_other_colours_is_not_carried_over(gate: Gate) -> None:
    data = encoded(drawn(2000, 1500, "CMYK"), "jpeg", icc_profile=PROFILE[:16] + b"CMYK" + PROFILE[20:])
    result = await prepared(gate, data)
    assert "icc_profile" not in decoded(result.data).info


async def test_text_that_inflates_never_reaches_the_decoder(gate: Gate) -> None:
    bomb = chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(64_000_000), 9))
    result = await prepared(gate, after_header(picture("png", 2000, 1500), bomb))
    assert (result.width, result.height) == (1920, 1440)


async def test_a_png_that_stays_too_heavy_becomes_a_jpeg(gate: Gate) -> None:
    data = encoded(noise(1920, 1920), "png", compress_level=0)
    assert inspect(data, RULE).actions == ("recompress",)
    result = await prepared(gate, data)
    assert result.format == "jpeg"
    assert result.content_type == "image/jpeg"
    assert result.notes == ("compressed again to meet the byte limit", "converted from PNG to JPEG")


async def test_a_png_with_alpha_that_stays_too_heavy_becomes_a_webp(gate: Gate) -> None:
    data = encoded(noise(1920, 1920, "RGBA"), "png", compress_level=0)
    result = await prepared(gate, data)
    assert result.format == "webp"
    assert decoded(result.data).mode == "RGBA"


async def test_a_png_that_only_was_stored_badly_stays_a_png(gate: Gate) -> None:
    data = encoded(drawn(1900, 1900), "png", compress_level=0)
    result = await prepared(gate, data)
    assert result.format == "png"
    assert decoded(result.data).tobytes() == decoded(data).tobytes()


async def test_a_smaller_limit_is_met_by_lower_quality(gate: Gate) -> None:
    data = encoded(noise(600, 600), "jpeg", quality=95)
    rule = InputRule(max_bytes=len(data) // 2)
    assert len((await prepared(gate, data, rule)).data) > rule.max_bytes // 4


async def test_a_limit_that_cannot_be_met_is_said(gate: Gate) -> None:
    data, rule = encoded(noise(600, 600), "jpeg"), InputRule(max_bytes=1000)
    with pytest.raises(InvalidImage) as caught:
        await gate.prepare(data, inspect(data, rule), rule)
    assert (caught.value.code, caught.value.extra["max_bytes"]) == ("too_large", 1000)


async def test_only_formats_of_the_rule_are_made(gate: Gate) -> None:
    data = encoded(noise(600, 600), "png")
    rule = InputRule(formats=("png", "webp"), max_bytes=len(data) // 2)
    with pytest.raises(InvalidImage):
        await gate.prepare(data, inspect(data, rule), rule)


DAMAGED = {
    "png whose pixels are no zlib": png(2000, 300, pixels=b"not zlib at all"),
    "png with too few pixels": png(2000, 2000, pixels=zlib.compress(bytes(1000))),
    "png with a profile that inflates": after_header(
        picture("png", 2000, 300), chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(64_000_000), 9))
    ),
    "jpeg without its tables": sized_jpeg(2000, 300).replace(b"\xff\xdb", b"\xff\xfe"),
    "webp with noise for pixels": (lambda data: data[:60] + bytes(len(data) - 60))(picture("webp", 2000, 1500)),
}


@pytest.mark.parametrize("data", DAMAGED.values(), ids=DAMAGED.keys())
async def test_pixels_that_cannot_be_decoded_are_refused_with_a_constant_text(gate: Gate, data: bytes) -> None:
    with pytest.raises(InvalidImage) as caught:
        await gate.prepare(data, inspect(data, RULE), RULE)
    assert (caught.value.code, caught.value.detail) == ("invalid_image", "The picture could not be decoded.")
    assert caught.value.__cause__ is None


sides = st.integers(40, 2600)


@settings(max_examples=25, deadline=None)
@given(width=sides, height=sides, orientation=st.integers(1, 8), format=st.sampled_from(FORMATS))
def test_the_planned_size_is_the_real_size(width: int, height: int, orientation: int, format: str) -> None:
    written = BytesIO()
    Image.new("L", (width, height)).save(written, format.upper(), exif=exif(orientation))
    data = written.getvalue()
    try:
        plan = inspect(data, RULE)
    except InvalidImage:
        assert max(width, height) / min(width, height) > 7.4
        return
    if plan.reencoded:
        made = worker.remake(data, plan.target, RULE.max_bytes, RULE.formats)
        assert decoded(made.data).size == plan.target


def test_a_picture_of_another_size_than_announced_is_refused() -> None:
    data = picture("png", 2000, 300)
    header = read_header(data)
    with pytest.raises(Malformed):
        worker._decode(picture("png", 2100, 300), header, (1920, 288))
