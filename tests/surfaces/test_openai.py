"""OpenAI's images API to the byte: an answer of every kind, and what headers and names do there."""

from __future__ import annotations

import base64
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from app.errors import CODES
from tests.e2e.exchange import FORM, form, make_keys
from tests.fleet import Fleet, fleet
from tests.pipeline.calls import Answer, call, generate, picture, rows
from tests.surfaces.test_prodia import ALIKE, KINDS

GOLDEN = Path(__file__).parent / "golden_openai"
MAKE, EDIT = "/v1/images/generations", "/v1/images/edits"
PHOTO = picture()
JSON = {"Content-Type": "application/json"}
DEAF = {"User-Agent": "ai/7.0.0 ai-sdk-provider-utils/5.0.0 node.js/24"}
SHOWN = ("content-type", "retry-after", "x-should-retry", "www-authenticate", "allow", "cache-control", "gateway-seed",
         "gateway-source", "gateway-cost-usd", "gateway-safety", "gateway-missing")  # fmt: skip
TENANTS = {
    "shop": "safety: {allow_without_knob: [dev]}",
    "strict": "safety: {generate: {ceiling: 1}, edit: {ceiling: 1}, mode: reject}",
    "proonly": "variants: {generate: [pro], edit: [pro]}",
    "broke": 'limits: {budgets: [{usd: "0.04", per: month}]}',
    "images": "limits: {images: [{max: 1, per: month}]}",
    "hourly": "limits: {requests: {rate: 1/1h}}",
    "brisk": "limits: {requests: {rate: 1/30s}}",
    "private": "limits: {per_user: {requests: {rate: 1/1h}}}",
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """Two tenants have spent what they have. A busy upstream is given up after some seconds."""
    blocks = "".join(f"  {name}: {{{block}}}\n" for name, block in TENANTS.items())
    fast = ("--time-scale", "0", "--picture", "small")
    with fleet(
        tmp_path_factory.mktemp("openai"),
        f"version: 1\ntenants:\n{blocks}",
        sandbox=fast,
        GATEWAY_UPSTREAM_DEADLINE="6s",
        GATEWAY_REDIS_TIMEOUT="2s",
    ) as running:
        yield running


@pytest.fixture(scope="module")
def tokens(made: Fleet) -> dict[str, str]:
    found = make_keys(made, TENANTS)
    for tenant in ("broke", "images"):
        assert generate(made.replicas[0].url, found[tenant]).status == 200
    return found


def post(
    made: Fleet,
    token: str,
    path: str = MAKE,
    headers: dict[str, str] | None = None,
    raw: bytes | None = None,
    **fields: Any,
) -> Answer:
    """One call with JSON."""
    body = json.dumps({"prompt": "a lighthouse at dawn"} | fields).encode() if raw is None else raw
    return call(made.replicas[0].url, path, token, body=body, headers=JSON | (headers or {}))


def upload(made: Fleet, token: str, *parts: tuple[str, bytes, str], **fields: str) -> Answer:
    """An edit as a form."""
    texts = [(name, value.encode(), "") for name, value in ({"prompt": "make the sky stormy"} | fields).items()]
    body = form(*texts, *parts)
    return call(made.replicas[0].url, EDIT, token, body=body, headers={"Content-Type": FORM})


def file(name: str = "image") -> tuple[str, bytes, str]:
    return name, PHOTO, '; filename="photo.png"\r\nContent-Type: image/png'


def written(answer: Answer) -> str:
    """An answer as text, with what differs from one to the next replaced by its kind."""

    def shown(found: re.Match[str]) -> str:
        data = base64.b64decode(found[1])
        return f'"b64_json":"<{next(kind for kind, magic in KINDS.items() if data.startswith(magic))}>"'

    text = re.sub(r'"b64_json":"([^"]+)"', shown, answer.body.decode())
    head = [f"{answer.status}", *(f"{name}: {answer.headers[name]}" for name in SHOWN if name in answer.headers)]
    text = "\n".join(head) + "\n\n" + text + "\n"
    for pattern, kind in (
        *ALIKE,
        (r"http://127.0.0.1:\d+", "<gateway>"),
        (r"\?t=\w+&k=\w+&e=\d+&s=<sha256>", "<signature>"),
    ):
        text = re.sub(pattern, kind, text)
    return text


def golden(made: Fleet, tokens: dict[str, str]) -> Iterator[tuple[str, Answer]]:
    """One answer of every kind."""
    shop = tokens["shop"]
    yield "success", post(made, shop, seed=11, size="1792x1024")
    yield "success_from_the_cache", post(made, shop, seed=11, size="1792x1024", output_format="jpeg")
    yield "success_as_png", post(made, shop, seed=11, output_format="png", model="max")
    yield "success_as_links", post(made, shop, seed=12, n=2, response_format="url")
    yield "success_of_an_edit", upload(made, shop, file(), seed="13", model="flux-kontext-dev", size="512x768")
    yield (
        "success_of_an_edit_in_json",
        post(
            made,
            shop,
            EDIT,
            seed=13,
            images=[{"image_url": "data:image/png;base64," + base64.b64encode(PHOTO).decode()}],
        ),
    )
    yield "model", call(made.replicas[0].url, "/v1/models/flux-kontext-pro", shop)
    yield "no_model", call(made.replicas[0].url, "/v1/models/gpt-image-1", shop)
    yield "unknown_model", post(made, shop, model="gpt-image-1")
    yield "unknown_field", post(made, shop, sead=7)
    yield "wrong_prompt", post(made, shop, prompt="hi")
    yield "wrong_size", upload(made, shop, file(), model="dev", size="512x500")
    yield "no_mask", upload(made, shop, file(), file("mask"))
    yield "one_image", upload(made, shop, file("image[]"), file("image[]"))
    yield "no_image", upload(made, shop)
    yield "no_stream", post(made, shop, stream=True)
    yield "unreadable", post(made, shop, raw=b"{")
    yield "no_json", call(made.replicas[0].url, MAKE, shop, body=b"x", headers={"Content-Type": "text/plain"})
    yield "wrong_key", post(made, "kgw_live_nobody")
    yield "refused_variant", post(made, tokens["proonly"], model="max")
    yield "refused_by_ceiling", post(made, tokens["strict"], safety_tolerance=2)
    yield "refused_by_budget", post(made, tokens["broke"], seed=1)
    yield "refused_by_budget_to_a_deaf_client", post(made, tokens["broke"], headers=DEAF, seed=1)
    yield "refused_by_image_quota", post(made, tokens["images"], seed=1)
    assert post(made, tokens["brisk"], seed=11).status == 200
    yield "refused_by_rate", post(made, tokens["brisk"], seed=11)
    assert post(made, tokens["hourly"], seed=11).status == 200
    yield "refused_by_a_rate_that_lasts", post(made, tokens["hourly"], seed=11)
    yield "refused_without_user", post(made, tokens["private"], seed=1)
    yield "not_cached", post(made, shop, headers={"Cache-Control": "only-if-cached"}, seed=999)
    for name, fault in (
        ("moderated", {"kind": "moderated_prompt"}), ("failed", {"kind": "failed"}),
        ("lost", {"kind": "cut_after_accept"}), ("unusable", {"kind": "malformed"}),
        ("upstream_refused_our_token", {"kind": "unauthorised"}), ("busy", {"kind": "busy"}),
    ):  # fmt: skip
        made.faults([fault])
        yield name, post(made, shop, seed=len(name))
    made.faults([{"kind": "cut_after_accept"}])
    yield "lost_to_a_deaf_client", post(made, shop, headers=DEAF, seed=77)
    made.faults([{"kind": "moderated_prompt", "count": 1}])
    yield "one_is_missing", post(made, shop, n=2, seed=80)
    made.faults([])
    made.server.freeze()
    try:
        yield "without_a_ledger", post(made, shop, seed=1)
    finally:
        made.server.thaw()


def test_every_kind_of_answer_is_what_it_was_to_the_byte(made: Fleet, tokens: dict[str, str]) -> None:
    """With KGW_GOLDEN=write the answers of today are written down instead."""
    answers = {name: written(answer) for name, answer in golden(made, tokens)}
    if os.environ.get("KGW_GOLDEN") == "write":
        GOLDEN.mkdir(exist_ok=True)
        for name, text in answers.items():
            (GOLDEN / f"{name}.txt").write_text(text)
    assert answers == {file.stem: file.read_text() for file in GOLDEN.glob("*.txt")}


def test_every_error_has_openais_shape_and_one_of_our_codes() -> None:
    """Read from the answers above."""
    for file in GOLDEN.glob("*.txt"):
        head, _, body = file.read_text().partition("\n\n")
        if int(head[:3]) < 400:
            continue
        error = json.loads(body.replace(",<wait>", "").replace("<n>", "0"))["error"]
        assert set(error) == {"message", "type", "param", "code", "gateway"}, file
        assert error["gateway"]["code"] in CODES
        assert error["gateway"]["charged"] in ("no", "unknown")
        assert "x-should-retry: " in head


def test_a_call_with_a_name_is_made_once_and_its_answer_repeated(made: Fleet, tokens: dict[str, str]) -> None:
    name = {"Idempotency-Key": "order-1"}
    first, again = (post(made, tokens["shop"], headers=name) for _ in range(2))
    assert (first.status, first.body) == (200, again.body)
    assert again.headers["idempotency-replayed"] == "true"
    assert "idempotency-replayed" not in first.headers
    other = post(made, tokens["shop"], headers=name, prompt="something else")
    assert (other.status, other.json["error"]["code"]) == (422, "idempotency_mismatch")
    native = generate(made.replicas[0].url, tokens["shop"], name)
    assert native.headers["gateway-job-id"] != first.headers["gateway-job-id"]


def test_the_cache_is_one_for_all_surfaces(made: Fleet, tokens: dict[str, str]) -> None:
    ours = post(made, tokens["shop"], seed=500, size="2048x1024")
    native = generate(made.replicas[0].url, tokens["shop"], seed=500, aspect_ratio="2:1")
    assert native.source == "cache"
    assert base64.b64decode(ours.json["data"][0]["b64_json"]) == native.body
    fresh = post(made, tokens["shop"], headers={"Cache-Control": "no-cache"}, seed=500, size="2048x1024")
    assert fresh.headers["gateway-source"] == "upstream"


def test_the_end_user_is_known_under_both_of_openais_names(made: Fleet, tokens: dict[str, str]) -> None:
    assert post(made, tokens["private"], seed=11, user="ada").status == 200
    refused = post(made, tokens["private"], seed=11, safety_identifier="ada")
    assert (refused.status, refused.json["error"]["gateway"]["level"]) == (429, "user")
    assert post(made, tokens["private"], seed=11, safety_identifier="bob").status == 200
    assert {row["user"] for row in rows(made, "private")} == {"ada"}
    wrong = post(made, tokens["private"], seed=11, safety_identifier="x" * 200)
    assert (wrong.status, wrong.json["error"]["param"]) == (422, "safety_identifier")


def test_links_begin_where_the_operator_says(made: Fleet, tokens: dict[str, str]) -> None:
    replica = made.start(GATEWAY_PUBLIC_URL="https://images.example/kontext/")
    body = json.dumps({"prompt": "a lighthouse at dawn", "seed": 11, "response_format": "url"}).encode()
    answer = call(replica.url, MAKE, tokens["shop"], body=body, headers=JSON)
    replica.stop()
    assert answer.json["data"][0]["url"].startswith("https://images.example/kontext/v1/images/img_")


def test_metrics_and_logs_tell_the_surface_and_count_each_picture(made: Fleet, tokens: dict[str, str]) -> None:
    replica = made.replicas[0]
    labels = {"tenant": "strict", "operation": "generate", "variant": "pro"}
    before = replica.total("kontext_gateway_images_total", **labels)
    assert post(made, tokens["strict"], n=3, seed=900, safety_tolerance=1).status == 200
    call(replica.url, "/v1/me", "nobody's")
    assert replica.total("kontext_gateway_images_total", **labels) == before + 3
    assert replica.total("kontext_gateway_requests_total", tenant="strict", surface="openai", outcome="ok") == 1
    line = [json.loads(line) for line in replica.log.read_text().splitlines() if '"tenant":"strict"' in line][-1]
    assert (line["surface"], line["cost_micro_usd"], line["attempts"]) == ("openai", 120_000, 3)


@pytest.mark.parametrize("wish", ["respond-async", "respond-async, wait=0", "wait=1"])
def test_what_a_caller_prefers_is_not_asked_here(made: Fleet, tokens: dict[str, str], wish: str) -> None:
    """OpenAI's clients know no 202: they are answered with the picture, and nothing goes into the queue."""
    made.faults([{"kind": "slow", "count": 1, "options": {"after_seconds": 1.5}}])
    answer = post(made, tokens["shop"], headers={"Prefer": wish})
    assert (answer.status, len(answer.json["data"])) == (200, 1)
    assert "preference-applied" not in answer.headers
    told = call(made.replicas[0].url, f"/v1/jobs/{answer.headers['gateway-job-id']}", tokens["shop"])
    assert told.json["state"] == "succeeded"
    with made.redis as client:
        assert not list(client.scan_iter("kg:{t:shop}:job:*"))
