"""The pictures: of the true format, size and ratio, the same for the same job, and an edit that keeps its input."""

import io
import time
from typing import Any

import pytest
from PIL import Image, ImageChops, ImageStat

from app.sandbox import SandboxConfig

from .running import DEV, EDIT, GENERATE, MAX_GENERATE, Box, document, opened, picture, running


@pytest.fixture(scope="module")
def studio() -> Any:
    with running(SandboxConfig(time_scale=0)) as box:
        yield box


def drawn(box: Box, kind: str = GENERATE, accept: str = "image/png", **options: Any) -> bytes:
    answer = box.job(kind, accept=accept, **options)
    assert answer.status_code == 200
    return answer.content


def difference(one: Image.Image, other: Image.Image) -> float:
    """Mean difference of two pictures per pixel and band, 0 to 255."""
    bands = ImageStat.Stat(ImageChops.difference(one.convert("RGB"), other.convert("RGB").resize(one.size))).mean
    return sum(bands) / len(bands)


@pytest.mark.parametrize(
    ("ratio", "size"),
    [
        (None, (1_024, 1_024)),
        ("1:1", (1_024, 1_024)),
        ("16:9", (1_360, 768)),
        ("21:9", (1_568, 672)),
        ("7:3", (1_568, 672)),
        ("9:21", (672, 1_568)),
        ("3:2", (1_248, 832)),
        ("99999:1", (16_368, 64)),
    ],
)
def test_a_generated_picture_has_about_a_megapixel_in_the_asked_ratio(
    studio: Box, ratio: str | None, size: tuple[int, int]
) -> None:
    config = {} if ratio is None else {"aspect_ratio": ratio}
    assert opened(drawn(studio, accept="image/jpeg", **config)).size == size


@pytest.mark.parametrize(
    ("source", "config", "size"),
    [
        ((400, 300), {}, (1_184, 880)),
        ((256, 1_920), {}, (368, 2_800)),
        ((400, 300), {"aspect_ratio": "1:1"}, (1_024, 1_024)),
    ],
)
def test_an_edit_keeps_the_ratio_of_its_input_unless_told(
    studio: Box, source: tuple[int, int], config: dict[str, Any], size: tuple[int, int]
) -> None:
    assert opened(drawn(studio, EDIT, picture=picture(source), accept="image/jpeg", **config)).size == size


def test_dev_draws_the_pixels_it_is_told(studio: Box) -> None:
    upload = picture()
    assert opened(drawn(studio, DEV, "image/jpeg", picture=upload, width=512, height=640)).size == (512, 640)
    assert opened(drawn(studio, DEV, "image/jpeg", picture=upload)).size == (1_024, 1_024)


@pytest.mark.parametrize("progressive", [True, False])
def test_dev_makes_a_progressive_jpeg_when_asked(studio: Box, progressive: bool) -> None:
    image = opened(drawn(studio, DEV, accept="image/jpeg", picture=picture(), progressive=progressive))
    assert ("progressive" in image.info) == progressive


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
def test_an_edit_visibly_keeps_its_input(studio: Box, form: str) -> None:
    source = picture((640, 480), form)
    edited = opened(drawn(studio, EDIT, picture=source))
    assert 2 < difference(edited, opened(source)) < 30
    other = opened(drawn(studio, accept="image/png", prompt="something else"))
    assert difference(edited, other) > 40


@pytest.mark.parametrize("mode", ["RGBA", "LA", "L", "P", "1", "I;16", "CMYK"])
def test_inputs_of_every_mode_can_be_edited(studio: Box, mode: str) -> None:
    out = io.BytesIO()
    Image.new(mode, (300, 300)).save(out, "JPEG" if mode == "CMYK" else "PNG")
    assert opened(drawn(studio, EDIT, "image/jpeg", picture=out.getvalue())).size == (1_024, 1_024)


@pytest.mark.parametrize("accept", ["image/png", "image/jpeg", "image/webp"])
def test_the_same_job_gives_the_same_bytes(studio: Box, accept: str) -> None:
    assert drawn(studio, accept=accept) == drawn(studio, accept=accept, safety_tolerance=1)


@pytest.mark.parametrize("box_name", ["studio", "box"])
def test_whatever_changes_the_job_changes_the_picture(box_name: str, request: pytest.FixtureRequest) -> None:
    box: Box = request.getfixturevalue(box_name)
    upload, other = picture(), picture((401, 300))
    pictures = [
        drawn(box, accept="*/*"),
        drawn(box, accept="*/*", prompt="a blue fox"),
        drawn(box, accept="*/*", seed=2),
        drawn(box, MAX_GENERATE, "*/*"),
        drawn(box, accept="*/*", prompt_upsampling=True),
        drawn(box, EDIT, "*/*", picture=upload),
        drawn(box, EDIT, "*/*", picture=upload, prompt="a blue fox"),
        drawn(box, EDIT, "*/*", picture=upload, seed=2),
        drawn(box, EDIT, "*/*", picture=other),
        drawn(box, DEV, "*/*", picture=upload),
        drawn(box, DEV, "*/*", picture=upload, style_preset="anime"),
    ]
    assert len(set(pictures)) == len(pictures)


def test_small_pictures_are_valid_and_of_the_same_ratio(box: Box) -> None:
    assert opened(drawn(box, aspect_ratio="21:9")).size == (98, 42)
    assert opened(drawn(box, EDIT, accept="image/webp", picture=picture())).size == (74, 55)


def test_an_input_that_breaks_while_decoding_is_a_failed_job(studio: Box) -> None:
    broken = picture((400, 300))[:2_000]
    answer = studio.job(EDIT, picture=broken)
    assert (answer.status_code, document(answer)["error"]) == (400, "at '/inputs/0': the picture cannot be decoded")


@pytest.mark.parametrize("size", [60_000, 65_540, 131_078, 1_000_001])
def test_pictures_are_padded_to_the_byte_and_stay_valid(size: int) -> None:
    with running(SandboxConfig(time_scale=0, picture="small", picture_bytes=size)) as box:
        for accept in ("image/png", "image/jpeg", "image/webp"):
            data = drawn(box, accept=accept)
            assert len(data) == size + (size % 2 if accept == "image/webp" else 0)
            assert opened(data).size == (64, 64)


def test_a_job_takes_its_typical_time_scaled_while_others_are_answered() -> None:
    with running(SandboxConfig(time_scale=0.05, picture="small")) as box:
        began = time.monotonic()
        metrics = document(box.job())["metrics"]
        took = time.monotonic() - began
        assert 0.27 < metrics["elapsed"] <= took < 0.6
