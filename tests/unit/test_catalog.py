"""The catalogue: Kontext's five job types as published, and an operator's own file, whose every mistake has a place."""

from __future__ import annotations

import re
from typing import Any

import pytest

from app.domain.catalog import Catalog, CatalogError, JobType, load
from app.domain.inputs import InputRule

# What Prodia publishes of its Kontext types, typed from the description of the product and not from the catalogue.
PROMPT = {"kind": "string", "required": True, "min_length": 3, "max_length": 4_096}
SEED = {"kind": "integer", "minimum": 0, "maximum": 9_007_199_254_740_991}
STYLES = re.split(
    " ",
    "3d-model analog-film anime cinematic comic-book craft-clay digital-art enhance fantasy-art isometric line-art "
    "low-poly neon-punk origami photographic pixel-art texture",
)
GENERATE = {
    "prompt": PROMPT,
    "aspect_ratio": {"kind": "ratio", "default": "1:1"},
    "prompt_upsampling": {"kind": "boolean", "default": False},
    "safety_tolerance": {"kind": "integer", "minimum": 0, "maximum": 6, "default": 4},
    "seed": SEED,
}
EDIT = {
    "prompt": PROMPT,
    "aspect_ratio": {"kind": "ratio"},
    "prompt_upsampling": {"kind": "boolean", "default": False},
    "safety_tolerance": {"kind": "integer", "minimum": 0, "maximum": 2, "default": 2},
    "seed": SEED,
}
DEV = {
    "prompt": PROMPT,
    "style_preset": {"kind": "choice", "choices": tuple(STYLES)},
    "width": {"kind": "integer", "minimum": 512, "maximum": 1_040, "multiple_of": 32, "default": 1_024},
    "height": {"kind": "integer", "minimum": 512, "maximum": 1_040, "multiple_of": 32, "default": 1_024},
    "steps": {"kind": "integer", "minimum": 1, "maximum": 50, "default": 30},
    "guidance_scale": {"kind": "number", "exclusive_minimum": 0, "default": 2.5},
    "progressive": {"kind": "boolean", "default": False, "only_with_output": "jpeg"},
    "seed": SEED,
}
KONTEXT: list[tuple[str, str, str, int, float, dict[str, Any]]] = [
    ("generate", "pro", "inference.flux-kontext.pro.txt2img.v2", 40_000, 6, GENERATE),
    ("edit", "pro", "inference.flux-kontext.pro.img2img.v2", 40_000, 6, EDIT),
    ("generate", "max", "inference.flux-kontext.max.txt2img.v2", 80_000, 7, GENERATE),
    ("edit", "max", "inference.flux-kontext.max.img2img.v2", 80_000, 7, EDIT),
    ("edit", "dev", "inference.flux-fast.dev-kontext.img2img.v1", 25_000, 7, DEV),
]
IMAGE = InputRule("image", ("png", "jpeg", "webp"), 256, 1_920, 10_000_000)


@pytest.mark.parametrize(("operation", "variant", "name", "micro_usd", "seconds", "parameters"), KONTEXT)
def test_a_kontext_type_is_as_published(
    operation: str, variant: str, name: str, micro_usd: int, seconds: float, parameters: dict[str, Any]
) -> None:
    found = load().find(operation, variant)
    assert found is not None
    assert (found.type, found.price, found.typical_seconds) == (name, micro_usd, seconds)
    assert {name: legal(found, name) for name in found.parameters} == parameters
    assert found.inputs == ((IMAGE,) if operation == "edit" else ())
    assert (found.role("seed") or "")[0] == "seed"
    assert (found.role("safety") or [None])[0] == ("safety_tolerance" if "safety_tolerance" in parameters else None)


def legal(job: JobType, name: str) -> dict[str, Any]:
    return job.parameters[name].model_dump(exclude_unset=True, exclude={"role"})


def test_these_five_are_all_that_is_offered() -> None:
    catalog = load()
    assert set(catalog.enabled) == {(operation, variant) for operation, variant, *_ in KONTEXT}
    assert catalog.variants("generate") == ("pro", "max")
    assert catalog.variants("edit") == ("pro", "max", "dev")


def test_dev_has_no_ratio_no_upsampling_and_no_safety_knob() -> None:
    assert load().having("edit", "safety_tolerance") == ("pro", "max")
    assert load().having("edit", "aspect_ratio") == ("pro", "max")
    assert load().having("edit", "prompt_upsampling") == ("pro", "max")
    assert load().having("edit", "style_preset") == ("dev",)
    assert load().having("generate", "style_preset") == ()


def test_the_largest_legal_side_of_dev_is_1024_though_the_bound_is_1040() -> None:
    dev = load().find("edit", "dev")
    assert dev is not None
    assert [side for side in range(400, 1_200) if dev.parameters["width"].problem(side) is None] == [
        *range(512, 1_025, 32)
    ]


def test_the_first_versions_are_kept_and_not_offered() -> None:
    first = [job for job in load().jobs if job.type.endswith("kontext.pro.txt2img.v1")]
    assert [(job.enabled, job.variant, job.price) for job in first] == [(False, "pro-v1", 40_000)]
    disabled = [job.type for job in load().jobs if not job.enabled]
    assert len(disabled) == 4
    assert all(load().find(operation, "pro-v1") is None for operation in ("generate", "edit"))


# An operator's own file.

ENTRY = """\
[[job]]
type = "inference.flux-2.txt2img.v1"
variant = "flux-2"
operation = "generate"
price_usd = "0.06"
typical_seconds = 9
[job.parameters]
prompt = { kind = "string", required = true, min_length = 3, max_length = 4096 }
steps = { kind = "integer", minimum = 1, maximum = 50, default = 30 }
"""
INPUT = 'inputs = [{ name = "image", formats = ["png"], min_side = 256, max_side = 1920, max_bytes = 1000 }]\n'


def added(text: str) -> Catalog:
    return load(text, file="own.toml")


def mistakes(text: str) -> tuple[str, ...]:
    with pytest.raises(CatalogError) as caught:
        added(text)
    return caught.value.mistakes


def test_one_entry_more_is_one_type_more() -> None:
    found = added(ENTRY).find("generate", "flux-2")
    assert found is not None
    assert (found.type, found.price) == ("inference.flux-2.txt2img.v1", 60_000)
    assert len(added(ENTRY).enabled) == 6


def test_an_entry_of_a_built_in_type_takes_its_place() -> None:
    dearer = ENTRY.replace("inference.flux-2.txt2img.v1", "inference.flux-kontext.pro.txt2img.v2").replace(
        "flux-2", "pro"
    )
    found = added(dearer).find("generate", "pro")
    assert found is not None
    assert found.price == 60_000
    assert len(added(dearer).enabled) == 5


def test_a_built_in_type_can_be_taken_out() -> None:
    entry = ENTRY.replace("inference.flux-2.txt2img.v1", "inference.flux-kontext.pro.txt2img.v2").replace(
        "flux-2", "pro"
    )
    assert added(entry.replace("typical", "enabled = false\ntypical")).find("generate", "pro") is None


def test_an_entry_may_lack_a_price_and_an_empty_file_adds_nothing() -> None:
    found = added(ENTRY.replace('price_usd = "0.06"\n', "")).find("generate", "flux-2")
    assert found is not None
    assert found.price is None
    assert len(added("").jobs) == len(load().jobs)


MISTAKES = [
    ('"0.06"', "0.06", "own.toml:5: job.price_usd: "),
    ('"0.06"', '"0"', "own.toml:5: job.price_usd: must be above zero"),
    ('"0.06"', '"0.0000001"', "own.toml:5: job.price_usd: must be above zero, up to 1000000000, and have"),
    ('"0.06"', '"0,06"', "own.toml:5: job.price_usd: must be a decimal amount"),
    ('"0.06"', '"inf"', "own.toml:5: job.price_usd: "),
    ("typical_seconds = 9\n", "", "own.toml:1: job.typical_seconds: Field required"),
    ("typical_seconds = 9", "typical_seconds = 0", "own.toml:6: job.typical_seconds: "),
    ('"generate"', '"inpaint"', "own.toml:4: job.operation: "),
    ('"generate"', '"edit"', "own.toml:1: job: an edit has inputs"),
    ('variant = "flux-2"', 'variant = "auto"', "own.toml:3: job.variant: the variant name auto is taken"),
    ('variant = "flux-2"', 'variant = "pro"', "own.toml:2: job.variant: "),
    ("price_usd", "price", "own.toml:5: job.price: "),
    ("required = true", "requird = true", "own.toml:8: job.parameters.prompt.requird: "),
    ('"string"', '"text"', "own.toml:8: job.parameters.prompt.kind: "),
    ("default = 30", "default = 51", "own.toml:9: job.parameters.steps: the default must be an integer from 1 to 50"),
    ("maximum = 50, default = 30", "maximum = 0", "own.toml:9: job.parameters.steps: the minimum is above the maximum"),
    ("maximum = 50, default = 30", 'role = "seed"', "own.toml:9: job.parameters.steps: a seed needs"),
    (
        "maximum = 50, default = 30",
        'maximum = 6, role = "safety"',
        "own.toml:9: job.parameters.steps: a safety parameter",
    ),
    (
        '{ kind = "integer", minimum = 1',
        '{ kind = "choice", minimum = 1',
        "own.toml:9: job.parameters.steps: `choices`",
    ),
    ("steps =", "user =", "own.toml:1: job: the gateway's own fields cannot be parameters: user"),
    ("default = 30 }", "default = 30", "own.toml:9: not TOML: "),
    ("[[job]]", "[[jobs]]", "own.toml:1: job: must be [[job]] entries"),
    ("[[job]]", '[defaults]\nname = "x"\n[[job]]', "own.toml:1: defaults: unknown"),
    (
        "typical",
        INPUT.replace('"png"', '"gif"') + "typical",
        "own.toml:6: job.inputs.0: formats are png, jpeg and webp",
    ),
    ("typical", INPUT.replace("256", "2560") + "typical", "own.toml:6: job.inputs.0: sides go from 1 to 16384"),
    ("typical", INPUT + "typical", "own.toml:1: job: an edit has inputs, a generate has none"),
]


@pytest.mark.parametrize(("right", "wrong", "told"), MISTAKES)
def test_a_mistake_is_told_with_file_line_and_field(right: str, wrong: str, told: str) -> None:
    assert right in ENTRY
    assert any(line.startswith(told) for line in mistakes(ENTRY.replace(right, wrong, 1)))


def test_every_mistake_of_a_file_is_told_and_each_in_its_own_entry() -> None:
    second = ENTRY.replace("flux-2", "flux-3").replace('"0.06"', '"-1"')
    found = mistakes(
        ENTRY.replace("default = 30", "default = 0") + "\n# another\n [[ job ]] # with a comment\n" + second[8:]
    )
    assert [line.partition(": ")[0] for line in found] == ["own.toml:9", "own.toml:16"]


def test_two_entries_of_one_type_are_a_mistake_and_not_the_last_of_them() -> None:
    assert mistakes(ENTRY + ENTRY) == ("own.toml:10: job.type: inference.flux-2.txt2img.v1 has an entry already",)
