"""Another of Prodia's job types is one entry of the catalogue file: parameters, inputs, price, and no line of code."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from io import BytesIO
from typing import Any

import pytest
from PIL import Image

from tests.fleet import Fleet, fleet
from tests.pipeline.calls import Policies, call, edit, generate, new_key, picture
from tests.pipeline.stand_in import Sent, StandIn, stand_in

OWN = """
[[job]]
type = "inference.flux-2.dev.txt2img.v1"
variant = "flux-2"
operation = "generate"
price_usd = "0.06"
typical_seconds = 9
[job.parameters]
prompt = { kind = "string", required = true, min_length = 1, max_length = 10000 }
width = { kind = "integer", minimum = 64, maximum = 2048, multiple_of = 16, default = 1024 }
guidance = { kind = "number", minimum = 1.5, maximum = 10, default = 4 }
raw = { kind = "boolean" }
look = { kind = "choice", choices = ["soft", "hard"] }
noise = { kind = "integer", role = "seed", minimum = 1, maximum = 4294967295 }

[[job]]
type = "inference.flux-fill.inpaint.v1"
variant = "fill"
operation = "edit"
price_usd = "0.05"
typical_seconds = 8
inputs = [
  { name = "image", formats = ["png", "jpeg", "webp"], min_side = 64, max_side = 1920, max_bytes = 10_000_000 },
  { name = "mask", formats = ["png"], min_side = 64, max_side = 1920, max_bytes = 1_000_000 },
]
[job.parameters]
prompt = { kind = "string", required = true, min_length = 3, max_length = 4096 }
strength = { kind = "number", minimum = 0, maximum = 1, default = 0.85 }
seed = { kind = "integer", role = "seed", minimum = 0, maximum = 9007199254740991 }

[[job]]
type = "inference.flux-2.pro.txt2img.v1"
variant = "unpriced"
operation = "generate"
typical_seconds = 9
[job.parameters]
prompt = { kind = "string", required = true }
"""
PHOTO, MASK = picture((1, 2, 3)), picture((255, 255, 255), side=96)


@pytest.fixture(scope="module")
def upstream() -> Iterator[StandIn]:
    with stand_in() as found:
        yield found


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory, upstream: StandIn) -> Iterator[Fleet]:
    folder = tmp_path_factory.mktemp("own")
    (folder / "catalog.toml").write_text(OWN)
    blocks = {
        "acme": "variants: {generate: [pro, flux-2, unpriced], edit: [fill, dev]}",
        "held": "safety: {generate: {ceiling: 4}, edit: {ceiling: 2}, allow_without_knob: [fill]}",
    }
    catalog: dict[str, Any] = {"GATEWAY_CATALOG_FILE": str(folder / "catalog.toml"), "PRODIA_BASE_URL": upstream.url}
    with fleet(folder, Policies(blocks).text, **catalog) as found:
        yield found


@pytest.fixture(scope="module")
def token(own: Fleet) -> str:
    return new_key(own, "acme")[1]


@pytest.fixture
def url(own: Fleet) -> str:
    return own.replicas[0].url


def test_a_generate_type_is_sold_with_its_own_parameters_and_price(upstream: StandIn, url: str, token: str) -> None:
    asked: dict[str, Any] = {"width": 2_048, "guidance": 2.75, "raw": True, "look": "hard", "noise": 4_294_967_295}
    answer = generate(url, token, variant="flux-2", prompt='a "tall" ship\n⛵', output_format="png", **asked)
    assert answer.status == 200, answer.body
    document, inputs = upstream.last
    assert document == {"type": "inference.flux-2.dev.txt2img.v1", "config": {"prompt": 'a "tall" ship\n⛵', **asked}}
    assert (inputs, upstream.paths[-1]) == ([], "/v2/job?price=true")
    assert upstream.received[-1][0].content_type == "application/json"
    assert answer.headers["gateway-cost-usd"] == "0.060000"
    assert (answer.headers["gateway-variant"], answer.headers["gateway-seed"]) == ("flux-2", "4294967295")
    assert Image.open(BytesIO(answer.body)).format == "PNG"


def test_its_defaults_and_a_seed_of_its_own_range_are_sent(upstream: StandIn, url: str, token: str) -> None:
    for _ in range(8):
        assert generate(url, token, variant="flux-2", output_format="png").status == 200
        config = upstream.last[0]["config"]
        assert 1 <= config.pop("noise") <= 4_294_967_295
        assert config == {"prompt": "a lighthouse at dawn", "width": 1_024, "guidance": 4}


def test_a_value_outside_its_own_range_is_refused(upstream: StandIn, url: str, token: str) -> None:
    before = len(upstream.received)
    wrong: Any
    for field, wrong in (("width", 2_064), ("guidance", 1), ("look", "Soft"), ("noise", 0), ("seed", 7)):
        answer = generate(url, token, variant="flux-2", output_format="png", **{field: wrong})
        assert (answer.refusal, answer.json["field"]) == ((422, "invalid_request", "no"), field)
    assert len(upstream.received) == before


@pytest.mark.parametrize("order", [("image", "mask"), ("mask", "image")])
def test_two_inputs_reach_the_upstream_in_the_catalogues_order(
    upstream: StandIn, url: str, token: str, order: tuple[str, str]
) -> None:
    files = {"image": PHOTO, "mask": MASK}
    answer = edit(
        url, token, {name: files[name] for name in order}, {"Cache-Control": "no-store"},
        variant="fill", output_format="png", strength="0.5", seed="7",
    )  # fmt: skip
    assert answer.status == 200, answer.body
    document, inputs = upstream.last
    assert document == {
        "type": "inference.flux-fill.inpaint.v1",
        "config": {"prompt": "make the sky stormy", "strength": 0.5, "seed": 7},
    }
    assert inputs == [Sent("input", "image.png", "image/png", PHOTO), Sent("input", "mask.png", "image/png", MASK)]
    first = upstream.received[-1][0]
    assert (first.name, first.filename, first.content_type) == ("job", "job.json", "application/json")
    assert answer.headers["gateway-cost-usd"] == "0.050000"


@pytest.mark.parametrize("files", [{"image": PHOTO}, {"mask": MASK}, {"image": PHOTO, "mask": MASK, "third": MASK}])
def test_exactly_its_inputs_are_taken(upstream: StandIn, url: str, token: str, files: dict[str, bytes]) -> None:
    before = len(upstream.received)
    answer = edit(url, token, files, variant="fill", output_format="png")
    assert answer.refusal == (422, "invalid_request", "no")
    assert answer.json["field"] in ("image", "mask", "third")
    assert len(upstream.received) == before


def test_each_input_is_held_to_its_own_rule(upstream: StandIn, url: str, token: str) -> None:
    jpeg = BytesIO()
    Image.new("RGB", (96, 96)).save(jpeg, "JPEG")
    before = len(upstream.received)
    answer = edit(url, token, {"image": PHOTO, "mask": jpeg.getvalue()}, variant="fill", output_format="png")
    assert (answer.refusal, answer.json["field"]) == ((415, "unsupported_type", "no"), "mask")
    assert len(upstream.received) == before


def test_the_masks_bytes_are_part_of_what_is_cached(upstream: StandIn, url: str, token: str) -> None:
    def ask(mask: bytes) -> str:
        answer = edit(url, token, {"image": PHOTO, "mask": mask}, variant="fill", output_format="png", seed="11")
        assert answer.status == 200, answer.body
        return answer.source

    other = picture((0, 0, 0), side=96)
    assert [ask(MASK), ask(MASK), ask(other), ask(other)] == ["upstream", "cache", "upstream", "cache"]


def test_a_type_without_a_price_is_refused_and_nothing_is_sent(
    own: Fleet, upstream: StandIn, url: str, token: str
) -> None:
    before = len(upstream.received)
    answer = generate(url, token, variant="unpriced", output_format="png")
    assert answer.refusal == (409, "price_unknown", "no")
    assert len(upstream.received) == before
    assert own.redis.zcard("kg:{t:acme}:open") == 0


def test_a_type_without_the_safety_knob_is_held_to_the_policy(upstream: StandIn, own: Fleet, url: str) -> None:
    _, held = new_key(own, "held")
    before = len(upstream.received)
    assert generate(url, held, variant="flux-2", output_format="png").refusal == (403, "safety_ceiling", "no")
    assert len(upstream.received) == before
    assert edit(url, held, {"image": PHOTO, "mask": MASK}, variant="fill", output_format="png").status == 200


def test_the_model_list_shows_it(url: str, token: str) -> None:
    listed = {model["variant"]: model for model in call(url, "/v1/models", token).json["data"]}
    assert listed["flux-2"]["price"] == {"micro_usd": 60_000, "usd": "0.060000"}
    assert listed["flux-2"]["parameters"]["width"]["maximum"] == 2_048
    assert [rule["name"] for rule in listed["fill"]["inputs"]] == ["image", "mask"]
    assert listed["unpriced"]["price"] is None


def test_json_carries_both_inputs_too(upstream: StandIn, url: str, token: str) -> None:
    body = {
        "prompt": "make the sky stormy", "variant": "fill", "output_format": "png", "seed": 12,
        "image": {"b64": base64.b64encode(PHOTO).decode()},
        "mask": "data:image/png;base64," + base64.b64encode(MASK).decode(),
    }  # fmt: skip
    answer = call(url, "/v1/edit", token, body=json.dumps(body).encode(), headers={"Content-Type": "application/json"})
    assert answer.status == 200, answer.body
    assert [(one.filename, one.data) for one in upstream.last[1]] == [("image.png", PHOTO), ("mask.png", MASK)]
