"""Every rule of every parameter, in Prodia's own words."""

import json
from typing import Any

import pytest

from .running import AUTHORISED, DEV, EDIT, GENERATE, Box, Files, document, picture

PNG = picture()
STYLES = (
    "'3d-model', 'analog-film', 'anime', 'cinematic', 'comic-book', 'craft-clay', 'digital-art', 'enhance', "
    "'fantasy-art', 'isometric', 'line-art', 'low-poly', 'neon-punk', 'origami', 'photographic', 'pixel-art', 'texture'"
)
RATIO = "'^[1-9][0-9]{0,4}:[1-9][0-9]{0,4}$'"


@pytest.mark.parametrize(
    ("kind", "config", "reason"),
    [
        (DEV, {"steps": 1_000}, "at '/config/steps': maximum: got 1,000, want 50"),
        (DEV, {"steps": 0}, "at '/config/steps': minimum: got 0, want 1"),
        (DEV, {"steps": "ten"}, "at '/config/steps': got string, want integer"),
        (DEV, {"steps": 1.5}, "at '/config/steps': got number, want integer"),
        (DEV, {"width": 480}, "at '/config/width': minimum: got 480, want 512"),
        (DEV, {"width": 1_000}, "at '/config/width': multipleOf: got 1,000, want 32"),
        (DEV, {"height": 1_056}, "at '/config/height': maximum: got 1,056, want 1,040"),
        (DEV, {"guidance_scale": True}, "at '/config/guidance_scale': got boolean, want number"),
        (DEV, {"progressive": 1}, "at '/config/progressive': got number, want boolean"),
        (DEV, {"style_preset": "baroque"}, f"at '/config/style_preset': value must be one of {STYLES}"),
        (DEV, {"aspect_ratio": "1:1"}, "at '/config': additional properties 'aspect_ratio' not allowed"),
        (DEV, {"safety_tolerance": 1}, "at '/config': additional properties 'safety_tolerance' not allowed"),
        (DEV, {"prompt_upsampling": True}, "at '/config': additional properties 'prompt_upsampling' not allowed"),
        (EDIT, {"safety_tolerance": 3}, "at '/config/safety_tolerance': maximum: got 3, want 2"),
        (EDIT, {"images": []}, "at '/config/images': minItems: got 0, want 1"),
        (EDIT, {"images": [1]}, "at '/config/images/0': got number, want string"),
        (EDIT, {"safety_tolerance": [2]}, "at '/config/safety_tolerance': got array, want integer"),
        (EDIT, {"images": ["b.png"]}, "at '/config/images/0': no such input"),
        (GENERATE, {"safety_tolerance": 7}, "at '/config/safety_tolerance': maximum: got 7, want 6"),
        (GENERATE, {"safety_tolerance": -1}, "at '/config/safety_tolerance': minimum: got -1, want 0"),
        (GENERATE, {"prompt": "ab"}, "at '/config/prompt': minLength: got 2, want 3"),
        (GENERATE, {"prompt": "é" * 4_097}, "at '/config/prompt': maxLength: got 4,097, want 4,096"),
        (GENERATE, {"prompt": None}, "at '/config/prompt': got null, want string"),
        (GENERATE, {"aspect_ratio": "16/9"}, f"at '/config/aspect_ratio': '16/9' does not match pattern {RATIO}"),
        (GENERATE, {"aspect_ratio": "0:9"}, f"at '/config/aspect_ratio': '0:9' does not match pattern {RATIO}"),
        (GENERATE, {"aspect_ratio": "1:1\n"}, f"at '/config/aspect_ratio': '1:1\n' does not match pattern {RATIO}"),
        (GENERATE, {"seed": {}}, "at '/config/seed': got object, want integer"),
        (GENERATE, {"foo": 1, "bar": 2}, "at '/config': additional properties 'foo', 'bar' not allowed"),
    ],
)
def test_each_rule_has_its_text(box: Box, kind: str, config: dict[str, Any], reason: str) -> None:
    answer = box.job(kind, picture=None if kind == GENERATE else PNG, **config)
    assert answer.status_code == 400
    assert document(answer)["error"] == reason
    assert box.bill()["jobs"] == 0


@pytest.mark.parametrize(
    ("sent", "reason"),
    [
        ({"type": GENERATE}, "at '': missing property 'config'"),
        ({"type": GENERATE, "config": 5}, "at '/config': got number, want object"),
        ({"type": GENERATE, "config": {}}, "at '/config': missing property 'prompt'"),
        ({"type": GENERATE, "config": {"prompt": "fox"}, "x": 1}, "at '': additional properties 'x' not allowed"),
    ],
)
def test_the_document_itself_has_rules(box: Box, sent: dict[str, Any], reason: str) -> None:
    answer = box.client.post("/v2/job", headers=AUTHORISED | {"accept": "application/json"}, json=sent)
    assert (answer.status_code, answer.json()["error"]) == (400, reason)


def test_several_mistakes_are_all_told(box: Box) -> None:
    answer = box.job(DEV, picture=PNG, steps=51, width=480)
    assert document(answer)["error"].split("\n") == [
        "at '/config/steps': maximum: got 51, want 50",
        "at '/config/width': minimum: got 480, want 512",
    ]


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        (GENERATE, {"aspect_ratio": "7:3", "seed": 531286735183442, "safety_tolerance": 6, "prompt_upsampling": True}),
        (GENERATE, {"seed": -5, "prompt": "😀" * 4_096}),
        (EDIT, {"safety_tolerance": 2, "images": ["image.jpg"]}),
        (DEV, {"style_preset": "anime", "steps": 50.0, "guidance_scale": 7, "width": 512, "height": 1_024}),
    ],
)
def test_everything_in_range_is_taken(box: Box, kind: str, config: dict[str, Any]) -> None:
    assert box.job(kind, picture=None if kind == GENERATE else PNG, **config).status_code == 200


@pytest.mark.parametrize(
    ("upload", "reason"),
    [
        (picture((255, 300)), "at '/inputs/0/width': minimum: got 255, want 256"),
        (picture((300, 1_921), "JPEG"), "at '/inputs/0/height': maximum: got 1,921, want 1,920"),
        (picture((300, 300), "GIF"), "at '/inputs/0': value must be one of 'image/jpeg', 'image/png', 'image/webp'"),
        (PNG + bytes(10_000_001 - len(PNG)), "at '/inputs/0/bytes': maximum: got 10,000,001, want 10,000,000"),
        (PNG[:20], "at '/inputs/0': the picture cannot be decoded"),
        (b"", "at '/inputs/0': value must be one of 'image/jpeg', 'image/png', 'image/webp'"),
    ],
)
def test_an_input_that_cannot_be_used_fails_the_job(box: Box, upload: bytes, reason: str) -> None:
    answer = box.job(EDIT, picture=upload)
    assert (answer.status_code, document(answer)["error"]) == (400, reason)


@pytest.mark.parametrize("size", [(256, 1_920), (1_920, 256)])
@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
def test_the_bounds_themselves_are_fine_in_every_format(box: Box, size: tuple[int, int], form: str) -> None:
    assert box.job(EDIT, picture=picture(size, form)).status_code == 200
    seen = box.jobs()[-1]["inputs"][0]
    assert (seen["format"], seen["width"], seen["height"]) == (form.lower(), *size)


def test_ten_million_bytes_are_not_too_many(box: Box) -> None:
    assert box.job(EDIT, picture=PNG + bytes(10_000_000 - len(PNG))).status_code == 200


def test_an_edit_needs_an_input(box: Box) -> None:
    assert document(box.job(EDIT))["error"] == "at '/inputs': minItems: got 0, want 1"


def test_images_chooses_among_the_uploads(box: Box) -> None:
    job = json.dumps({"type": EDIT, "config": {"prompt": "snow", "images": ["good.png"]}})
    files: Files = [("input", ("bad.png", b"bad")), ("input", ("good.png", PNG)), ("job", ("job.json", job))]
    assert box.client.post("/v2/job", headers=AUTHORISED, files=files).status_code == 200
