"""Whatever is done to a file, the gate answers with a plan or with its own refusal, and what it cuts stays a file."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.errors import InvalidImage
from app.images.gate import InputRule, inspect
from app.images.header import Malformed
from app.images.picture import describe
from app.images.probe import read_header
from tests.images.pictures import (
    FORMATS,
    PROFILE,
    after_start,
    canvas,
    drawn,
    encoded,
    exif,
    picture,
    png,
    riff,
    segment,
    stream,
)

RULE = InputRule()
SEEDS = [picture(format, 260, 256, exif=exif(6), icc_profile=PROFILE) for format in FORMATS] + [
    encoded(drawn(260, 256).quantize(4), "png", transparency=0),
    picture("jpeg", 260, 256, progressive=True, comment=b"a comment"),
    after_start(picture("jpeg", 260, 256), segment(0xED, b"Photoshop 3.0\0"), segment(0xEE, b"Adobe" + bytes(7))),
    encoded(drawn(260, 256, "RGBA"), "webp", lossless=True, exif=exif()),
    riff(canvas(400, 300, 0x0C), stream(400, 300), (b"EXIF", exif()), (b"XMP ", b"<x/>")),
    png(300, 300),
]

change = st.one_of(
    st.tuples(st.just("set"), st.integers(0, 2**16), st.binary(min_size=1, max_size=8)),
    st.tuples(st.just("insert"), st.integers(0, 2**16), st.binary(min_size=1, max_size=40)),
    st.tuples(st.just("delete"), st.integers(0, 2**16), st.binary(min_size=1, max_size=40)),
    st.tuples(st.just("cut"), st.integers(0, 2**16), st.just(b"")),
    st.tuples(st.just("repeat"), st.integers(0, 2**16), st.binary(min_size=1, max_size=200)),
)


def changed(data: bytes, changes: list[tuple[str, int, bytes]]) -> bytes:
    """The file with the changes made, mostly near its start, where the structure is."""
    for kind, place, value in changes:
        at = place % (len(data) if place % 3 == 0 else min(len(data), 700)) if data else 0
        size = len(value)
        data = {
            "set": data[:at] + value + data[at + size :],
            "insert": data[:at] + value + data[at:],
            "delete": data[:at] + data[at + size :],
            "cut": data[:at],
            "repeat": data[: at + size] + data[at:],
        }[kind]
    return data


def judge(data: bytes) -> None:
    try:
        plan = inspect(data, RULE)
    except InvalidImage as refusal:
        assert refusal.code in ("invalid_image", "too_large", "unsupported_type")  # noqa: PT017 - any code will do
        assert refusal.extra["max_side"] == 1920  # noqa: PT017
    else:
        assert all(256 <= side <= 1920 for side in plan.target)
        assert describe(data)[1:] == (plan.width, plan.height)
    try:
        header = read_header(data)
    except Malformed:
        return
    clean = header.without_metadata(data)
    again = read_header(clean)
    assert (again.width, again.height, again.cuts) == (header.width, header.height, ())


@pytest.mark.parametrize("seed", range(len(SEEDS)))
@settings(max_examples=150, deadline=None)
@given(changes=st.lists(change, max_size=4))
def test_mutated_files_are_planned_or_refused(seed: int, changes: list[tuple[str, int, bytes]]) -> None:
    judge(changed(SEEDS[seed], changes))


@settings(max_examples=200, deadline=None)
@given(start=st.sampled_from([b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"RIFF\x20\0\0\0WEBP"]), rest=st.binary())
def test_nonsense_is_refused(start: bytes, rest: bytes) -> None:
    judge(start + rest)
