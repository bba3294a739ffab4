"""The bytes of answers, against what Prodia was seen to send."""

import json
import re
import uuid
from datetime import datetime, timedelta

import pytest

from app.sandbox import SandboxConfig

from .running import (
    AUTHORISED,
    DEV,
    EDIT,
    GENERATE,
    Box,
    Files,
    document,
    opened,
    parts,
    picture,
    raw_job,
    raw_request,
    running,
)

STAMP = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")


def test_a_multipart_answer_is_laid_out_as_captured(box: Box) -> None:
    head, _, body = box.raw(raw_job()).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    match = re.search(rb"\r\ncontent-type: multipart/form-data; boundary=([0-9a-f]{60})\r\n", head)
    assert match is not None
    boundary = match[1]
    start = b'--%s\r\nContent-Disposition: form-data; name="job"; filename="job.json"\r\n' % boundary
    assert body.startswith(start + b"Content-Type: application/json\r\n\r\n{")
    output = b'}\r\n--%s\r\nContent-Disposition: form-data; name="output"; filename="output.jpg"\r\n' % boundary
    assert output + b"Content-Type: image/jpeg\r\n\r\n\xff\xd8\xff" in body
    assert body.endswith(b"\r\n--%s--\r\n" % boundary)
    assert body.count(boundary) == 3


def test_the_job_document_has_the_captured_keys_in_the_captured_order(box: Box) -> None:
    answer = document(box.job(price=True, aspect_ratio="16:9"))
    captured = "type created_at updated_at expires_at id state config metrics price"
    assert list(answer) == captured.split()
    assert uuid.UUID(answer["id"]).version == 4
    assert answer["state"] == {"current": "completed", "history": None}
    assert list(answer["metrics"]) == ["elapsed"]
    assert answer["price"] == {"product": "inference-flux-kontext-pro", "dollars": 0.04}


def test_stamps_have_milliseconds_and_the_job_expires_after_300_seconds(box: Box) -> None:
    answer = document(box.job())
    stamps = [answer[name] for name in ("created_at", "updated_at", "expires_at")]
    assert all(STAMP.fullmatch(stamp) for stamp in stamps)
    created, updated, expires = (datetime.fromisoformat(stamp) for stamp in stamps)
    assert expires - created == timedelta(seconds=300)
    assert created <= updated


def test_config_comes_back_sorted_and_followed_by_defaults_without_the_seed_nobody_sent(box: Box) -> None:
    sent = {"type": GENERATE, "config": {"prompt": "a fox & <b>", "aspect_ratio": "3:2"}}
    answer = box.client.post("/v2/job", headers=AUTHORISED | {"accept": "multipart/form-data"}, json=sent)
    config = document(answer)["config"]
    assert list(config) == ["aspect_ratio", "prompt", "prompt_upsampling", "safety_tolerance"]
    assert config["safety_tolerance"] == 4
    assert rb"a fox \u0026 \u003cb\u003e" in answer.content


def test_the_price_is_only_shown_when_asked_for_and_earned(box: Box) -> None:
    assert "price" not in document(box.job())
    assert "price" not in document(box.job(price=True, prompt="x"))


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        ("multipart/form-data", "JPEG"),
        ("multipart/form-data; image/png", "PNG"),
        ("multipart/form-data;image/webp", "WEBP"),
        ("Multipart/Form-Data; image/jpeg", "JPEG"),
    ],
)
def test_the_output_is_encoded_as_the_dialect_of_accept_says(box: Box, accept: str, kind: str) -> None:
    job, output = parts(box.job(accept=accept))
    assert (job.name, output.name) == ("job", "output")
    assert opened(output.data).format == kind
    assert output.content_type == f"image/{kind.lower()}"


@pytest.mark.parametrize(
    ("accept", "kind"),
    [("image/png", "PNG"), ("image/jpeg", "JPEG"), ("image/webp", "WEBP"), ("*/*", "JPEG"), ("", "JPEG")],
)
def test_a_bare_image_comes_without_document_price_or_id(box: Box, accept: str, kind: str) -> None:
    answer = box.job(accept=accept, price=True)
    assert answer.headers["content-type"] == f"image/{kind.lower()}"
    assert opened(answer.content).format == kind


def test_json_is_the_document_without_pixels(box: Box) -> None:
    assert box.job(accept="application/json").json()["state"]["current"] == "completed"
    assert [part.name for part in parts(box.job(accept="multipart/form-data; application/json"))] == ["job"]


def test_an_output_type_no_picture_has_is_a_failed_job(box: Box) -> None:
    answer = box.job(accept="multipart/form-data; video/mp4")
    assert answer.status_code == 400
    assert document(answer)["error"] == "output type 'video/mp4' is not available for this job type"


def test_parts_may_come_in_any_order_and_the_job_without_a_file_name(box: Box) -> None:
    job = json.dumps({"type": EDIT, "config": {"prompt": "make it rain"}})
    input_first: Files = [("input", ("image.jpg", picture(), "image/jpeg")), ("job", (None, job))]
    job_first: Files = [("job", ("blob", job, "application/json")), ("input", ("a.png", picture()))]
    for files in (input_first, job_first):
        answer = box.client.post("/v2/job", headers=AUTHORISED | {"accept": "multipart/form-data"}, files=files)
        assert answer.status_code == 200


def test_a_multipart_request_may_have_no_input(box: Box) -> None:
    job = json.dumps({"type": GENERATE, "config": {"prompt": "a red fox"}})
    assert box.client.post("/v2/job", headers=AUTHORISED, files=[("job", ("job.json", job))]).status_code == 200


@pytest.mark.parametrize(
    ("accept", "container"),
    [
        ("multipart/form-data; image/png", "multipart"),
        ("image/png", "json"),
        ("*/*", "json"),
        ("application/json", "json"),
    ],
)
def test_a_failed_job_is_a_400_in_the_container_of_its_accept(box: Box, accept: str, container: str) -> None:
    answer = box.job(accept=accept, prompt="x")
    assert answer.status_code == 400
    assert ("multipart" in answer.headers["content-type"]) == (container == "multipart")
    failed = document(answer)
    assert list(failed) == ["type", "created_at", "updated_at", "expires_at", "id", "state", "config", "error"]
    assert failed["state"] == {"current": "failed", "history": [{"message": failed["error"]}]}


@pytest.mark.parametrize("token", ["Bearer wrong", "sandbox-token", "", None])
def test_a_wrong_or_absent_token_is_a_plain_401(box: Box, token: str | None) -> None:
    headers = {"accept": "multipart/form-data"} | ({} if token is None else {"authorization": token})
    answer = box.client.post("/v2/job", headers=headers, json={"type": GENERATE, "config": {"prompt": "a fox"}})
    assert (answer.status_code, answer.text.strip()) == (401, "token is invalid")
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"


@pytest.mark.parametrize("status", [400, 429])
def test_an_unknown_job_type_is_answered_as_configured(status: int) -> None:
    with running(SandboxConfig(unknown_type_status=status, time_scale=0)) as box:  # type: ignore[arg-type]
        answer = box.job("inference.unknown.v1")
        assert answer.status_code == status
        assert ("retry-after" in answer.headers) == (status == 429)


def test_the_switches_show_on_the_wire() -> None:
    config = SandboxConfig(
        time_scale=0,
        picture="small",
        history="absent",
        disclose_seed=True,
        unknown_keys="ignore",
        image_failures="multipart",
        output_filename="picture.bin",
        strict_filenames=True,
    )
    with running(config) as box:
        answer = box.job(odd=1)
        assert document(answer)["state"] == {"current": "completed"}
        assert document(answer)["config"]["odd"] == 1
        assert parts(answer)[1].filename == "picture.bin"
        sent = {"type": GENERATE, "config": {"prompt": "a red fox"}}
        assert (
            "seed"
            in box.client.post("/v2/job", headers=AUTHORISED | {"accept": "application/json"}, json=sent).json()[
                "config"
            ]
        )
        assert parts(box.job(accept="image/png", prompt="x"))[0].name == "job"
        twice = [("input", ("a.png", picture()))] * 2 + [
            ("job", (None, json.dumps({"type": DEV, "config": {"prompt": "snow"}})))
        ]
        refused = box.client.post("/v2/job", headers=AUTHORISED | {"accept": "multipart/form-data"}, files=twice)
        assert document(refused)["error"] == "input file names must differ: 'a.png'"


def test_the_official_client_may_send_its_file_twice_under_one_name(box: Box) -> None:
    twice = [("input", ("image.jpg", picture(), "image/jpeg"))] * 2
    twice.append(
        ("job", ("job.json", json.dumps({"type": EDIT, "config": {"prompt": "snow"}}).encode(), "application/json"))
    )
    assert box.client.post("/v2/job", headers=AUTHORISED, files=twice).status_code == 200


@pytest.mark.parametrize(
    ("body", "content_type", "reason"),
    [
        (b"{", "application/json", "the job is not valid JSON"),
        (b"[]", "application/json", "the job is not a JSON object"),
        (b"{}", "application/json", "at '': missing property 'type'"),
        (b'{"type":7}', "application/json", "at '/type': got number, want string"),
        (b"[" * 60_000, "application/json", "the job is not valid JSON"),
        (b"", "multipart/form-data; boundary=x", "the multipart body is malformed"),
        (b"--x\r\n", "multipart/form-data", "the multipart body is malformed"),
        (b"--x--\r\n", "multipart/form-data; boundary=x", "want exactly one part named job, got 0"),
        (b"a=b", "application/x-www-form-urlencoded", "Content-Type must be application/json or multipart/form-data"),
    ],
)
def test_an_unreadable_request_is_a_failed_job_and_never_a_stack_trace(
    box: Box, body: bytes, content_type: str, reason: str
) -> None:
    answer = box.raw(raw_request(body, content_type, "application/json"))
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"] == reason


def test_a_body_over_the_limit_is_refused_by_its_length_and_by_its_bytes() -> None:
    with running(SandboxConfig(body_limit=1_000)) as box:
        assert box.raw(raw_request(b"x" * 1_001)).startswith(b"HTTP/1.1 413 ")
        chunked = raw_request(b"").replace(b"Content-Length: 0", b"Transfer-Encoding: chunked")
        assert box.raw(chunked + b"400\r\n" + b"x" * 1_024 + b"\r\n0\r\n\r\n").startswith(b"HTTP/1.1 413 ")


def test_other_paths_and_methods_do_not_exist(box: Box) -> None:
    assert box.client.get("/v2/job").status_code == 405
    assert box.client.post("/v2/job/async", json={}).status_code == 404
