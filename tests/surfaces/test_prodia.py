"""`POST /v2/job` to the byte: its answers are those of the stand-in for Prodia, but for what policy adds to them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from datetime import datetime, timedelta
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from app.domain.catalog import load
from tests.e2e.exchange import FORM, Answer, form, send
from tests.pipeline.calls import call, generate, jobs, picture, rows, together
from tests.surfaces.conftest import Desk
from tests.surfaces.jobs import BOTH, DEV, EDIT, GENERATE, JPEG, JSON, MAX, body, document, parts, post

GOLDEN = Path(__file__).parent / "golden"
PHOTO, OTHER = picture(), picture((200, 30, 30))
UUID = r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}"
KINDS = {"image/jpeg": b"\xff\xd8\xff", "image/png": b"\x89PNG", "image/webp": b"RIFF"}
SHOWN = (
    "content-type", "retry-after", "www-authenticate", "cache-control", "etag", "repr-digest", "gateway-job-id",
    "gateway-image-id", "gateway-seed", "gateway-source", "gateway-cost-usd", "gateway-safety", "gateway-left-out",
    "location", "allow", "idempotency-replayed",
)  # fmt: skip


ALIKE = (
    (UUID, "<uuid>"), (r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", "<stamp>"), (r"\b[0-9a-f]{60}\b", "<boundary>"),
    (r"\b(job|req)_[0-9A-Z]{26}", r"<\1>"), (r"img_[0-9a-f]{48}", "<image>"), (r"\b[0-9a-f]{64}\b", "<sha256>"),
    (r"\?t=\w+\\u0026k=\w+\\u0026e=\d+\\u0026s=<sha256>", "<signature>"),
    (r"sha-256=:[^:]+:", "sha-256=:<sha256>:"),
    (r'("created"|"started"|"ended"|"percent"|"reset"|"bytes"):\d+', r"\1:<n>"),
    (r'"elapsed":[\d.]+', '"elapsed":<seconds>'),
    (r'retry-after: \d+|"retry_after":\d+', "<wait>"),
)  # fmt: skip


def written(answer: Answer) -> str:
    """An answer as text, with what differs from one to the next replaced by its kind."""
    raw = answer.body
    for kind, magic in KINDS.items():
        if (at := raw.find(magic)) >= 0:
            end = raw.rfind(b"\r\n--") if raw.endswith(b"--\r\n") else len(raw)
            raw = raw[:at] + f"<{kind}>".encode() + raw[end:]
    head = [f"{answer.status}", *(f"{name}: {answer.headers[name]}" for name in SHOWN if name in answer.headers)]
    text = "\n".join(head) + "\n\n" + raw.decode().replace("\r\n", "\n")
    for pattern, shown in ALIKE:
        text = re.sub(pattern, shown, text)
    return text


def golden(desk: Desk) -> Iterator[tuple[str, Answer]]:
    """One answer of every kind."""
    shop = desk.tokens["shop"]

    def ask(tenant: str, content: bytes, **how: Any) -> Answer:
        return post(desk.url, desk.tokens[tenant], content, **how)

    yield "success", ask("shop", body(GENERATE, seed=11, aspect_ratio="16:9"), target="/v2/job?price=true")
    yield (
        "success_from_the_cache",
        ask("shop", body(GENERATE, seed=11, aspect_ratio="16:9"), target="/v2/job?price=true"),
    )
    yield (
        "success_of_an_edit_that_was_clamped",
        ask("clamped", body(EDIT, seed=11, safety_tolerance=2), inputs=(PHOTO, PHOTO)),
    )
    yield "success_with_a_key_left_out", ask("shop", body(EDIT, seed=12, include_messages=True), inputs=(PHOTO,))
    yield "success_as_a_picture", ask("shop", body(GENERATE, seed=11), accept="image/png")
    yield "success_as_a_document", ask("shop", body(GENERATE, seed=11), accept="application/json")
    yield "refused_parameter", ask("shop", body(DEV, steps=1000), inputs=(PHOTO,))
    yield "refused_parameter_as_a_document", ask("shop", body(GENERATE, safety_tolerance=7), accept="image/png")
    yield "refused_type", ask("shop", body("inference.flux-kontext.ultra.txt2img.v9"))
    yield "refused_key", post(desk.url, "kgw_live_nobody", body(GENERATE))
    yield "refused_by_ceiling", ask("strict", body(GENERATE, safety_tolerance=2))
    yield "refused_by_budget", ask("broke", body(GENERATE, seed=1))
    assert ask("brisk", body(GENERATE, seed=1)).status == 200
    yield "refused_by_rate", ask("brisk", body(GENERATE, seed=1))
    assert ask("hourly", body(GENERATE, seed=1)).status == 200
    yield "refused_by_a_rate_that_lasts", ask("hourly", body(GENERATE, seed=1))
    yield "refused_by_image_quota", ask("images", body(GENERATE, seed=1))
    yield "refused_without_user", ask("private", body(GENERATE, seed=1))
    for name, fault in (
        ("moderated", {"kind": "moderated_prompt"}), ("failed", {"kind": "failed"}),
        ("lost", {"kind": "cut_after_accept"}), ("unusable", {"kind": "malformed"}),
        ("upstream_refused_our_token", {"kind": "unauthorised"}),
    ):  # fmt: skip
        desk.fleet.faults([fault])
        yield name, ask("shop", body(GENERATE, seed=len(name)))
    desk.fleet.faults([])
    yield "unreadable", post(desk.url, shop, b"{")
    yield "wrong_method", send(desk.url, "GET", "/v2/job", [("Authorization", f"Bearer {shop}"), ("Accept", BOTH)])


def shape(answer: Answer) -> list[tuple[str, str | None, str]]:
    """The parts of an envelope without their content."""
    return [(part.name, part.filename, part.content_type) for part in parts(answer)]


def test_every_kind_of_answer_is_what_it_was_to_the_byte(desk: Desk) -> None:
    """With KGW_GOLDEN=write the answers of today are written down instead."""
    answers = {name: written(answer) for name, answer in golden(desk)}
    if os.environ.get("KGW_GOLDEN") == "write":
        for name, text in answers.items():
            (GOLDEN / f"{name}.txt").write_text(text)
    assert answers == {file.stem: file.read_text() for file in GOLDEN.glob("*.txt")}


# What is legal, and what is not, by request: both are to say the same.
LEGAL: tuple[tuple[str, dict[str, Any]], ...] = (
    (GENERATE, {"seed": 21}),
    (GENERATE, {"seed": 22, "aspect_ratio": "7:3", "prompt_upsampling": True, "safety_tolerance": 0}),
    (MAX, {"seed": 23, "prompt": '<a> & "b" \u00e9 \u6f22 \U0001f600'}),
    (EDIT, {"seed": 24, "safety_tolerance": 2}),
    (EDIT, {"seed": 25, "images": ["image.jpg"]}),
    (DEV, {"seed": 26, "style_preset": "anime", "width": 512, "steps": 4, "guidance_scale": 3.5, "progressive": True}),
)
WRONG: tuple[tuple[Any, dict[str, Any]], ...] = (
    (GENERATE, {"prompt": "hi"}), (GENERATE, {"prompt": "x" * 4097}), (GENERATE, {"prompt": 7}),
    (GENERATE, {"prompt": None}), (GENERATE, {"safety_tolerance": 7}), (GENERATE, {"safety_tolerance": -1}),
    (GENERATE, {"safety_tolerance": "6"}), (GENERATE, {"safety_tolerance": True}),
    (GENERATE, {"safety_tolerance": 1.5}),
    (GENERATE, {"safety_tolerance": [6]}), (GENERATE, {"seed": "7"}), (GENERATE, {"seed": 1.5}),
    (GENERATE, {"aspect_ratio": "wide"}), (GENERATE, {"aspect_ratio": "0:1"}), (GENERATE, {"prompt_upsampling": "no"}),
    (GENERATE, {"steps": 3}), (GENERATE, {"user": "me"}), (GENERATE, {"variant": "max"}), (GENERATE, {"images": []}),
    (GENERATE, {"output_format": "png"}), (EDIT, {"safety_tolerance": 3}), (EDIT, {"images": "image.jpg"}),
    (EDIT, {"images": []}), (EDIT, {"images": None}), (EDIT, {"images": [7]}),
    (EDIT, {"images": ["image.jpg", "other.jpg"]}),
    (DEV, {"safety_tolerance": 0}), (DEV, {"steps": 1000}), (DEV, {"width": 500}), (DEV, {"width": 520}),
    (DEV, {"style_preset": "cubist"}), (DEV, {"aspect_ratio": "1:1"}), (DEV, {"guidance_scale": "2"}),
    ("inference.flux-kontext.ultra.txt2img.v9", {}), (7, {}), (None, {}),
)  # fmt: skip


@pytest.mark.parametrize("kind", [job.type for job in load().enabled.values()])
def test_every_type_of_the_catalogue_is_sold_at_its_price(desk: Desk, kind: str) -> None:
    (job,) = [job for job in load().jobs if job.type == kind]
    before = desk.fleet.stats()["billed_micro_usd"]
    answer = post(desk.url, desk.tokens["shop"], body(kind), inputs=(PHOTO,) * len(job.inputs))
    assert (answer.status, document(answer)["type"], document(answer)["gateway"]["variant"]) == (200, kind, job.variant)
    assert (
        desk.fleet.stats()["billed_micro_usd"] - before == document(answer)["gateway"]["cost"]["micro_usd"] == job.price
    )


@pytest.mark.parametrize("container", [BOTH, "multipart/form-data; image/png", "application/json"])
@pytest.mark.parametrize(("kind", "config"), LEGAL)
def test_a_finished_job_is_told_as_the_stand_in_tells_it(
    desk: Desk, kind: str, config: dict[str, Any], container: str
) -> None:
    inputs = (PHOTO,) if kind in (EDIT, DEV) else ()
    if "progressive" in config and "png" in container:
        config = config | {"progressive": False}
    ours, theirs = (
        post(url, token, body(kind, **config), inputs=inputs, accept=container, target="/v2/job?price=true")
        for url, token in ((desk.url, desk.tokens["shop"]), desk.upstream)
    )
    assert (ours.status, theirs.status) == (200, 200)
    if container != "application/json":
        assert shape(ours) == shape(theirs)
        assert parts(ours)[1].data == parts(theirs)[1].data
    mine, its = document(ours), document(theirs)
    assert mine.pop("gateway")["source"] in ("upstream", "cache")
    assert list(mine) == list(its)
    assert mine["price"]["dollars"] in (its["price"]["dollars"], 0)
    assert list(mine["config"])[: len(config)] == list(its["config"])[: len(config)]
    its["config"] = {name: value for name, value in its["config"].items() if name in mine["config"]}
    for name in ("type", "state", "config"):
        assert mine[name] == its[name]
    assert mine["metrics"].keys() == its["metrics"].keys()
    for found in (mine, its):
        assert re.fullmatch(UUID, found["id"])
        at = {name: datetime.fromisoformat(found[name]) for name in ("created_at", "updated_at", "expires_at")}
        assert all(re.fullmatch(r"[\dT:-]{19}\.\d{3}Z", found[name]) for name in at)
        assert at["expires_at"] - at["created_at"] == timedelta(seconds=300)
        assert timedelta(0) <= at["updated_at"] - at["created_at"] < timedelta(seconds=30)


@pytest.mark.parametrize(("kind", "config"), WRONG)
def test_a_job_that_is_wrong_is_refused_in_the_stand_ins_words(desk: Desk, kind: Any, config: dict[str, Any]) -> None:
    inputs = (PHOTO,) if kind in (EDIT, DEV) else ()
    ours, theirs = (
        post(url, token, body(kind, **config), inputs=inputs)
        for url, token in ((desk.url, desk.tokens["shop"]), desk.upstream)
    )
    mine, its = document(ours), document(theirs)
    assert (ours.status, theirs.status) == (400, 400)
    assert mine.pop("gateway")["charged"] == "no"
    assert list(mine) == list(its)
    assert (mine["state"]["current"], mine.get("config"), mine.get("type")) == (
        its["state"]["current"], its.get("config"), its.get("type")
    )  # fmt: skip
    assert mine["error"] == its["error"].splitlines()[0]  # of several mistakes we tell the first
    assert mine["state"]["history"] == [{"message": mine["error"]}]


@pytest.mark.parametrize(
    "accept",
    [None, "", "*/*", "image/*", "image/png", "image/webp", "image/jpeg, */*", "IMAGE/PNG", "image/png;q=0.5",
     BOTH, "multipart/form-data;image/webp", "multipart/form-data; charset=utf-8",
     "multipart/form-data; application/json",
     "application/json", "text/html, image/webp", "video/mp4", "multipart/form-data; video/mp4", "text/plain"],
)  # fmt: skip
def test_accept_means_what_it_means_to_the_stand_in(desk: Desk, accept: str | None) -> None:
    ours, theirs = (
        post(url, token, body(GENERATE, seed=31), accept=accept)
        for url, token in ((desk.url, desk.tokens["shop"]), desk.upstream)
    )
    kinds = [re.sub("boundary=.*", "", answer.headers["content-type"]) for answer in (ours, theirs)]
    assert (ours.status, kinds[0]) == (theirs.status, kinds[1])
    if kinds[0].startswith("multipart/"):
        shapes = [
            [(part.name, part.filename, part.content_type) for part in parts(answer)] for answer in (ours, theirs)
        ]
        assert shapes[0] == shapes[1]
    if kinds[0].startswith("image/"):
        assert ours.body.startswith(KINDS[kinds[0]])


def test_what_is_wrong_with_our_own_side_is_never_in_an_envelope(desk: Desk) -> None:
    """The official client takes an envelope with another status than 400 to 499 for a picture."""
    desk.fleet.faults([{"kind": "unauthorised"}])
    for accept in (BOTH, "image/png", "application/json"):
        answer = post(desk.url, desk.tokens["shop"], body(GENERATE), accept=accept)
        assert (answer.status, answer.headers["content-type"]) == (502, "application/json")
    desk.fleet.faults([])


@pytest.mark.parametrize("fault", ["cut_after_accept", "malformed", "truncated", "error"])
def test_what_may_have_been_charged_is_answered_with_what_no_client_sends_again(desk: Desk, fault: str) -> None:
    desk.fleet.faults([{"kind": fault, "options": {"accepted": True} if fault == "error" else {}}])
    answer = post(desk.url, desk.tokens["shop"], body(GENERATE))
    desk.fleet.faults([])
    assert answer.status == 400
    assert document(answer)["gateway"]["charged"] == "unknown"
    assert document(answer)["error"].endswith("It may have been charged.")


def test_an_upstream_without_capacity_is_said_as_prodia_says_it(desk: Desk) -> None:
    desk.fleet.faults([{"kind": "busy", "options": {"retry_after": 300}}])
    answer = post(desk.url, desk.tokens["other"], body(MAX))
    desk.fleet.faults([])
    assert (answer.status, document(answer)["gateway"]["code"]) == (429, "upstream_busy")
    assert 1 <= int(answer.headers["retry-after"]) <= 60


def test_the_parts_may_come_in_any_order_and_a_repeated_input_is_one(desk: Desk) -> None:
    content = body(EDIT, seed=41)
    inputs = [("input", PHOTO, '; filename="photo.png"\r\nContent-Type: image/png'), ("input", PHOTO, JPEG)]
    for order in (
        [*inputs, ("job", content, JSON)], [("job", content, JSON), *inputs], [inputs[0], ("job", content), inputs[1]],
        [("job", content, '; filename="blob"'), ("input", PHOTO, '; filename="x"')],
    ):  # fmt: skip
        answer = post(desk.url, desk.tokens["shop"], form(*order), content_type=FORM)
        assert answer.status == 200, answer.body
        assert document(answer)["gateway"]["input"]["width"] == 320
    sources = {document(answer)["gateway"]["source"]}
    assert sources == {"cache"}


def test_images_names_the_input_that_is_meant(desk: Desk) -> None:
    files = [("input", data, f'; filename="{name}"\r\nContent-Type: image/png') for name, data in
             (("a.png", PHOTO), ("b.png", OTHER), ("c.png", PHOTO))]  # fmt: skip

    def edit(images: Any) -> Answer:
        content = body(EDIT, seed=42, images=images)
        return post(desk.url, desk.tokens["shop"], form(("job", content, JSON), *files), content_type=FORM)

    digests = [document(edit([name]))["gateway"]["input"]["sha256"] for name in ("a.png", "b.png", "c.png")]
    assert digests[0] == digests[2] != digests[1]
    for wrong in ([], ["d.png"], ["a.png", "b.png"], [1], {"a.png": 1}):
        assert edit(wrong).status == 400


def test_a_picture_is_the_same_whichever_surface_asked_for_it_first(desk: Desk) -> None:
    shop = desk.tokens["shop"]
    native = generate(desk.url, shop, seed=51, variant="max")
    answer = post(desk.url, shop, body(MAX, seed=51))
    assert (native.source, answer.headers["gateway-source"]) == ("upstream", "cache")
    assert parts(answer)[1].data == native.body
    assert answer.headers["gateway-image-id"] == native.headers["gateway-image-id"]
    mine = call(desk.url, f"/v1/images/{native.headers['gateway-image-id']}", shop)
    theirs = call(desk.url, f"/v1/images/{answer.headers['gateway-image-id']}", desk.tokens["other"])
    assert (mine.status, theirs.status) == (200, 404)
    other = post(desk.url, desk.tokens["other"], body(MAX, seed=51))
    assert other.headers["gateway-source"] == "upstream"


def test_a_name_repeats_the_first_answer_to_the_byte_and_is_its_keys_own(desk: Desk) -> None:
    name = {"Idempotency-Key": "order-4711"}
    shop, other = desk.tokens["shop"], desk.tokens["other"]
    first = post(desk.url, shop, body(GENERATE), headers=name, target="/v2/job?price=true")
    again = post(desk.url, shop, body(GENERATE), headers=name, target="/v2/job?price=true")
    assert (first.status, again.status, again.headers["idempotency-replayed"]) == (200, 200, "true")
    assert again.body == first.body
    assert again.headers["content-type"] == first.headers["content-type"]
    assert parts(post(desk.url, shop, body(GENERATE), headers=name))[1].data == parts(first)[1].data
    different = post(desk.url, shop, body(GENERATE, aspect_ratio="3:2"), headers=name)
    assert (different.status, document(different)["gateway"]["code"]) == (400, "idempotency_mismatch")
    theirs = post(desk.url, other, body(GENERATE), headers=name)
    assert "idempotency-replayed" not in theirs.headers
    assert document(theirs)["gateway"]["seed"] != document(first)["gateway"]["seed"]
    native = generate(desk.url, shop, headers=name)
    assert (native.status, native.headers.get("idempotency-replayed")) == (200, None)


def test_cache_control_user_and_tags_work_as_on_the_native_surface(desk: Desk) -> None:
    private = desk.tokens["private"]
    user = {"Gateway-User": "zoë".encode().decode("latin-1"), "Gateway-Tags": "spring, banner"}
    missing = post(desk.url, desk.tokens["shop"], body(GENERATE, seed=61), headers={"Cache-Control": "only-if-cached"})
    assert (missing.status, document(missing)["gateway"]["code"]) == (400, "not_cached")
    first = post(desk.url, private, body(GENERATE, seed=61), headers=user)
    assert first.status == 200
    row = rows(desk.fleet, "private")[-1]
    assert (row["user"], row["tags"]) == ("zoë", "spring,banner")
    again = post(desk.url, private, body(GENERATE, seed=62), headers=user)
    assert (again.status, document(again)["gateway"]["level"]) == (403, "user")
    fresh = post(desk.url, private, body(GENERATE, seed=61), headers={"Gateway-User": "b", "Cache-Control": "no-cache"})
    assert fresh.headers["gateway-source"] == "upstream"
    for wrong in ({"Gateway-User": ""}, {"Gateway-User": "a" * 129}, {"Gateway-User": "\xff"}, {"Gateway-Tags": ","}):
        answer = post(desk.url, private, body(GENERATE), headers={"Gateway-User": "c"} | wrong)
        assert (answer.status, document(answer)["gateway"]["field"]) == (400, next(iter(wrong)))


def test_what_reaches_the_upstream_is_what_the_catalogue_says_and_no_more(desk: Desk) -> None:
    before = jobs(desk.fleet)[-1]["n"]
    answer = post(desk.url, desk.tokens["shop"], body(EDIT, seed=71, include_messages=[True, 6]), inputs=(PHOTO,))
    assert (answer.status, answer.headers["gateway-left-out"]) == (200, "include_messages")
    (sent,) = jobs(desk.fleet, before)
    assert sent["config"].keys() == {"prompt", "prompt_upsampling", "safety_tolerance", "seed"}
    assert len(sent["inputs"]) == 1
    nested = body(EDIT, seed=72, include_messages={"safety_tolerance": 6})
    assert post(desk.url, desk.tokens["shop"], nested, inputs=(PHOTO,)).status == 400


def test_equal_jobs_of_both_surfaces_at_once_are_one_job(desk: Desk) -> None:
    shop, before = desk.tokens["shop"], desk.fleet.stats()["received"]
    desk.fleet.faults([{"kind": "slow", "options": {"after_seconds": 1}}])
    answers = together(
        [lambda: post(desk.url, shop, body(GENERATE, seed=81)).headers] * 4
        + [lambda: generate(desk.url, shop, seed=81).headers] * 4
    )
    desk.fleet.faults([])
    assert desk.fleet.stats()["received"] == before + 1
    assert sorted(headers["gateway-source"] for headers in answers) == ["coalesced"] * 7 + ["upstream"]
    assert sum(float(headers["gateway-cost-usd"]) for headers in answers) == 0.04


def test_a_large_file_that_the_official_client_sends_twice_is_taken(desk: Desk) -> None:
    """As large as an upload may be, so that the body is larger than any other call takes."""
    side = 2_100
    written = BytesIO()
    Image.frombytes("RGB", (side, side), os.urandom(side * side * 3)).save(written, "PNG", compress_level=0)
    photo = written.getvalue()
    assert 13_000_000 < len(photo) < 25_000_000
    answer = post(desk.url, desk.tokens["shop"], body(EDIT), inputs=(photo, photo))
    assert (answer.status, document(answer)["gateway"]["input"]["fitted"]) == (200, "1920x1920")
