"""OpenAI's fields as ours: what is translated, what passes because it asks for nothing, and what is refused by name."""

from __future__ import annotations

import json
from typing import Any

import pytest

from app.domain import catalog
from app.domain.upload import Upload
from app.errors import InvalidRequest
from app.surfaces.openai_fields import WITHOUT, Order, _one_image, _order

CATALOG = catalog.load()
INPAINT = """
[[job]]
type = "inference.flux.inpaint.v1"
variant = "inpaint"
operation = "edit"
price_usd = "0.05"
typical_seconds = 5
inputs = [{ name = "image" }, { name = "mask" }]
[job.parameters]
prompt = { kind = "string", required = true }
style = { kind = "choice", choices = ["flat"] }
"""


def order(operation: str = "generate", *, form: bool = False, files: tuple[str, ...] = (), **fields: Any) -> Order:
    uploads = {name: Upload(b"x") for name in files}
    return _order(operation, {"prompt": "a boat"} | fields, uploads, CATALOG, textual=form)


def refused(field: str, operation: str = "generate", **asked: Any) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as found:
        order(operation, **asked)
    assert found.value.field == field
    assert f"`{field}`" in found.value.detail
    return found.value


@pytest.mark.parametrize(
    ("model", "variant"),
    [
        ("flux-kontext-max", "max"),
        ("max", "max"),
        ("flux-kontext-pro", "pro"),
        ("auto", "auto"),
        ("flux-kontext-auto", "auto"),
    ],
)
def test_a_model_is_a_variant(model: str, variant: str) -> None:
    assert order(model=model).ask.fields["variant"] == variant


def test_without_a_model_it_is_the_default_variant() -> None:
    assert order().ask.fields["variant"] == "pro"


@pytest.mark.parametrize("model", ["gpt-image-1", "flux-kontext-dev", "flux-kontext-", "", 7, ["pro"]])
def test_a_model_that_does_not_do_this_is_refused_with_those_that_do(model: object) -> None:
    assert refused("model", model=model).extra["choices"] == ["flux-kontext-pro", "flux-kontext-max", "auto"]


def test_a_variant_is_named_by_the_model_alone() -> None:
    refused("variant", variant="max")


@pytest.mark.parametrize(
    ("size", "ratio"),
    [
        ("1024x1024", "1:1"),
        ("1536x1024", "3:2"),
        ("1024x1792", "4:7"),
        ("512x512", "1:1"),
        ("99999x99998", "99999:99998"),
    ],
)
def test_a_size_is_an_aspect_ratio_where_the_model_has_one(size: str, ratio: str) -> None:
    assert order(size=size).ask.fields["aspect_ratio"] == ratio
    assert order(size=size, model="auto").ask.fields["aspect_ratio"] == ratio


def test_a_size_is_devs_width_and_height() -> None:
    found = order("edit", model="dev", size="512x768", form=True, files=("image",))
    assert (found.ask.fields["width"], found.ask.fields["height"]) == (512, 768)
    assert {found.spelled[name] for name in ("width", "height")} == {"size"}


@pytest.mark.parametrize("size", ["auto"])
def test_a_size_that_is_left_to_us_asks_for_nothing(size: str) -> None:
    assert set(order(size=size).ask.fields) == {"prompt", "variant"}


@pytest.mark.parametrize(
    "size", ["large", "1024", "1024x", "0x5", "1024X1024", " 1x1", "1x1\n", "100000x1", 1024, ["1x1"]]
)
def test_a_size_that_is_none_is_refused(size: object) -> None:
    refused("size", size=size)


def test_a_size_and_what_it_means_are_not_given_both() -> None:
    refused("size", size="1x1", aspect_ratio="1:1")


@pytest.mark.parametrize(("n", "form", "count"), [(1, False, 1), (10, False, 10), ("3", True, 3)])
def test_n_is_a_number_of_pictures(n: object, form: bool, count: int) -> None:
    assert order("edit", n=n, form=form).n == count


@pytest.mark.parametrize(
    ("n", "form"),
    [
        (0, False),
        (11, False),
        (True, False),
        (2.0, False),
        ("2", False),
        ("0", True),
        ("x", True),
        ("1e1", True),
        ("", True),
    ],
)
def test_n_is_held_to_its_range(n: object, form: bool) -> None:
    found = refused("n", "edit", n=n, form=form)
    assert (found.extra["minimum"], found.extra["maximum"]) == (1, 10)


def test_both_names_of_the_end_user_are_ours() -> None:
    assert order(user="ada").ask.fields["user"] == "ada"
    assert order(safety_identifier="ada").ask.fields["user"] == "ada"
    assert order(safety_identifier="ada", user=None).ask.fields["user"] == "ada"
    refused("safety_identifier", safety_identifier="ada", user="bob")


@pytest.mark.parametrize("form", [False, True])
@pytest.mark.parametrize("name", WITHOUT)
def test_what_kontext_has_not_passes_only_where_it_asks_for_nothing(name: str, form: bool) -> None:
    for neutral in WITHOUT[name].neutral:
        value = neutral if not form or isinstance(neutral, str) else json.dumps(neutral)
        assert name not in order("edit", form=form, **{name: value}).ask.fields
    for wrong in ("low-fi", 7, True, "", "False", [], {"a": 1}):
        if not form or isinstance(wrong, str):
            refused(name, "edit", form=form, **{name: wrong})


def test_a_number_is_not_taken_for_a_truth_value() -> None:
    refused("stream", stream=0)
    refused("partial_images", partial_images=False)


def test_a_file_that_kontext_has_no_use_for_is_refused() -> None:
    refused("mask", "edit", files=("image", "mask"))


def test_a_job_type_that_has_such_a_field_is_given_it() -> None:
    own = catalog.load(INPAINT, file="own.toml")
    uploads = {name: Upload(b"x") for name in ("image", "mask")}
    found = _order(
        "edit", {"model": "flux-kontext-inpaint", "prompt": "a", "style": "flat"}, uploads, own, textual=True
    )
    assert set(found.ask.uploads) == {"image", "mask"}
    assert found.ask.fields["style"] == "flat"


def test_kontexts_own_fields_go_through() -> None:
    own = {"seed": 7, "safety_tolerance": 1, "prompt_upsampling": True, "tags": ["docs"], "sead": 1}
    assert own.items() <= order(**own).ask.fields.items()


@pytest.mark.parametrize(
    ("fields", "image"),
    [
        ({"image": "data:x"}, "data:x"),
        ({"image": ["data:x"]}, "data:x"),
        ({"images": [{"image_url": "data:x"}]}, "data:x"),
        ({"images": {"image_url": "data:x"}}, "data:x"),
        ({"image": {"image_id": "img_1"}}, {"image_id": "img_1"}),
        ({}, None),
    ],
)
def test_one_image_is_found_in_every_shape_it_has(fields: dict[str, Any], image: object) -> None:
    assert _one_image(fields) == image
    assert not fields


@pytest.mark.parametrize(
    "fields",
    [{"image": ["a", "b"]}, {"images": []}, {"image": "a", "images": ["b"]}, {"images": [{"file_id": "file-1"}]}],
)
def test_other_than_one_image_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest) as found:
        _one_image(fields)
    assert found.value.field == "image"


def test_null_is_not_given_and_a_field_that_is_not_known_is_refused_all_the_same() -> None:
    known = (
        "model",
        "n",
        "size",
        "user",
        "safety_identifier",
        "seed",
        "aspect_ratio",
        "tags",
        "output_format",
        "stream",
    )
    assert set(order(**dict.fromkeys(known)).ask.fields) == {"prompt", "variant"}
    assert "sead" in order(sead=None).ask.fields
    assert "steps" in order("edit", steps=None).ask.fields
    assert "steps" not in order("edit", steps=None, model="auto").ask.fields
