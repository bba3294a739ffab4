"""Every kind of fault, as it arrives at a real socket."""

import json
import re
import socket
import struct
import threading
import time
from collections import Counter
from email.utils import parsedate_to_datetime
from typing import Any

import httpx2
import pytest

from app.sandbox import Fault, SandboxConfig, create_sandbox

from .running import DEV, EDIT, GENERATE, Box, bare_uvicorn, document, opened, parts, picture, raw_job, running


def fired(box: Box, kind: str, **options: Any) -> None:
    box.faults({"kind": kind, "options": options})


def test_failed_is_a_failed_job_with_its_text(box: Box) -> None:
    fired(box, "failed", text="upstream fell over")
    answer = box.job(price=True)
    assert answer.status_code == 400
    assert document(answer)["error"] == "upstream fell over"
    assert box.bill()["jobs"] == 0


def test_failed_json_ignores_the_multipart_accept(box: Box) -> None:
    fired(box, "failed_json")
    answer = box.job()
    assert (answer.status_code, answer.headers["content-type"]) == (400, "application/json")
    assert answer.json()["state"]["current"] == "failed"


@pytest.mark.parametrize(
    ("value", "headers"),
    [
        (7, ["7"]),
        ("soon", ["soon"]),
        (None, []),
        ([1, "Wed, 21 Oct 2026 07:28:00 GMT"], ["1", "Wed, 21 Oct 2026 07:28:00 GMT"]),
    ],
)
def test_busy_is_a_429_with_any_retry_after(box: Box, value: object, headers: list[str]) -> None:
    fired(box, "busy", retry_after=value)
    answer = box.job()
    assert answer.status_code == 429
    assert answer.headers.get_list("retry-after") == headers
    assert box.bill()["jobs"] == 0


@pytest.mark.parametrize("kind", ["busy", "error"])
def test_retry_after_can_be_a_date_so_many_seconds_from_now(box: Box, kind: str) -> None:
    fired(box, kind, retry_after=30, as_date=True)
    before = time.time()
    (value,) = box.job().headers.get_list("retry-after")
    assert re.fullmatch(r"\w{3}, \d\d \w{3} \d{4} \d\d:\d\d:\d\d GMT", value)
    assert before + 30 <= parsedate_to_datetime(value).timestamp() <= time.time() + 31
    fired(box, kind, retry_after="soon", as_date=True)
    assert box.job().headers["retry-after"] == "soon"


def test_cut_after_accept_bills_and_sends_not_one_byte(box: Box) -> None:
    fired(box, "cut_after_accept")
    assert box.raw(raw_job()) == b""
    assert box.bill()["micro_usd"] == 40_000


def test_cut_after_accept_can_be_a_reset_and_free(box: Box) -> None:
    fired(box, "cut_after_accept", reset=True, billed=False)
    with pytest.raises(ConnectionResetError):
        box.raw(raw_job())
    assert box.bill()["jobs"] == 0


def test_cut_mid_body_announces_more_than_it_sends_and_bills(box: Box) -> None:
    fired(box, "cut_mid_body", fraction=0.25)
    head, _, body = box.raw(raw_job()).partition(b"\r\n\r\n")
    announced = int(head.lower().partition(b"content-length: ")[2].split()[0])
    assert len(body) == announced // 4
    with pytest.raises(httpx2.RemoteProtocolError):
        box.job()
    assert box.bill()["jobs"] == 2


def test_cuts_work_under_a_bare_uvicorn_too() -> None:
    app = create_sandbox(
        SandboxConfig(time_scale=0, picture="small", faults=[Fault("cut_after_accept", count=1), Fault("cut_mid_body")])
    )
    with bare_uvicorn(app) as url:
        box = Box(url, httpx2.Client(base_url=url, trust_env=False))
        assert box.raw(raw_job()) == b""
        assert box.raw(raw_job()).startswith(b"HTTP/1.1 200 OK")
        with pytest.raises(httpx2.RemoteProtocolError):
            box.job()
        assert box.bill()["jobs"] == 3
        box.client.close()


def test_hang_ends_without_a_byte_when_its_time_is_over(box: Box) -> None:
    fired(box, "hang", seconds=0.2)
    began = time.monotonic()
    assert box.raw(raw_job()) == b""
    assert 0.2 <= time.monotonic() - began < 2
    assert box.bill()["jobs"] == 1


def test_hang_ends_when_the_caller_gives_up(box: Box) -> None:
    fired(box, "hang")
    with pytest.raises(httpx2.ReadTimeout):
        httpx2.post(
            f"{box.url}/v2/job",
            headers={"authorization": "Bearer sandbox-token"},
            json={"type": GENERATE, "config": {"prompt": "a red fox"}},
            timeout=0.2,
            trust_env=False,
        )
    settled(box)
    assert box.bill()["jobs"] == 1


@pytest.mark.parametrize(("accepted", "micro_usd"), [(False, 0), (True, 40_000)])
def test_error_is_any_status_in_text_or_html_and_costs_only_when_accepted(
    box: Box, accepted: bool, micro_usd: int
) -> None:
    fired(box, "error", status=503, body="overloaded", retry_after=2, accepted=accepted)
    answer = box.job()
    assert (answer.status_code, answer.text, answer.headers["retry-after"]) == (503, "overloaded", "2")
    assert box.bill()["micro_usd"] == micro_usd
    fired(box, "error", status=502, html=True)
    page = box.job()
    assert page.status_code == 502
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert b"<h1>502 Error</h1>" in page.content


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("moderated_prompt", "Request Moderated: the prompt was flagged"),
        ("moderated_input", "Request Moderated: the input image was flagged"),
        ("moderated_output", "Content Moderated"),
    ],
)
def test_moderation_is_a_failed_job_whose_text_says_so(box: Box, kind: str, text: str) -> None:
    fired(box, kind)
    assert document(box.job(EDIT, picture=picture()))["error"] == text
    assert box.stats()["by_outcome"] == {"moderated": 1}


def test_an_input_is_only_moderated_where_there_is_one(box: Box) -> None:
    fired(box, "moderated_input")
    assert box.job().status_code == 200


def test_failures_are_billed_when_the_sandbox_is_told_to() -> None:
    faults = [Fault("failed", count=1), Fault("moderated_output", count=1)]
    with running(SandboxConfig(time_scale=0, picture="small", faults=faults, bill_failures=True)) as box:
        assert [box.job().status_code for _ in range(3)] == [400, 400, 200]
        assert [row["outcome"] for row in box.bill()["rows"]] == ["failed", "moderated", "completed"]
        assert box.job(prompt="x").status_code == 400
        assert box.bill()["jobs"] == 3


def test_malformed_answers_are_a_200_that_cannot_be_read(box: Box) -> None:
    fired(box, "malformed")
    with pytest.raises(json.JSONDecodeError):
        document(box.job())
    fired(box, "malformed", variant="missing_output")
    assert [part.name for part in parts(box.job())] == ["job"]
    fired(box, "malformed", variant="missing_job")
    assert [part.name for part in parts(box.job())] == ["output"]
    fired(box, "malformed", variant="empty_output")
    assert parts(box.job())[1].data == b""
    fired(box, "malformed", variant="wrong_content_type")
    assert box.job().headers["content-type"] == "application/octet-stream"
    fired(box, "malformed", variant="no_boundary")
    assert box.job().headers["content-type"] == "multipart/form-data"
    fired(box, "malformed", variant="garbage")
    assert b"--" not in box.job().content
    assert box.bill()["jobs"] == 7
    assert box.stats()["by_outcome"] == {"completed": 7}


@pytest.mark.parametrize("variant", ["broken_json", "missing_output", "garbage"])
def test_a_bare_image_can_be_malformed_too(box: Box, variant: str) -> None:
    fired(box, "malformed", variant=variant)
    answer = box.job(accept="image/png")
    assert answer.status_code == 200
    with pytest.raises(OSError, match=r"identify|truncated"):
        opened(answer.content)


def test_truncated_is_a_complete_response_with_half_a_multipart(box: Box) -> None:
    fired(box, "truncated", fraction=0.5)
    answer = box.job()
    assert answer.headers["transfer-encoding"] == "chunked"
    assert not answer.content.endswith(b"--\r\n")
    assert answer.content.count(b"Content-Disposition") == 2


def test_the_content_type_may_lie_about_the_answer_or_the_output(box: Box) -> None:
    fired(box, "wrong_content_type")
    assert box.job().headers["content-type"] == "text/html; charset=utf-8"
    fired(box, "wrong_content_type", where="output", content_type="image/png")
    output = parts(box.job())[1]
    assert (output.content_type, opened(output.data).format) == ("image/png", "JPEG")


def test_trickle_takes_its_time_and_is_complete(box: Box) -> None:
    fired(box, "trickle", seconds=0.3, pieces=3)
    began = time.monotonic()
    assert len(parts(box.job())) == 2
    assert time.monotonic() - began >= 0.3


def test_slow_answers_late(box: Box) -> None:
    fired(box, "slow", after_seconds=0.2)
    assert document(box.job())["metrics"]["elapsed"] >= 0.2


@pytest.mark.parametrize(
    ("which", "names"), [("job", "job job output"), ("output", "job output output"), ("both", "job job output output")]
)
def test_parts_may_come_twice(box: Box, which: str, names: str) -> None:
    fired(box, "duplicate_parts", part=which)
    assert " ".join(part.name for part in parts(box.job())) == names


def test_unauthorised_and_redirect_are_refusals(box: Box) -> None:
    box.faults({"kind": "unauthorised", "count": 1}, {"kind": "redirect"})
    refused = box.job()
    assert (refused.status_code, refused.text.strip()) == (401, "token is invalid")
    moved = box.job()
    assert (moved.status_code, moved.headers["location"]) == (307, "https://elsewhere.invalid/v2/job")
    assert box.bill()["jobs"] == 0


@pytest.mark.parametrize(("dollars", "charged"), [(0.055, 0.055), (None, 0.08)])
def test_overcharge_reports_and_bills_more_than_the_book(box: Box, dollars: float | None, charged: float) -> None:
    fired(box, "overcharge", dollars=dollars)
    assert document(box.job(price=True))["price"]["dollars"] == charged
    assert box.bill()["micro_usd"] == round(charged * 1_000_000)


def test_count_after_and_job_type_choose_which_jobs_are_met(box: Box) -> None:
    box.faults({"kind": "busy", "job_type": GENERATE, "after": 1, "count": 2})
    assert box.job(DEV, picture=picture()).status_code == 200
    assert [box.job().status_code for _ in range(5)] == [200, 429, 429, 200, 200]


def test_invalid_and_unauthorised_jobs_use_up_no_fault(box: Box) -> None:
    box.faults({"kind": "busy", "count": 1})
    assert box.job(prompt="x").status_code == 400
    box.client.post("/v2/job", json={"type": GENERATE, "config": {"prompt": "a fox"}})
    assert box.job().status_code == 429


def test_each_of_several_faults_has_its_own_share_and_the_draw_repeats() -> None:
    faults = [Fault("failed", probability=0.2), Fault("busy", probability=0.2), Fault("error", probability=0.2)]
    runs = []
    for seed in (3, 3, 4):
        with running(SandboxConfig(time_scale=0, picture="small", faults=faults, seed=seed)) as box:
            runs.append([box.job(accept="image/jpeg").status_code for _ in range(100)])
    assert runs[0] == runs[1] != runs[2]
    shares = Counter(runs[0] + runs[2])
    assert set(shares) == {200, 400, 429, 500}
    assert all(18 <= shares[status] <= 62 for status in (400, 429, 500))


def test_more_jobs_than_the_capacity_are_busy() -> None:
    with running(SandboxConfig(time_scale=0.05, picture="small", capacity=2)) as box:
        statuses: list[int] = []
        threads = [threading.Thread(target=lambda: statuses.append(box.job().status_code)) for _ in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert Counter(statuses) == {200: 2, 429: 3}
        assert box.stats()["peak_in_progress"] == 2


def test_a_caller_that_leaves_does_not_stop_its_job() -> None:
    with running(SandboxConfig(time_scale=0.05, picture="small")) as box:
        address = httpx2.URL(box.url)
        with socket.create_connection((address.host, address.port or 80)) as connection:
            connection.sendall(raw_job())
            began = time.monotonic()
            while not box.stats()["in_progress"]:
                assert time.monotonic() - began < 5
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        assert box.bill()["jobs"] == 0
        settled(box)
        assert box.bill()["micro_usd"] == 40_000
        assert box.stats()["completed"] == 1


def settled(box: Box) -> None:
    """Waits until no job is in progress."""
    end = time.monotonic() + 5
    while box.stats()["in_progress"]:
        assert time.monotonic() < end
        time.sleep(0.02)
