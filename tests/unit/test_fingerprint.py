"""The cache digest: everything that changes pixels is in it, nothing else is, and nobody can guess it from outside."""

from __future__ import annotations

import dataclasses
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.domain.catalog import load
from app.domain.fingerprint import INCLUDED, LEFT_OUT, fingerprint, scope_secret
from app.domain.job import Choice, Job, Request
from app.domain.policy import apply
from app.domain.tenant import KeyPolicy, Limits, SafetyRule
from app.domain.upload import Upload
from app.domain.validate import validate
from tests.unit.asks import CATALOG, ask, caller, request, tenant

PEPPER = b"pepper-of-the-tests-0123456789abcdef"
SECRET = scope_secret(PEPPER, "t:acme")
WIDE = tenant({"generate": SafetyRule(6), "edit": SafetyRule(2)}, without=("dev", "flux-2"))


def job(found: Request, who: Any = WIDE) -> Job:
    return apply(caller(who), found)


def digest(found: Request, *, secret: bytes = SECRET, gate: int = 1, keep: bool = False) -> str:
    return fingerprint(job(found), secret=secret, gate_version=gate, keep_metadata=keep)


PROMPTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=3, max_size=12)
SEEDS = st.integers(0, 2**53 - 1)
RATIOS = st.builds("{}:{}".format, st.integers(1, 99_999), st.integers(1, 99_999))
FORMATS = st.sampled_from(["jpeg", "png", "webp"])
SIDES = st.sampled_from(range(512, 1_025, 32))
COMMON = {"prompt": PROMPTS, "seed": SEEDS, "output_format": FORMATS}
KONTEXT = COMMON | {
    "variant": st.sampled_from(["pro", "max"]),
    "aspect_ratio": RATIOS,
    "prompt_upsampling": st.booleans(),
}
FIELDS: dict[str, dict[str, st.SearchStrategy[Any]]] = {
    "generate": KONTEXT | {"safety_tolerance": st.integers(0, 6)},
    "edit": KONTEXT | {"safety_tolerance": st.integers(0, 2), "fit": st.sampled_from(["auto", "strict"])},
    "dev": COMMON
    | {
        "variant": st.just("dev"),
        "style_preset": st.sampled_from(["anime", "origami", "texture"]),
        "width": SIDES,
        "height": SIDES,
        "steps": st.integers(1, 50),
        "guidance_scale": st.floats(0.001, 1e6) | st.integers(1, 1_000),
        "fit": st.sampled_from(["auto", "strict"]),
    },
}


def operation(kind: str) -> str:
    return "generate" if kind == "generate" else "edit"


@st.composite
def two_that_differ_in_one(draw: st.DrawFn) -> tuple[str, dict[str, Any], str, Any]:
    kind = draw(st.sampled_from(sorted(FIELDS)))
    fields = {name: draw(values) for name, values in FIELDS[kind].items()}
    name = draw(st.sampled_from(sorted(FIELDS[kind].keys() - ({"variant"} if kind == "dev" else set()))))
    return kind, fields, name, draw(FIELDS[kind][name].filter(lambda other: other != fields[name]))


@given(two_that_differ_in_one())
def test_two_requests_that_differ_in_any_one_field_that_changes_pixels_have_two_digests(
    drawn: tuple[str, dict[str, Any], str, Any],
) -> None:
    kind, fields, name, other = drawn
    assert digest(request(operation(kind), **fields)) != digest(request(operation(kind), **fields | {name: other}))


@given(st.data())
def test_equal_requests_have_one_digest_in_whatever_order_and_spelling_they_come(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(sorted(FIELDS)))
    fields = {name: data.draw(values) for name, values in FIELDS[kind].items()}
    shuffled = dict(data.draw(st.permutations(sorted(fields.items()))))
    for name in ("guidance_scale",):
        if isinstance(fields.get(name), int):
            shuffled[name] = float(fields[name])
    as_form = {name: str(value).lower() if isinstance(value, bool) else str(value) for name, value in fields.items()}
    form = ask(operation(kind), textual=True, **as_form)
    first = digest(request(operation(kind), **fields))
    assert digest(request(operation(kind), **shuffled)) == first
    plain = "guidance_scale" not in fields or "e" not in as_form["guidance_scale"]
    if plain and len(as_form.get("guidance_scale", "").partition(".")[2]) <= 18:
        assert digest(validate(form, CATALOG)) == first


DEFAULTS = [
    ("generate", "aspect_ratio", "1:1"),
    ("generate", "prompt_upsampling", False),
    ("generate", "safety_tolerance", 4),
    ("generate", "output_format", "jpeg"),
    ("generate", "variant", "pro"),
    ("generate", "response_format", "url"),
    ("edit", "safety_tolerance", 2),
    ("edit", "fit", "auto"),
    ("dev", "width", 1_024),
    ("dev", "height", 1_024),
    ("dev", "steps", 30),
    ("dev", "guidance_scale", 2.5),
    ("dev", "progressive", False),
]


@pytest.mark.parametrize(("kind", "name", "default"), DEFAULTS)
def test_a_default_that_is_written_out_is_the_same_as_one_that_is_not(kind: str, name: str, default: Any) -> None:
    fields: dict[str, Any] = {"seed": 7} | ({"variant": "dev"} if kind == "dev" else {})
    assert digest(request(operation(kind), **fields)) == digest(request(operation(kind), **fields | {name: default}))


def test_text_is_compared_by_code_points() -> None:
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    assert digest(request(seed=1, prompt=composed)) != digest(request(seed=1, prompt=decomposed))
    assert digest(request(seed=1, prompt="cat ")) != digest(request(seed=1, prompt="cat"))
    assert digest(request(seed=1, prompt='a","seed":2')) != digest(request(seed=2, prompt="aaa"))


def test_the_tolerance_counts_as_it_is_applied_and_not_as_it_was_asked() -> None:
    held = tenant({"generate": SafetyRule(1)})

    def under(asked: int | None) -> str:
        found = apply(caller(held), request(seed=7, safety_tolerance=asked))
        return fingerprint(found, secret=SECRET, gate_version=1, keep_metadata=False)

    assert under(6) == under(1) == under(None)
    assert under(0) != under(1)
    assert digest(request(seed=7, safety_tolerance=6)) != under(6)


def test_another_scope_or_pepper_gives_another_digest() -> None:
    found = request(seed=7)
    secrets = {scope_secret(PEPPER, scope) for scope in ("t:acme", "t:globex", "pool:acme", "pool:shared")}
    secrets.add(scope_secret(b"another pepper", "t:acme"))
    assert len({digest(found, secret=secret) for secret in secrets}) == 5


def test_an_upload_counts_by_its_bytes_its_place_and_what_the_gate_does_to_it() -> None:
    found = request("edit", seed=7)
    other = replace(found, uploads={"image": Upload(b"another picture")})
    again = replace(found, uploads={"image": Upload(b"a picture")})
    assert digest(found) == digest(again) != digest(other)
    assert len({digest(found), digest(found, gate=2), digest(found, keep=True)}) == 3
    generated = request(seed=7)
    assert digest(generated) == digest(generated, gate=2) == digest(generated, keep=True)


def test_a_released_upload_still_counts() -> None:
    found = request("edit", seed=7)
    before = digest(found)
    found.uploads["image"].release()
    assert digest(found) == before


def test_two_inputs_that_change_places_are_another_picture() -> None:
    one, two = Upload(b"one"), Upload(b"two")
    found = request("edit", seed=7)
    assert digest(replace(found, uploads={"image": one, "mask": two})) != digest(
        replace(found, uploads={"image": two, "mask": one})
    )


def test_the_catalogues_version_of_a_type_counts_and_its_price_does_not() -> None:
    def entry(version: int, price: str) -> Request:
        text = f"""
[[job]]
type = "inference.flux-2.txt2img.v1"
variant = "flux-2"
operation = "generate"
version = {version}
price_usd = "{price}"
typical_seconds = 9
[job.parameters]
prompt = {{ kind = "string", required = true }}
"""
        return replace(request(catalog=load(text), variant="flux-2"), seed=7)

    assert digest(entry(1, "0.05")) == digest(entry(1, "0.06"))
    assert digest(entry(1, "0.05")) != digest(entry(2, "0.05"))


def test_who_asks_and_how_the_answer_is_wanted_are_not_in_it() -> None:
    plain = request(seed=7)
    dressed = request(seed=7, user="ada", tags=["spring", "web"], response_format="b64_json")
    narrow = apply(caller(WIDE, KeyPolicy(Limits(concurrency=1))), dressed)
    assert digest(plain) == digest(dressed)
    assert fingerprint(narrow, secret=SECRET, gate_version=1, keep_metadata=False) == digest(plain)
    assert digest(replace(plain, seed_given=False)) == digest(plain)


def test_somebody_has_decided_about_every_field_of_a_request() -> None:
    decided = set(INCLUDED) | set(LEFT_OUT)
    assert decided == {field.name for field in dataclasses.fields(Request)}, "is a new field pixels or not?"
    assert not set(INCLUDED) & set(LEFT_OUT)


CHANGES: dict[str, Any] = {
    "job_type": CATALOG.find("generate", "max"),
    "parameters": {"prompt": "another"},
    "seed": 8,
    "output": "png",
    "fit": "strict",
    "uploads": {"image": Upload(b"another")},
    "safety_asked": 0,
    "seed_given": False,
    "response_format": "b64_json",
    "user": "ada",
    "tags": ("spring",),
    "given": frozenset({"prompt", "seed"}),
    "chosen": Choice("pro", "because"),
}


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(Request)])
def test_a_field_changes_the_digest_exactly_when_it_is_listed_to(name: str) -> None:
    found = request("edit", seed=7)
    change: Any = {name: CATALOG.find("edit", "max") if name == "job_type" else CHANGES[name]}
    changed = replace(found, **change)
    assert (digest(changed) != digest(found)) is (name in INCLUDED)


def test_a_digest_is_64_hex_characters_and_holds_nothing_of_the_prompt() -> None:
    found = digest(request(seed=7, prompt="a very secret campaign"))
    assert len(found) == 64
    assert int(found, 16) > 0
