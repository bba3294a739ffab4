"""Metadata leaves a picture that conforms without a pixel or a colour changing."""

from __future__ import annotations

import pytest

from app.images.gate import Gate, InputRule, Prepared, inspect
from app.images.probe import read_header
from tests.images.pictures import (
    FORMATS,
    PROFILE,
    SECRET,
    after_header,
    after_start,
    canvas,
    chunk,
    decoded,
    drawn,
    encoded,
    exif,
    noise,
    picture,
    riff,
    segment,
    stream,
)

RULE = InputRule()
XMP = b"<x:xmpmeta>" + SECRET + b"</x:xmpmeta>"
JPEG = picture("jpeg")
PNG = picture("png")

CARRIERS = {
    "png exif": encoded(drawn(400, 300), "png", exif=exif()),
    "png text": after_header(PNG, chunk(b"tEXt", b"Comment\0" + SECRET)),
    "png compressed text": after_header(PNG, chunk(b"zTXt", b"Comment\0\0" + SECRET)),
    "png international text": after_header(PNG, chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP)),
    "png time": after_header(PNG, chunk(b"tIME", SECRET[:7])),
    "png private chunk": after_header(PNG, chunk(b"caBX", SECRET)),
    "png text after the pixels": PNG[:-12] + chunk(b"tEXt", b"Comment\0" + SECRET) + PNG[-12:],
    "jpeg exif": picture("jpeg", exif=exif()),
    "jpeg comment": picture("jpeg", comment=SECRET),
    "jpeg xmp": picture("jpeg", xmp=XMP),
    "jpeg long xmp": after_start(JPEG, segment(0xE1, b"http://ns.adobe.com/xmp/extension/\0" + XMP * 500)),
    "jpeg iptc": after_start(JPEG, segment(0xED, b"Photoshop 3.0\x008BIM\4\4\0\0\0\0\0\x1b" + SECRET + b"\0")),
    "jpeg maker's segment": after_start(JPEG, segment(0xE5, SECRET)),
    "jpeg multi-picture index": after_start(JPEG, segment(0xE2, b"MPF " + SECRET)),
    "jpeg thumbnail": after_start(JPEG, segment(0xE0, b"JFXX\0\x13" + SECRET)),
    "jpeg comment between the scans": JPEG[:-2] + segment(0xFE, SECRET) + JPEG[-2:],
    "jpeg tail of the adobe segment": after_start(JPEG, segment(0xEE, b"Adobe\0\x64\0\0\0\0\1" + SECRET)),
    "webp exif": picture("webp", exif=exif()),
    "webp xmp": picture("webp", xmp=XMP),
    "webp unknown chunk": riff(stream(400, 300), (b"note", SECRET)),
    "webp lossless with both": encoded(drawn(400, 300, "RGBA"), "webp", lossless=True, exif=exif(), xmp=XMP),
}
TRACES = (SECRET, b"Camera", b"Exif", b"xmpmeta", b"EXIF", b"XMP ", b"tIME", b"8BIM")


async def prepared(gate: Gate, data: bytes, *, keep_metadata: bool = False) -> Prepared:
    return await gate.prepare(data, inspect(data, RULE, keep_metadata=keep_metadata), RULE)


@pytest.mark.parametrize("data", CARRIERS.values(), ids=CARRIERS.keys())
async def test_metadata_goes_byte_for_byte_and_pixels_stay(gate: Gate, data: bytes) -> None:
    assert inspect(data, RULE).actions == ("metadata",)
    result = await prepared(gate, data)
    assert result.notes == ("metadata removed",)
    assert not [trace for trace in TRACES if trace in result.data]
    before, after = decoded(data), decoded(result.data)
    assert (after.mode, after.size, after.tobytes()) == (before.mode, before.size, before.tobytes())
    assert not after.getexif()
    assert not {"exif", "xmp", "comment", "photoshop", "Comment"} & after.info.keys()
    assert inspect(result.data, RULE, fit="strict").actions == ()


@pytest.mark.parametrize("data", CARRIERS.values(), ids=CARRIERS.keys())
async def test_metadata_is_kept_to_the_byte_on_request(gate: Gate, data: bytes) -> None:
    result = await prepared(gate, data, keep_metadata=True)
    assert result.data is data
    assert result.notes == ()


@pytest.mark.parametrize("format", FORMATS)
async def test_a_conforming_picture_is_forwarded_byte_for_byte(gate: Gate, format: str) -> None:
    data = picture(format)
    result = await prepared(gate, data)
    assert result == Prepared(data, format, f"image/{format}", 400, 300, ())
    assert result.data is data


@pytest.mark.parametrize("format", FORMATS)
async def test_the_colour_profile_stays(gate: Gate, format: str) -> None:
    data = picture(format, icc_profile=PROFILE, exif=exif())
    result = await prepared(gate, data)
    assert decoded(result.data).info["icc_profile"] == PROFILE
    assert SECRET not in result.data


async def test_an_oversized_colour_profile_goes(gate: Gate) -> None:
    profile = PROFILE + noise(600, 600).tobytes()
    for format in FORMATS:
        result = await prepared(gate, picture(format, icc_profile=profile))
        assert result.notes == ("metadata removed",)
        assert "icc_profile" not in decoded(result.data).info
        assert decoded(result.data).tobytes() == decoded(picture(format)).tobytes()


COLOURS = [  # of PNG
    (b"gAMA", b"\0\0\xb1\x8f"),
    (b"cHRM", bytes(32)),
    (b"sRGB", b"\0"),
    (b"sBIT", b"\5\6\5"),
    (b"cICP", b"\1\r\0\1"),
]


async def test_what_png_says_of_its_colours_stays(gate: Gate) -> None:
    chunks = [chunk(kind, payload) for kind, payload in COLOURS]
    result = await prepared(gate, after_header(PNG, *chunks, chunk(b"tEXt", b"a\0" + SECRET)))
    assert result.data == after_header(PNG, *chunks)


@pytest.mark.parametrize("mode", ["P", "1", "L", "LA", "RGBA"])
async def test_palettes_and_transparency_stay(gate: Gate, mode: str) -> None:
    data = encoded(drawn(400, 300).convert(mode), "png", exif=exif(), **({"transparency": 1} if mode == "P" else {}))
    result = await prepared(gate, data)
    assert decoded(result.data).convert("RGBA").tobytes() == decoded(data).convert("RGBA").tobytes()


async def test_the_adobe_transform_stays_for_it_decides_the_colours(gate: Gate) -> None:
    data = encoded(drawn(400, 300, "CMYK"), "jpeg", exif=exif())
    assert b"Adobe" in data
    result = await prepared(gate, data)
    assert b"Adobe" in result.data
    assert decoded(result.data).tobytes() == decoded(data).tobytes()


async def test_the_thumbnail_within_the_jfif_header_goes(gate: Gate) -> None:
    thumbnail = b"JFIF\0\1\1\0\0\1\0\1\3\3" + SECRET + b"\0\0"
    data = JPEG[:2] + segment(0xE0, thumbnail) + JPEG[20:]
    result = await prepared(gate, data)
    assert result.data == JPEG


async def test_the_webp_flags_no_longer_announce_what_is_gone(gate: Gate) -> None:
    data = riff(canvas(400, 300, 0x0C), stream(400, 300), (b"EXIF", exif()), (b"XMP ", XMP))
    result = await prepared(gate, data)
    assert result.data == riff(canvas(400, 300), stream(400, 300))


async def test_the_webp_flag_of_an_oversized_profile_goes_with_it(gate: Gate) -> None:
    data = riff(canvas(400, 300, 0x20), (b"ICCP", bytes(1_000_001)), stream(400, 300))
    assert (await prepared(gate, data)).data == riff(canvas(400, 300), stream(400, 300))


@pytest.mark.parametrize("offset", range(-3, 3))
def test_nothing_hides_where_one_step_of_the_search_ends_and_the_next_begins(offset: int) -> None:
    scan = JPEG.index(b"\xff\xda")
    start = scan + 2 + int.from_bytes(JPEG[scan + 2 : scan + 4], "big")
    comment = segment(0xFE, SECRET)
    at = start + (1 << 20) + offset
    data = JPEG[:start] + bytes(at - start) + comment + JPEG[-2:]
    assert read_header(data).cuts == ((at, at + len(comment), b""),)


async def test_large_files_are_searched_to_their_end_before_they_are_forwarded(gate: Gate) -> None:
    data = encoded(noise(1900, 1900), "jpeg", quality=80, progressive=True)
    assert len(data) > 2_000_000
    late = data[:-2] + segment(0xFE, SECRET) + data[-2:]
    assert inspect(late, RULE).actions == ()
    result = await prepared(gate, late)
    assert result.data == data
    assert result.notes == ("metadata removed",)
    kept = await prepared(gate, late, keep_metadata=True)
    assert kept.data == late


@pytest.mark.parametrize("format", FORMATS)
def test_metadata_is_cut_without_decoding_anything_else(format: str) -> None:
    data = picture(format, exif=exif())
    header = read_header(data)
    clean = header.without_metadata(data)
    assert len(clean) == header.size_without_metadata(len(data))
    assert read_header(clean).cuts == ()
