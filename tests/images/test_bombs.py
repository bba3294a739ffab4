"""Files made to hurt: each is refused, or disarmed, without being decoded, inflated or believed."""

from __future__ import annotations

import struct
import time
import tracemalloc
import zlib

import pytest

from app.errors import InvalidImage
from app.images.gate import InputRule, inspect
from tests.images.pictures import (
    after_header,
    after_start,
    canvas,
    chunk,
    drawn,
    encoded,
    exif,
    picture,
    png,
    riff,
    segment,
    sized_jpeg,
    stream,
)

RULE = InputRule()
INFLATING = zlib.compress(bytes(64_000_000), 9)
JPEG = picture("jpeg")
SCAN = JPEG.index(b"\xff\xda")
ANIMATED = {"save_all": True, "append_images": [drawn(400, 300).rotate(90)], "duration": 100}


def deep(width: int, height: int, depth: int, colour: int, channels: int = 1) -> bytes:
    row = (width * depth * channels + 7) // 8 + 1
    return png(width, height, depth=depth, colour=colour, pixels=zlib.compress(bytes(row * height), 9))


def lossless(width: int, height: int) -> tuple[bytes, bytes]:
    return b"VP8L", b"\x2f" + struct.pack("<I", (width - 1) | (height - 1) << 14) + bytes(20)


def frame_header(precision: int, height: int, width: int, components: int) -> bytes:
    return struct.pack(">BHHB", precision, height, width, components) + bytes(3 * components)


def with_length(data: bytes, at: int, length: int) -> bytes:
    return data[:at] + struct.pack(">I", length) + data[at + 4 :]


REFUSED = {
    "png 9000x9000": deep(9000, 9000, 8, 0),
    "png 20000x20000 of one bit": deep(20000, 20000, 1, 0),
    "png 2^31 - 1 squared": png(2**31 - 1, 2**31 - 1),
    "png of no width": png(0, 300),
    "png of negative height": png(300, 2**32 - 1),
    "png of 16 bits palette": png(300, 300, depth=16, colour=3),
    "png of an unknown colour type": png(300, 300, colour=5),
    "png palette without a palette": png(300, 300, colour=3),
    "png with a damaged header": picture("png")[:16] + b"\0\0\1\1" + picture("png")[20:],
    "png without pixels": picture("png")[:33] + picture("png")[-12:],
    "png with two headers": after_header(picture("png"), picture("png")[8:33]),
    "png whose pixels are interrupted": png(300, 300, chunk(b"IDAT"), chunk(b"tEXt", b"a\0b")),
    "png with a chunk longer than the file": with_length(picture("png"), 33, 2**31 - 1),
    "png with a chunk of 4 GB": with_length(picture("png"), 33, 2**32 - 1),
    "png with a chunk shorter than it is": with_length(picture("png"), 33, 1),
    "png with an overlong palette": after_header(picture("png"), chunk(b"PLTE", bytes(769))),
    "png with a payload as its gamma": after_header(picture("png"), chunk(b"gAMA", bytes(5_000_000))),
    "png with two gammas": after_header(picture("png"), chunk(b"gAMA", bytes(4)), chunk(b"gAMA", bytes(4))),
    "png with an unknown critical chunk": after_header(picture("png"), chunk(b"CgBI", bytes(4))),
    "png with a chunk of no name": after_header(picture("png"), chunk(b"\0\0\0\0", bytes(4))),
    "png of 100,000 empty chunks": after_header(picture("png"), *[chunk(b"tEXt")] * 100_000),
    "png of 100,000 empty pixel chunks": after_header(picture("png"), *[chunk(b"IDAT")] * 100_000),
    "png animated": encoded(drawn(400, 300), "png", **ANIMATED),
    "png animated of one frame": after_header(picture("png"), chunk(b"acTL", struct.pack(">II", 1, 0))),
    "png and zip": picture("png") + b"PK\3\4" + bytes(200) + b"PK\5\6" + bytes(18),
    "png and zip that ends like a png": picture("png") + b"PK\3\4" + picture("png")[-12:],
    "jpeg 9000x9000": sized_jpeg(9000, 9000),
    "jpeg 65535x65535": sized_jpeg(65535, 65535),
    "jpeg of no height": sized_jpeg(400, 0),
    "jpeg of 12 bits": after_start(b"\xff\xd8\xff\xd9", segment(0xC1, frame_header(12, 300, 400, 3))),
    "jpeg of five components": after_start(b"\xff\xd8\xff\xd9", segment(0xC0, frame_header(8, 300, 400, 5))),
    "jpeg with two frames": JPEG[:SCAN] + segment(0xC0, frame_header(8, 500, 500, 3)) + JPEG[SCAN:],
    "jpeg, lossless": JPEG.replace(b"\xff\xc0", b"\xff\xc3"),
    "jpeg, arithmetic": JPEG.replace(b"\xff\xc0", b"\xff\xc9"),
    "jpeg whose height comes later": JPEG[:-2] + segment(0xDC, struct.pack(">H", 65535)) + JPEG[-2:],
    "jpeg with a segment of length 0": JPEG[:2] + b"\xff\xfe\0\0" + JPEG[2:],
    "jpeg with a segment of length 1": JPEG[:2] + b"\xff\xfe\0\1" + JPEG[2:],
    "jpeg with a segment longer than the file": JPEG[:2] + b"\xff\xfe\xff\xff" + JPEG[2:],
    "jpeg of 100,000 empty segments": after_start(JPEG, segment(0xFE) * 100_000),
    "jpeg of 1,000 scans": JPEG[:-2] + JPEG[SCAN:-2] * 1000 + JPEG[-2:],
    "jpeg of filling": JPEG[:2] + b"\xff" * 1_000_000 + JPEG[2:],
    "jpeg without a scan": JPEG[:SCAN] + b"\xff\xd9",
    "jpeg of nothing": b"\xff\xd8\xff\xd9",
    "jpeg and jpeg, as phones write a depth map": JPEG + JPEG,
    "jpeg in jpeg, before the scan": JPEG[:SCAN] + JPEG + JPEG[SCAN:],
    "jpeg and zip that ends like a jpeg": JPEG + b"PK\3\4" + bytes(200) + b"\xff\xd9",
    "webp of 16383x16383": riff(stream(16383, 16383)),
    "webp, lossless, of 16384x16384": riff(lossless(16384, 16384)),
    "webp of no width": riff(stream(0, 300)),
    "webp, canvas larger than the picture": riff(canvas(16000, 3000), stream(400, 300)),
    "webp, canvas smaller than the picture": riff(canvas(400, 300), stream(16000, 3000)),
    "webp, animated": encoded(drawn(400, 300), "webp", **ANIMATED),
    "webp that says it is animated": riff(canvas(400, 300, 0x02), stream(400, 300)),
    "webp with an animation's frame": riff(canvas(400, 300), stream(400, 300), (b"ANMF", bytes(40))),
    "webp of two pictures": riff(stream(400, 300), stream(400, 300)),
    "webp of both kinds": riff(stream(400, 300), lossless(400, 300)),
    "webp of nothing": riff(),
    "webp of a canvas only": riff(canvas(400, 300)),
    "webp with a short header": riff((b"VP8X", b"\0" * 4), stream(400, 300)),
    "webp whose picture is no key frame": riff((b"VP8 ", b"\1" + stream(400, 300)[1][1:])),
    "webp of a later version": riff((b"VP8L", b"\x2f\xff\xff\xff\xff" + bytes(20))),
    "webp with a chunk longer than the file": riff((b"VP8 ", bytes(100)))[:16] + b"\xff\xff\xff\xff" + bytes(100),
    "webp of 100,000 empty chunks": riff(stream(400, 300), *[(b"XMP ", b"")] * 100_000),
    "webp longer than it says": riff(stream(400, 300)) + b"PK\3\4",
    "webp shorter than it says": riff(stream(400, 300))[:-2],
}  # fmt: skip

DISARMED = {
    "png with text that inflates": after_header(picture("png"), chunk(b"zTXt", b"a\0\0" + INFLATING)),
    "png with international text that inflates": after_header(
        picture("png"), chunk(b"iTXt", b"a\0\1\0\0\0" + INFLATING)
    ),
    "png with a profile of 2 MB": after_header(picture("png"), chunk(b"iCCP", b"a\0\0" + bytes(2_000_000))),
    "png with 5,000 texts": after_header(picture("png"), *[chunk(b"zTXt", b"a\0\0" + INFLATING[:300])] * 5_000),
    "png with an exif of 4 MB": after_header(
        picture("png"), chunk(b"eXIf", b"II*\0\x08\0\0\0\xff\xff" + bytes(4_000_000))
    ),
    "jpeg with 100 exifs": after_start(JPEG, segment(0xE1, exif()) * 100),
    "jpeg with a profile of 4 MB": after_start(JPEG, segment(0xE2, b"ICC_PROFILE\0\1\1" + bytes(60_000)) * 70),
    "webp with a profile of 2 MB": riff(
        canvas(400, 300, 0x20), (b"ICCP", bytes(2_000_000)), stream(400, 300)
    ),
    "webp with an exif of 4 MB": riff(
        canvas(400, 300, 0x08), stream(400, 300), (b"EXIF", b"II*\0\x08\0\0\0\xff\xff" + bytes(4_000_000))
    ),
}  # fmt: skip


def watched(data: bytes) -> float:
    """Seconds that the inspection took, having proved that it set aside next to nothing."""
    tracemalloc.start()
    try:
        inspect(data, RULE)
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 2_000_000
    started = time.perf_counter()
    inspect(data, RULE)
    return time.perf_counter() - started


@pytest.mark.parametrize("data", REFUSED.values(), ids=REFUSED.keys())
def test_a_bomb_is_refused_at_once(data: bytes) -> None:
    with pytest.raises(InvalidImage) as caught:
        watched(data)
    assert caught.value.code in ("invalid_image", "too_large")
    started = time.perf_counter()
    with pytest.raises(InvalidImage):
        inspect(data, RULE)
    assert time.perf_counter() - started < 0.02


@pytest.mark.parametrize("data", DISARMED.values(), ids=DISARMED.keys())
def test_a_bomb_in_the_metadata_is_cut_and_never_inflated(data: bytes) -> None:
    assert watched(data) < 0.02
    assert inspect(data, RULE).actions == ("metadata",)


@pytest.mark.parametrize("seen", ["png 9000x9000", "jpeg 9000x9000", "webp of 16383x16383"])
def test_too_many_pixels_is_said_to_be_that(seen: str) -> None:
    with pytest.raises(InvalidImage) as caught:
        inspect(REFUSED[seen], RULE)
    assert (caught.value.code, caught.value.status) == ("too_large", 413)
