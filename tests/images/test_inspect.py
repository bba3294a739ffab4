"""What the gate accepts, what it plans, and where the borders are."""

from __future__ import annotations

import struct
import time
from collections.abc import Callable
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.errors import InvalidImage
from app.images.gate import UPLOAD_MAX_BYTES, UPLOAD_MAX_PIXELS, InputRule, Plan, inspect
from app.images.probe import read_header
from tests.images.pictures import (
    FORMATS,
    SECRET,
    after_header,
    after_start,
    chunk,
    decoded,
    encoded,
    exif,
    noise,
    picture,
    png,
    riff,
    segment,
    sized_jpeg,
    stream,
)

RULE = InputRule()


def refused(data: bytes, fit: Literal["auto", "strict"] = "auto", rule: InputRule = RULE) -> InvalidImage:
    with pytest.raises(InvalidImage) as caught:
        inspect(data, rule, fit=fit)
    return caught.value


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("fit", ["auto", "strict"])
def test_a_conforming_picture_needs_nothing(format: str, fit: Literal["auto", "strict"]) -> None:
    data = picture(format)
    plan = inspect(data, RULE, fit=fit)
    assert plan == Plan(format, 400, 300, (400, 300), (), None, (400, 300), read_header(data))


SIDES = [
    ((256, 256), None),
    ((1920, 1920), None),
    ((256, 1920), None),
    ((255, 256), (256, 257)),
    ((256, 255), (257, 256)),
    ((255, 255), (256, 256)),
    ((1921, 1000), (1920, 999)),
    ((1000, 1921), (999, 1920)),
    ((1921, 1921), (1920, 1920)),
    ((4032, 3024), (1920, 1440)),
    ((3024, 4032), (1440, 1920)),
    ((1, 1), (256, 256)),
    ((100, 750), (256, 1920)),
]


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(("size", "target"), SIDES)
def test_the_borders_of_each_side(format: str, size: tuple[int, int], target: tuple[int, int] | None) -> None:
    data = {"png": png, "jpeg": sized_jpeg, "webp": lambda *sides: riff(stream(*sides))}[format](*size)
    plan = inspect(data, RULE)
    assert plan.target == (target or size)
    if target is None:
        assert (plan.actions, plan.fitted) == ((), None)
        assert inspect(data, RULE, fit="strict") == plan
        return
    assert (plan.actions, plan.fitted) == (("fit",), f"{target[0]}x{target[1]}")
    refusal = refused(data, "strict")
    assert (refusal.code, refusal.status, refusal.field) == ("invalid_image", 422, "image")
    assert refusal.extra == {
        "formats": ["png", "jpeg", "webp"],
        "min_side": 256,
        "max_side": 1920,
        "max_bytes": 10_000_000,
        "width": size[0],
        "height": size[1],
    }


@pytest.mark.parametrize("size", [(100, 5000), (5000, 100), (100, 752), (1930, 256), (1920, 255), (1, 60000)])
def test_a_ratio_that_no_size_in_range_has_is_refused(size: tuple[int, int]) -> None:
    refusal = refused(png(*size))
    assert refusal.code == "invalid_image"
    assert "ratio is too extreme" in refusal.detail
    assert "256 to 1920" in refusal.detail


def png_of(size: int) -> bytes:
    data = encoded(noise(1000, 1000), "png", compress_level=0)
    return data[:-12] + chunk(b"IDAT", bytes(size - len(data) - 12)) + data[-12:]


def jpeg_of(size: int) -> bytes:
    data = picture("jpeg")
    return data[:-2] + bytes(size - len(data)) + data[-2:]


def webp_of(size: int) -> bytes:
    kind, payload = stream(400, 300)
    return riff((kind, payload + bytes(size + size % 2 - len(payload) - 20)))


SIZED = pytest.mark.parametrize("sized", [png_of, jpeg_of, webp_of])


@SIZED
def test_ten_million_bytes_pass_and_one_more_does_not(sized: Callable[[int], bytes]) -> None:
    most, more = sized(10_000_000), sized(10_000_001)
    assert len(most) == 10_000_000 < len(more)
    assert inspect(most, RULE, fit="strict").actions == ()
    refusal = refused(more, "strict")
    assert (refusal.code, refusal.status) == ("too_large", 413)
    plan = inspect(more, RULE)
    assert (plan.actions, plan.fitted, plan.target) == (("recompress",), None, plan.oriented)


@SIZED
def test_an_upload_has_at_most_25_million_bytes(sized: Callable[[int], bytes]) -> None:
    assert inspect(sized(UPLOAD_MAX_BYTES), RULE)
    assert refused(sized(UPLOAD_MAX_BYTES + 1)).code == "too_large"
    assert refused(sized(UPLOAD_MAX_BYTES + 1), "strict").code == "too_large"


def test_bytes_count_as_they_will_be_sent() -> None:
    data = after_header(png_of(9_999_000), chunk(b"tEXt", bytes(5000)))
    assert inspect(data, RULE, fit="strict").actions == ("metadata",)
    assert inspect(data, RULE, keep_metadata=True).actions == ("metadata",)
    with pytest.raises(InvalidImage):
        inspect(data, RULE, fit="strict", keep_metadata=True)


def test_fifty_megapixels_are_accepted_and_no_more() -> None:
    assert inspect(png(10_000, 5_000), RULE).fitted == "1920x960"
    refusal = refused(png(10_000, 5_001))
    assert (refusal.code, refusal.extra["width"]) == ("too_large", 10_000)


def test_the_rule_decides_names_formats_and_ranges() -> None:
    rule = InputRule(name="mask", formats=("png",), min_side=64, max_side=512, max_bytes=2_000)
    assert inspect(png(512, 64), rule).actions == ()
    refusal = refused(picture("jpeg"), rule=rule)
    assert (refusal.code, refusal.field, refusal.extra["formats"]) == ("unsupported_type", "mask", ["png"])


OTHERS = {
    "psd": b"8BPS\0\1" + bytes(60),
    "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n",
    "tiff": b"II*\0" + bytes(60),
    "tiff, big-endian": b"MM\0*" + bytes(60),
    "svg": b'<svg xmlns="http://www.w3.org/2000/svg"/>',
    "html": b"<!doctype html><script>alert(1)</script>",
    "pdf": b"%PDF-1.7\n",
    "gif": b"GIF89a" + bytes(60),
    "bmp": b"BM" + bytes(60),
    "heic": b"\0\0\0\x18ftypheic" + bytes(60),
    "avif": b"\0\0\0\x1cftypavif" + bytes(60),
    "jpeg 2000": b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(60),
    "ico": b"\0\0\1\0" + bytes(60),
    "wave": b"RIFF\x24\0\0\0WAVEfmt " + bytes(60),
    "zip": b"PK\3\4" + bytes(60),
    "text": b"a stormy sky",
    "nul": b"\0",
    "a picture after a space": b" " + picture("png"),
    "half a signature": b"\x89PNG\r\n",
}


@pytest.mark.parametrize("data", OTHERS.values(), ids=OTHERS.keys())
@pytest.mark.parametrize("fit", ["auto", "strict"])
def test_other_types_are_refused_whatever_they_are_called(data: bytes, fit: Literal["auto", "strict"]) -> None:
    refusal = refused(data, fit)
    assert (refusal.code, refusal.status) == ("unsupported_type", 415)


def test_nothing_is_not_a_picture() -> None:
    assert refused(b"").code == "invalid_image"


def with_exif(format: str, orientation: int) -> bytes:
    return picture(format, exif=exif(orientation))


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_read_and_needs_a_change(format: str, orientation: int) -> None:
    data = with_exif(format, orientation)
    plan = inspect(data, RULE)
    upright = (300, 400) if orientation >= 5 else (400, 300)
    assert (plan.width, plan.height) == (400, 300)
    assert plan.oriented == plan.target == upright
    assert plan.actions == (("metadata",) if orientation == 1 else ("metadata", "orientation"))
    assert plan.fitted is None
    if orientation == 1:
        assert inspect(data, RULE, fit="strict") == plan
        assert inspect(data, RULE, keep_metadata=True).actions == ()
    else:
        assert refused(data, "strict").code == "invalid_image"
        assert inspect(data, RULE, keep_metadata=True) == plan


BROKEN_EXIF = {
    "no directory": b"II*\0\xff\xff\xff\xff",
    "cut off": b"II*\0\x08\0\0\0\xff\xff\x12\x01",
    "orientation 9": b"II*\0\x08\0\0\0\1\0\x12\x01\3\0\1\0\0\0\x09\0\0\0",
    "orientation 0": b"II*\0\x08\0\0\0\1\0\x12\x01\3\0\1\0\0\0\0\0\0\0",
    "two values": b"II*\0\x08\0\0\0\1\0\x12\x01\3\0\2\0\0\0\6\0\6\0",
    "directory of itself": b"II*\0\0\0\0\0" + bytes(40),
    "nonsense": bytes(range(64)),
    "empty": b"",
}


@pytest.mark.parametrize("block", BROKEN_EXIF.values(), ids=BROKEN_EXIF.keys())
def test_broken_exif_turns_nothing(block: bytes) -> None:
    for data in (
        after_header(picture("png"), chunk(b"eXIf", block)),
        after_start(picture("jpeg"), segment(0xE1, b"Exif\0\0" + block)),
        riff(stream(400, 300), (b"EXIF", block)),
    ):
        assert inspect(data, RULE).actions == ("metadata",)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("kind", [3, 4])
def test_orientation_is_read_in_both_byte_orders_and_as_short_or_long(order: str, kind: int) -> None:
    value = struct.pack(order + ("HH" if kind == 3 else "I"), *((6, 0) if kind == 3 else (6,)))
    mark = b"II" if order == "<" else b"MM"
    block = mark + struct.pack(order + "HIHHHI", 42, 8, 1, 0x0112, kind, 1) + value
    assert inspect(after_header(picture("png"), chunk(b"eXIf", block)), RULE).oriented == (300, 400)
    assert inspect(riff(stream(400, 300), (b"EXIF", b"Exif\0\0" + block)), RULE).oriented == (300, 400)


@pytest.mark.parametrize("extra", [b"PK\3\4 a zip", b"\0", b"\n", picture("png"), picture("jpeg"), SECRET])
@pytest.mark.parametrize("format", FORMATS)
def test_bytes_after_the_end_are_refused(format: str, extra: bytes) -> None:
    refusal = refused(picture(format) + extra)
    assert refusal.code == "invalid_image"
    assert "after its end" in refusal.detail


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("tenth", range(10))
def test_a_cut_off_file_is_refused(format: str, tenth: int) -> None:
    data = encoded(noise(300, 300), format)
    refused(data[: len(data) * tenth // 10])


def test_every_cut_of_a_small_file_is_refused() -> None:
    for format in FORMATS:
        data = picture(format, 256, 256, exif=exif())
        for end in range(len(data)):
            refused(data[:end])


@SIZED
def test_inspection_of_25_megabytes_takes_no_time_on_the_loop(sized: Callable[[int], bytes]) -> None:
    data = sized(UPLOAD_MAX_BYTES)
    best = 1.0
    for _ in range(10):
        started = time.perf_counter()
        inspect(data, RULE)
        best = min(best, time.perf_counter() - started)
    assert best < 0.003


sides = st.integers(1, 20_000)


@given(width=sides, height=sides)
def test_every_target_is_in_range_and_keeps_the_ratio(width: int, height: int) -> None:
    data = png(width, height)
    if width * height > UPLOAD_MAX_PIXELS or max(width, height) / min(width, height) > 7.516:
        refused(data)
        return
    if max(width, height) / min(width, height) > 7.484:
        return  # here rounding to whole pixels decides
    plan = inspect(data, RULE)
    assert all(256 <= side <= 1920 for side in plan.target)
    kept = max(plan.target) / max(width, height)
    assert abs(plan.target[0] - width * kept) <= max(1.0, kept)
    assert abs(plan.target[1] - height * kept) <= max(1.0, kept)
    assert plan.actions == (() if plan.target == (width, height) else ("fit",))


def test_the_pictures_of_these_tests_are_pictures() -> None:
    for format in FORMATS:
        assert decoded(picture(format)).size == (400, 300)
