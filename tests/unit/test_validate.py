"""What a caller may ask: every legal value passes as it is, every other is refused by name with its range."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from app.domain.catalog import load
from app.domain.upload import Upload
from app.domain.validate import validate
from app.errors import InvalidRequest
from tests.unit.asks import CATALOG, ask, request

ALL = [("generate", "pro"), ("generate", "max"), ("edit", "pro"), ("edit", "max"), ("edit", "dev")]
PRO = ALL[:4]
DEV = ALL[4:]


def refused(operation: str, **fields: Any) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        request(operation, **fields)
    return caught.value


LEGAL: list[tuple[list[tuple[str, str]], str, list[Any]]] = [
    (ALL, "prompt", ["sky", "x" * 4_096, "\U0001f30a" * 4_096, 'say "hi"\n\tin\r\nlines', "été", " \u3000 "]),
    (ALL, "seed", [0, 1, 2**53 - 1]),
    (PRO, "aspect_ratio", ["1:1", "7:3", "21:9", "9:21", "99999:1", "1:99999"]),
    (PRO, "prompt_upsampling", [True, False]),
    (ALL[:2], "safety_tolerance", [0, 4, 6]),
    (ALL[2:4], "safety_tolerance", [0, 1, 2]),
    (DEV, "style_preset", ["3d-model", "texture"]),
    (DEV, "width", [512, 544, 1_024]),
    (DEV, "height", [512, 544, 1_024]),
    (DEV, "steps", [1, 30, 50]),
    (DEV, "guidance_scale", [0.1, 2.5, 3.75, 7, 1e300]),
    (DEV, "progressive", [True, False]),
]
ILLEGAL: list[tuple[list[tuple[str, str]], str, list[Any]]] = [
    (ALL, "prompt", ["", "ab", "\U0001f30a\U0001f30a", "x" * 4_097, 7, ["sky blue"], True, "a \ud800 half"]),
    (ALL, "seed", [-1, 2**53, 1.5, 1.0, "7", True]),
    (
        PRO,
        "aspect_ratio",
        ["", "16/9", "0:1", "1:0", "01:1", "100000:1", "1:1 ", " 1:1", "1.5:1", "१:१", "1:1\n", 1, "auto"],
    ),
    (PRO, "prompt_upsampling", ["true", 0, 1, "yes"]),
    (ALL[:2], "safety_tolerance", [-1, 7, 1.5, "4", True]),
    (ALL[2:4], "safety_tolerance", [-1, 3, 6]),
    (DEV, "style_preset", ["", "Anime", "none", 3]),
    (DEV, "width", [0, 511, 513, 480, 1_025, 1_040, 1_056, 512.0, "512"]),
    (DEV, "height", [0, 1_000, 1_040, 1_056]),
    (DEV, "steps", [0, 51, 2.5]),
    (DEV, "guidance_scale", [0, 0.0, -1, float("nan"), 10**400, float("inf"), "2.5", True]),
    (DEV, "progressive", ["true", 1]),
]


def spread(table: list[tuple[list[tuple[str, str]], str, list[Any]]]) -> list[Any]:
    return [(*where, name, value) for places, name, values in table for where in places for value in values]


@pytest.mark.parametrize(("operation", "variant", "name", "value"), spread(LEGAL))
def test_a_legal_value_passes_unchanged(operation: str, variant: str, name: str, value: Any) -> None:
    found = request(operation, variant=variant, **{name: value})
    effective = {**found.parameters, "seed": found.seed, "safety_tolerance": found.safety_asked}
    assert effective[name] == value
    assert type(effective[name]) is type(value)
    assert found.seed_given is (name == "seed")


@pytest.mark.parametrize(("operation", "variant", "name", "value"), spread(ILLEGAL))
def test_any_other_value_is_refused_by_name(operation: str, variant: str, name: str, value: Any) -> None:
    refusal = refused(operation, variant=variant, **{name: value})
    assert (refusal.code, refusal.status, refusal.field, refusal.charged) == ("invalid_request", 422, name, "no")
    assert refusal.extra["kind"]
    assert str(value) not in refusal.detail or len(str(value)) < 6


@pytest.mark.parametrize(("operation", "variant"), ALL)
def test_a_prompt_is_required(operation: str, variant: str) -> None:
    assert refused(operation, variant=variant, prompt=None).field == "prompt"


def test_a_refusal_carries_the_range() -> None:
    facts = refused("edit", safety_tolerance=3).extra
    assert (facts["minimum"], facts["maximum"], facts["default"]) == (0, 2, 2)
    assert refused("generate", safety_tolerance=7).detail == "`safety_tolerance` must be an integer from 0 to 6."
    assert "in multiples of 32" in refused("edit", variant="dev", width=1_040).detail


@pytest.mark.parametrize(
    ("operation", "variant", "effective"),
    [
        ("generate", "pro", {"aspect_ratio": "1:1", "prompt_upsampling": False}),
        ("edit", "max", {"prompt_upsampling": False}),
        ("edit", "dev", {"width": 1_024, "height": 1_024, "steps": 30, "guidance_scale": 2.5, "progressive": False}),
    ],
)
def test_defaults_are_applied(operation: str, variant: str, effective: dict[str, Any]) -> None:
    found = request(operation, variant=variant)
    assert found.parameters == effective | {"prompt": "a lighthouse at dawn"}
    assert (found.output, found.fit, found.response_format, found.user, found.tags) == ("jpeg", "auto", "url", None, ())
    assert (found.safety_asked, found.seed_given) == (None, False)


def test_pro_is_the_default_variant() -> None:
    assert request("generate").job_type.variant == "pro"
    assert request("edit").job_type.type == "inference.flux-kontext.pro.img2img.v2"


def test_a_request_without_a_seed_is_given_one_in_range() -> None:
    seeds = {request().seed for _ in range(200)}
    assert len(seeds) == 200
    assert all(0 <= seed < 2**53 for seed in seeds)
    assert max(seeds) > 2**48


def test_a_seed_that_is_given_out_lies_in_the_types_own_range() -> None:
    entry = """
[[job]]
type = "inference.flux-2.txt2img.v1"
variant = "flux-2"
operation = "generate"
price_usd = "0.06"
typical_seconds = 9
[job.parameters]
prompt = { kind = "string", required = true }
noise = { kind = "integer", role = "seed", minimum = 5, maximum = 9 }
"""
    assert {request(catalog=load(entry), variant="flux-2").seed for _ in range(300)} == {5, 6, 7, 8, 9}


@pytest.mark.parametrize("variant", ["dev", "pro-v1", "max-v1", "", "PRO", "flux-kontext-pro", 3, None, ["pro"]])
def test_a_variant_that_generate_does_not_offer_is_refused_with_those_it_does(variant: Any) -> None:
    with pytest.raises(InvalidRequest) as caught:
        validate(replace(ask(), fields={"prompt": "a boat", "variant": variant}), CATALOG)
    assert caught.value.field == "variant"
    assert caught.value.extra["choices"] == ["pro", "max", "auto"]


def test_a_field_of_another_variant_names_the_variants_that_have_it() -> None:
    refusal = refused("edit", variant="dev", safety_tolerance=0)
    assert (refusal.field, refusal.extra["variants"]) == ("safety_tolerance", ["pro", "max"])
    assert "pro, max" in refusal.detail
    assert refused("edit", style_preset="anime").extra["variants"] == ["dev"]


def test_a_field_of_the_other_operation_says_so() -> None:
    refusal = refused("generate", style_preset="anime")
    assert (refusal.field, refusal.extra) == ("style_preset", {"operation": "edit", "variants": ["dev"]})


def test_an_unknown_field_is_refused_and_its_name_is_cut_short() -> None:
    assert refused("generate", negative_prompt="x").field == "negative_prompt"
    assert refused("generate", **{"n" * 500: 1}).field == "n" * 64


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("output_format", "jpg"), ("output_format", 1), ("fit", "crop"), ("fit", True), ("response_format", "b64"),
        ("user", ""), ("user", "u" * 129), ("user", "a\nb"), ("user", 7), ("tags", "one"), ("tags", [""]),
        ("tags", ["t"] * 9), ("tags", ["t" * 33]), ("tags", [1]), ("tags", ["a\x00"]),
    ],
)  # fmt: skip
def test_the_gateways_own_fields_are_checked_too(name: str, value: Any) -> None:
    assert refused("edit", **{name: value}).field == name


def test_the_gateways_own_fields_arrive() -> None:
    found = request(
        "edit", output_format="webp", fit="strict", response_format="b64_json", user="ada", tags=["b", "a", "b"]
    )
    assert (found.output, found.fit, found.response_format, found.user, found.tags) == (
        "webp", "strict", "b64_json", "ada", ("b", "a"),
    )  # fmt: skip


def test_the_body_outranks_the_accept_header() -> None:
    assert request(accepted="png").output == "png"
    assert request(accepted="png", output_format="webp").output == "webp"


def test_progressive_is_for_jpeg_and_is_otherwise_not_sent() -> None:
    refusal = refused("edit", variant="dev", progressive=True, output_format="png")
    assert refusal.field == "progressive"
    assert "progressive" not in request("edit", variant="dev", progressive=False, output_format="png").parameters
    assert "progressive" not in request("edit", variant="dev", output_format="png").parameters


def test_an_edit_needs_its_image_and_takes_no_other() -> None:
    with pytest.raises(InvalidRequest) as caught:
        validate(replace(ask("edit"), uploads={}), CATALOG)
    assert caught.value.field == "image"
    with pytest.raises(InvalidRequest) as caught:
        validate(replace(ask("edit"), uploads={"image": Upload(b"x"), "mask": Upload(b"y")}), CATALOG)
    assert caught.value.field == "mask"
    with pytest.raises(InvalidRequest) as caught:
        validate(replace(ask(), uploads={"image": Upload(b"x")}), CATALOG)
    assert caught.value.field == "image"


FORM: list[tuple[str, str, str, Any]] = [
    ("pro", "seed", "9007199254740991", 2**53 - 1),
    ("pro", "safety_tolerance", "0", 0),
    ("pro", "prompt_upsampling", "true", True),
    ("pro", "prompt", "12345", "12345"),
    ("dev", "guidance_scale", "3.75", 3.75),
    ("dev", "guidance_scale", "3.0", 3),
    ("dev", "steps", "50", 50),
    ("dev", "progressive", "false", False),
]


@pytest.mark.parametrize(("variant", "name", "text", "value"), FORM)
def test_a_form_field_is_read_as_what_it_stands_for(variant: str, name: str, text: Any, value: Any) -> None:
    found = request("edit", textual=True, variant=variant, **{name: text})
    assert {**found.parameters, "seed": found.seed, "safety_tolerance": found.safety_asked}[name] == value


@pytest.mark.parametrize(
    ("variant", "name", "text"),
    [
        ("pro", "seed", "07"), ("pro", "seed", "+7"), ("pro", "seed", " 7"), ("pro", "seed", "7.0"),
        ("pro", "seed", "７"),
        ("pro", "seed", "1e3"), ("pro", "seed", ""), ("pro", "seed", "9" * 400), ("pro", "prompt_upsampling", "True"),
        ("pro", "prompt_upsampling", "1"), ("dev", "guidance_scale", "nan"), ("dev", "guidance_scale", "1_0"),
        ("dev", "guidance_scale", "-2"), ("dev", "guidance_scale", "Infinity"), ("dev", "steps", "0x10"),
    ],
)  # fmt: skip
def test_a_form_field_that_stands_for_no_value_is_refused(variant: str, name: str, text: Any) -> None:
    assert refused("edit", textual=True, variant=variant, **{name: text}).field == name


def test_a_number_of_any_length_is_one_that_the_wire_can_carry() -> None:
    sent = request("edit", variant="dev", guidance_scale=10**30).parameters["guidance_scale"]
    assert (type(sent), sent) == (float, 1e30)
    assert request("edit", variant="dev", guidance_scale=3.0).parameters["guidance_scale"] == 3
    assert type(request("edit", variant="dev", guidance_scale=3.0).parameters["guidance_scale"]) is int


def test_a_json_string_is_never_read_as_a_number() -> None:
    assert refused("edit", variant="dev", steps="30").field == "steps"
