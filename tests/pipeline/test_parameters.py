"""Every parameter reaches the upstream exactly as it was asked: nothing is lost, changed or added on the way."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest

from tests.fleet import Fleet
from tests.pipeline.calls import Answer, edit, generate, jobs, new_key, picture

PROMPTS = [
    "sky",
    'say "héllo"\n\tand\r\n\\back\\slash — 🌊 ümlaut \u202e\u0301 {"type": "x"} --boundary',
    "\U0001f30a" * 4_096,
    "  spaces around  ",
]
KONTEXT: list[dict[str, Any]] = [
    *({"prompt": prompt} for prompt in PROMPTS),
    {"aspect_ratio": "7:3"},
    {"aspect_ratio": "99999:1"},
    {"aspect_ratio": "21:9"},
    {"prompt_upsampling": True},
    {"prompt_upsampling": False},
    {"safety_tolerance": 0},
    {"safety_tolerance": 2},
    {"seed": 0},
    {"seed": 2**53 - 1},
]
GENERATE = [*KONTEXT, {"safety_tolerance": 6}]
DEV: list[dict[str, Any]] = [
    *({"prompt": prompt} for prompt in PROMPTS),
    {"style_preset": "3d-model"},
    {"width": 512},
    {"height": 1_024, "width": 544},
    {"steps": 1},
    {"steps": 50},
    {"guidance_scale": 3.75},
    {"guidance_scale": 7},
    {"guidance_scale": 0.125},
    {"progressive": True},
    {"seed": 2**53 - 1},
]
TYPES: dict[tuple[str, str], tuple[str, dict[str, Any]]] = {
    ("generate", "pro"): (
        "inference.flux-kontext.pro.txt2img.v2",
        {"aspect_ratio": "1:1", "prompt_upsampling": False, "safety_tolerance": 4},
    ),
    ("generate", "max"): (
        "inference.flux-kontext.max.txt2img.v2",
        {"aspect_ratio": "1:1", "prompt_upsampling": False, "safety_tolerance": 4},
    ),
    ("edit", "pro"): ("inference.flux-kontext.pro.img2img.v2", {"prompt_upsampling": False, "safety_tolerance": 2}),
    ("edit", "max"): ("inference.flux-kontext.max.img2img.v2", {"prompt_upsampling": False, "safety_tolerance": 2}),
    ("edit", "dev"): (
        "inference.flux-fast.dev-kontext.img2img.v1",
        {"width": 1_024, "height": 1_024, "steps": 30, "guidance_scale": 2.5, "progressive": False},
    ),
}
ASKED = {"generate": GENERATE, "edit": KONTEXT}
IMAGE = picture()


@pytest.fixture(scope="module")
def token(running: Fleet) -> str:
    return new_key(running, "open")[1]


def send(url: str, token: str, operation: str, fields: dict[str, Any]) -> Answer:
    headers = {"Cache-Control": "no-store"}
    return (
        generate(url, token, headers, **fields)
        if operation == "generate"
        else edit(url, token, {"image": IMAGE}, headers, **fields)
    )


@pytest.mark.parametrize(("operation", "variant"), list(TYPES))
def test_what_was_asked_is_what_the_upstream_receives(
    running: Fleet, urls: tuple[str, str], token: str, operation: str, variant: str
) -> None:
    name, defaults = TYPES[operation, variant]
    for number, fields in enumerate(DEV if variant == "dev" else ASKED[operation]):
        before = running.stats()["received"]
        answer = send(urls[number % 2], token, operation, {"variant": variant, **fields})
        assert answer.status == 200, answer.body
        (received,) = jobs(running, before)
        expected = {"seed": int(answer.headers["gateway-seed"]), **defaults, **fields}
        asked = str(
            expected.pop("prompt", "a lighthouse at dawn" if operation == "generate" else "make the sky stormy")
        )
        prompt = received["config"].pop("prompt")
        assert prompt == {"sha256": hashlib.sha256(asked.encode()).hexdigest(), "length": len(asked)}
        assert received["config"] == expected
        assert {key: type(value) for key, value in received["config"].items()} == {
            key: type(value) for key, value in expected.items()
        }
        assert (received["type"], received["status"], received["outcome"]) == (name, 200, "completed")
        assert (received["price_requested"], received["accept"]) == (True, "multipart/form-data; image/jpeg")
        sent = [(one["name"], one["filename"], one["content_type"], one["sha256"]) for one in received["inputs"]]
        whole = [("input", "image.png", "image/png", hashlib.sha256(IMAGE).hexdigest())]
        assert sent == (whole if operation == "edit" else [])


@pytest.mark.parametrize("output", ["jpeg", "png", "webp"])
def test_the_output_format_is_asked_of_the_upstream(
    running: Fleet, urls: tuple[str, str], token: str, output: str
) -> None:
    before = running.stats()["received"]
    answer = generate(urls[0], token, output_format=output)
    assert (answer.status, answer.headers["content-type"]) == (200, f"image/{output}")
    assert jobs(running, before)[0]["accept"] == f"multipart/form-data; image/{output}"


@pytest.mark.parametrize(
    ("operation", "fields", "field"),
    [
        ("generate", {"variant": "pro-v1"}, "variant"),
        ("generate", {"variant": "dev"}, "variant"),
        ("generate", {"safety_tolerance": 7}, "safety_tolerance"),
        ("edit", {"safety_tolerance": 3}, "safety_tolerance"),
        ("edit", {"variant": "dev", "width": 1_040}, "width"),
        ("edit", {"variant": "dev", "aspect_ratio": "1:1"}, "aspect_ratio"),
        ("edit", {"variant": "dev", "progressive": True, "output_format": "png"}, "progressive"),
        ("generate", {"prompt": "ab"}, "prompt"),
        ("generate", {"steps": 3}, "steps"),
    ],
)
def test_what_the_catalogue_does_not_allow_is_refused_and_nothing_is_sent(
    running: Fleet, urls: tuple[str, str], token: str, operation: str, fields: dict[str, Any], field: str
) -> None:
    before = running.stats()["received"]
    answer = send(urls[1], token, operation, fields)
    assert answer.refusal == (422, "invalid_request", "no")
    assert answer.json["field"] == field
    assert running.stats()["received"] == before
