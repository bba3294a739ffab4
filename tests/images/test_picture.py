"""What comes back from the upstream is described, or found to be no whole picture."""

from __future__ import annotations

import pytest

from app.images.picture import describe
from tests.images.pictures import FORMATS, chunk, drawn, encoded, noise, picture, png


@pytest.mark.parametrize("format", FORMATS)
def test_a_finished_picture_is_described_from_its_header(format: str) -> None:
    assert describe(picture(format, 640, 360)) == (f"image/{format}", 640, 360)


def test_sizes_outside_the_input_range_are_no_concern_here() -> None:
    assert describe(png(12_000, 8_000)) == ("image/png", 12_000, 8_000)
    assert describe(encoded(drawn(8, 4), "jpeg", progressive=True)) == ("image/jpeg", 8, 4)
    assert describe(encoded(drawn(8, 4, "RGBA"), "webp", lossless=True)) == ("image/webp", 8, 4)


@pytest.mark.parametrize("format", FORMATS)
def test_a_cut_or_prolonged_picture_is_none(format: str) -> None:
    data = picture(format)
    for wrong in (data[:-1], data[: len(data) // 2], data[:20], data + b"\0", data + data):
        with pytest.raises(ValueError, match=r"cut off|after its end"):
            describe(wrong)


@pytest.mark.parametrize("format", FORMATS)
def test_a_large_picture_cut_anywhere_is_none(format: str) -> None:
    data = encoded(noise(900, 900), format, **({} if format == "png" else {"quality": 98}))
    assert len(data) > 600_000
    for tenth in range(1, 10):
        with pytest.raises(ValueError, match="cut off"):
            describe(data[: len(data) * tenth // 10])


@pytest.mark.parametrize("data", [b"", b'{"error": "internal"}', b"GIF89a" + bytes(99), b"<html>", b"\xff\xd8\xff\xd9"])
def test_anything_else_is_none(data: bytes) -> None:
    with pytest.raises(ValueError, match="The "):
        describe(data)


def test_an_animation_is_none() -> None:
    with pytest.raises(ValueError, match="animated"):
        describe(png(400, 300, chunk(b"acTL", bytes(8))))
