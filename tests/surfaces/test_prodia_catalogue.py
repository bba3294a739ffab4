"""A job type of the operator's own catalogue file is sold on the Prodia surface too, by its data alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from app.domain.catalog import CatalogError, load
from tests.e2e.exchange import FORM, form
from tests.fleet import Fleet, fleet
from tests.pipeline.calls import picture
from tests.pipeline.stand_in import StandIn, stand_in
from tests.surfaces.jobs import JPEG, JSON, body, document, parts, post

CATALOG = """
[[job]]
type = "inference.example-fill.inpaint.v1"
variant = "fill"
operation = "edit"
price_usd = "0.05"
typical_seconds = 8
left_out = ["include_messages", "loras"]
inputs = [{ name = "image", min_side = 64 }, { name = "mask", formats = ["png"], min_side = 64 }]
[job.parameters]
prompt = { kind = "string", required = true, min_length = 3, max_length = 4096 }
strength = { kind = "number", minimum = 0, maximum = 1, default = 0.85 }

[[job]]
type = "inference.example-talk.img2img.v2"
variant = "talk"
operation = "edit"
price_usd = "0.039"
typical_seconds = 8
inputs = [{ name = "image" }]
[job.parameters]
prompt = { kind = "string", required = true }
include_messages = { kind = "boolean", default = false }
images = { kind = "string" }
"""
FILL, TALK = "inference.example-fill.inpaint.v1", "inference.example-talk.img2img.v2"
PNG = "multipart/form-data; image/png"
PHOTO, MASK = picture((1, 2, 3)), picture((255, 255, 255), side=96)


@pytest.fixture(scope="module")
def upstream() -> Iterator[StandIn]:
    with stand_in() as found:
        yield found


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory, upstream: StandIn) -> Iterator[Fleet]:
    folder: Path = tmp_path_factory.mktemp("own")
    (folder / "catalog.toml").write_text(CATALOG)
    more = {"GATEWAY_CATALOG_FILE": str(folder / "catalog.toml"), "PRODIA_BASE_URL": upstream.url}
    more["GATEWAY_REDIS_TIMEOUT"] = "5s"
    with fleet(folder, "version: 1\ntenants:\n  acme: {}\n", **more) as running:
        yield running


@pytest.fixture(scope="module")
def token(own: Fleet) -> str:
    return own.token("acme")


def test_its_inputs_are_those_of_the_catalogue_in_their_order(own: Fleet, upstream: StandIn, token: str) -> None:
    content = body(FILL, strength=0.5, include_messages=True, loras=["x"])
    sent: Any = form(*[("input", data, JPEG) for data in (PHOTO, PHOTO, MASK, MASK)], ("job", content, JSON))
    target = "/v2/job?price=true"
    answer = post(own.urls[0], token, sent, content_type=FORM, accept=PNG, target=target)
    assert answer.status == 200, answer.body
    assert answer.headers["gateway-left-out"] == "include_messages, loras"
    told, inputs = upstream.last
    assert told == {"type": FILL, "config": {"prompt": "a lighthouse at dawn", "strength": 0.5}}
    assert [(part.filename, part.data) for part in inputs] == [("image.png", PHOTO), ("mask.png", MASK)]
    mine = document(answer)
    assert (mine["type"], mine["price"]["dollars"], mine["gateway"]["variant"]) == (FILL, 0.05, "fill")
    assert len(parts(answer)) == 2


def test_the_order_can_be_told_by_file_names(own: Fleet, upstream: StandIn, token: str) -> None:
    names = (("m.png", MASK), ("i.png", PHOTO))
    files = [("input", data, f'; filename="{name}"\r\nContent-Type: image/png') for name, data in names]
    content = body(FILL, images=["i.png", "m.png"])
    answer = post(own.urls[0], token, form(("job", content, JSON), *files), content_type=FORM, accept=PNG)
    assert answer.status == 200, answer.body
    assert [part.data for part in upstream.last[1]] == [PHOTO, MASK]


def test_one_input_too_few_or_too_many_is_refused(own: Fleet, upstream: StandIn, token: str) -> None:
    before = len(upstream.received)
    for given, says in (
        ((PHOTO,), "minItems: got 1, want 2"),
        ((PHOTO, MASK, picture((7, 7, 7))), "maxItems: got 3, want 2"),
    ):
        answer = post(own.urls[0], token, body(FILL), inputs=given, accept=PNG)
        assert (answer.status, says in document(answer)["error"]) == (400, True)
    assert len(upstream.received) == before


def test_a_key_that_one_type_leaves_out_is_a_parameter_of_another(own: Fleet, upstream: StandIn, token: str) -> None:
    content = body(TALK, include_messages=True, images="any text")
    answer = post(own.urls[0], token, content, inputs=(PHOTO,), accept=PNG)
    assert (answer.status, "gateway-left-out" in answer.headers) == (200, False)
    assert upstream.last[0]["config"] == {
        "prompt": "a lighthouse at dawn",
        "include_messages": True,
        "images": "any text",
    }
    refused = post(own.urls[0], token, body(TALK, loras=["x"]), inputs=(PHOTO,), accept=PNG)
    assert (refused.status, document(refused)["gateway"]["field"]) == (400, "loras")


def test_what_a_type_has_cannot_be_left_out() -> None:
    with pytest.raises(CatalogError, match=r"own.toml:2: job: what the type has cannot be left out: prompt"):
        load(CATALOG.replace('"loras"', '"prompt"'), file="own.toml")
