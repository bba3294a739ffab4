"""What comes back from Prodia: every form it is known to answer in, and none of the forms of a broken answer."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.prodia.faults import DEFAULT, Fault, Moderation
from app.prodia.wire import Completed, decode, id_in
from tests.prodia.answers import (
    BOUNDARY,
    COMPLETED,
    JOB_ID,
    JPEG,
    MULTIPART,
    PICTURES,
    PNG,
    envelope,
    failed,
    job,
    job_part,
    output_part,
    part,
)


def read(
    status: int = 200, body: bytes = COMPLETED, content_type: str = MULTIPART, *, output: str = "jpeg", **more: Any
) -> Completed:
    return decode(status, content_type, body, output=output, patterns=DEFAULT, **more)


def fault_of(*args: Any, **more: Any) -> Fault:
    with pytest.raises(Fault) as caught:
        read(*args, **more)
    return caught.value


# --- success


def test_a_completed_job_gives_its_picture_price_id_and_time() -> None:
    assert read() == Completed(JPEG, "image/jpeg", JOB_ID, 40_000, 5.82)


@pytest.mark.parametrize("output", ["jpeg", "png", "webp"])
def test_each_output_format_is_read(output: str) -> None:
    body = envelope(job_part(job()), output_part(PICTURES[output], f"image/{output}"))
    assert read(body=body, output=output).content_type == f"image/{output}"


def test_parts_come_in_any_order() -> None:
    assert read(body=envelope(output_part(), job_part(job()))) == read()


def test_filenames_and_part_types_may_be_missing() -> None:
    body = envelope(job_part(job(), filename=None), output_part(content_type=None, filename=None))
    assert read(body=body) == read()


def test_a_quoted_boundary_and_a_preamble_are_read() -> None:
    quoted = f'Multipart/Form-Data; charset=utf-8; boundary="{BOUNDARY}"'
    assert read(body=b"preamble\r\n" + COMPLETED, content_type=quoted) == read()


def test_the_first_of_several_outputs_counts() -> None:
    body = envelope(job_part(job()), output_part(), output_part(JPEG + b"second"))
    assert read(body=body).image == JPEG


def test_parts_of_other_names_are_ignored() -> None:
    body = envelope(part("note", b"{", "text/plain", "note.txt"), job_part(job()), output_part())
    assert read(body=body) == read()


def test_a_job_without_price_metrics_or_id_is_still_a_job() -> None:
    assert read(body=envelope(job_part({"type": "t"}), output_part())) == Completed(
        JPEG, "image/jpeg", None, None, None
    )


def test_a_raw_picture_is_accepted_without_a_price() -> None:
    for output, picture in PICTURES.items():
        assert read(body=picture, content_type=f"image/{output}", output=output) == Completed(
            picture, f"image/{output}", None, None, None
        )


@pytest.mark.parametrize(
    ("dollars", "micro_usd"),
    [
        ("0.04", 40_000),
        ("0.0025", 2_500),
        ("0.039", 39_000),
        ("0.1", 100_000),
        ("4e-2", 40_000),
        ("1", 1_000_000),
        ("1000", 1_000_000_000),
        ("0", 0),
        ("0.0400001", 40_001),
        ("0.04000000000000000000000000000000000000000000000000001", 40_001),
        ("1e-999999999", 1),
        ("-0.04", None),
        ("1000.01", None),
        ("1e308", None),
        ("1e99999999999999999999999", None),
        ("9" * 5000, None),
        ("NaN", None),
        ("Infinity", None),
        ("-Infinity", None),
        ("null", None),
        ("true", None),
        ('"0.04"', None),
        ("[]", None),
    ],
)
def test_a_price_is_exact_in_micro_dollars_or_absent(dollars: str, micro_usd: int | None) -> None:
    document = json.dumps(job(price={"dollars": "HERE"})).replace('"HERE"', dollars).encode()
    assert read(body=envelope(job_part(document), output_part())).price_micro_usd == micro_usd


@pytest.mark.parametrize("elapsed", ["-1", "1e400", "NaN", "null", '"5"', "true", "1e9"])
def test_an_absurd_time_is_absent(elapsed: str) -> None:
    document = json.dumps(job(metrics={"elapsed": "HERE"})).replace('"HERE"', elapsed).encode()
    assert read(body=envelope(job_part(document), output_part())).elapsed is None


@pytest.mark.parametrize("identity", [7, "", "x" * 101, "a\r\nb", "tok-secret-1"])
def test_an_id_that_is_no_id_is_absent(identity: Any) -> None:
    body = envelope(job_part(job(id=identity)), output_part())
    assert read(body=body, secrets=["tok-secret-1"]).upstream_id is None


# --- a success that is none


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (envelope(job_part(job())), MULTIPART),
        (envelope(job_part(job()), output_part(PNG)), MULTIPART),
        (envelope(job_part(job()), output_part(PNG, "image/png")), MULTIPART),
        (envelope(job_part(job()), output_part(b"<html>", "text/html")), MULTIPART),
        (envelope(job_part(job()), output_part(b"")), MULTIPART),
        (envelope(job_part(b"not json"), output_part()), MULTIPART),
        (envelope(job_part(b"[1]"), output_part()), MULTIPART),
        (envelope(job_part(b"[" * 100_000), output_part()), MULTIPART),
        (envelope(job_part(failed("no")), output_part()), MULTIPART),
        (envelope(*[output_part()] * 65), MULTIPART),
        (COMPLETED.replace(b"Content-Type", b"Content-Length: 3\r\nContent-Type"), MULTIPART),
        (COMPLETED, "multipart/form-data"),
        (COMPLETED, "multipart/form-data; boundary=other"),
        (COMPLETED, "text/plain"),
        (COMPLETED, ""),
        (b"", MULTIPART),
        (b"", "image/jpeg"),
        (JPEG[:-1], "image/jpeg"),
        (PNG, "image/png"),
        (b"<html>", "image/jpeg"),
        (json.dumps(job()).encode(), "application/json"),
        (b"{}", "application/json"),
    ],
)
def test_a_success_that_cannot_be_used_is_malformed(body: bytes, content_type: str) -> None:
    assert fault_of(200, body, content_type).outcome == "malformed"


@pytest.mark.parametrize("status", [100, 101, 201, 202, 204, 206])
def test_a_success_of_another_status_is_malformed(status: int) -> None:
    assert fault_of(status).outcome == "malformed"


@pytest.mark.parametrize("body", [COMPLETED, envelope(output_part(), job_part(job()))])
def test_an_answer_cut_anywhere_is_never_taken_for_a_whole_one(body: bytes) -> None:
    for length in range(len(body)):
        if length >= len(body) - len(b"\r\n"):
            assert read(body=body[:length]) == read()
        else:
            assert fault_of(200, body[:length]).outcome == "malformed"


def test_a_fault_names_the_job_once_its_document_has_arrived() -> None:
    """A bill that names the job can then be held against it, in a whole answer and in one that was cut short."""
    assert fault_of(200, envelope(job_part(job()))).upstream_id == JOB_ID
    assert fault_of(400, envelope(job_part(failed("no face found")))).upstream_id is not None
    known = [id_in(MULTIPART, COMPLETED[:length], secrets=()) for length in range(0, len(COMPLETED), 7)]
    assert known[0] is None
    assert known[-1] == JOB_ID
    assert set(known) == {None, JOB_ID}
    assert id_in(MULTIPART, COMPLETED[:-1], secrets=(JOB_ID[:20],)) is None


@pytest.mark.parametrize("output", ["jpeg", "png", "webp"])
def test_a_raw_picture_cut_anywhere_is_malformed(output: str) -> None:
    picture = PICTURES[output]
    for length in range(len(picture)):
        assert fault_of(200, picture[:length], f"image/{output}", output=output).outcome == "malformed"


def test_a_failed_job_under_status_200_is_a_failure_and_not_a_broken_answer() -> None:
    assert fault_of(200, envelope(job_part(failed("Content Moderated")))).outcome == "moderated"
    assert fault_of(200, json.dumps(failed("no face found")).encode(), "application/json").outcome == "failed"


# --- refusals

STEPS = "at '/config/steps': maximum: got 1,000, want 4"


@pytest.mark.parametrize(
    ("status", "body", "content_type", "outcome"),
    [
        # a failed job, in each container it has been seen in
        (400, envelope(job_part(failed("no face found"))), MULTIPART, "failed"),
        (400, envelope(job_part(failed("no face found"), filename=None)), MULTIPART, "failed"),
        (400, json.dumps(failed("no face found")).encode(), "application/json", "failed"),
        (400, json.dumps(failed("no face found")).encode(), "text/plain", "failed"),
        (400, b"no face found", "text/plain; charset=utf-8", "failed"),
        (400, b"", "", "failed"),
        (400, envelope(job_part(failed(STEPS))), MULTIPART, "invalid"),
        (400, json.dumps(failed(STEPS)).encode(), "application/json", "invalid"),
        (400, json.dumps({"detail": STEPS}).encode(), "application/json", "invalid"),
        (400, json.dumps({"message": STEPS}).encode(), "application/json", "invalid"),
        (400, json.dumps({"error": {"message": STEPS}}).encode(), "application/json", "invalid"),
        (400, json.dumps({"detail": [{"msg": STEPS}]}).encode(), "application/json", "invalid"),
        (400, STEPS.encode(), "text/plain", "invalid"),
        (400, envelope(job_part(failed("at '/config': additional properties 'moderation' not allowed"))), MULTIPART,
         "invalid"),
        (400, envelope(job_part(failed("Request Moderated"))), MULTIPART, "moderated"),
        (400, json.dumps(failed("", error=None) | {"state": {"current": "failed", "history": [
            {"message": "queued"}, {"message": "Content Moderated"}]}}).encode(), "application/json", "moderated"),
        (400, json.dumps({"error": "prompt flagged as NSFW"}).encode(), "application/json", "moderated"),
        (422, envelope(job_part(failed("Content Moderated"))), MULTIPART, "moderated"),
        (422, STEPS.encode(), "text/plain", "invalid"),
        (422, b"unprocessable", "text/plain", "refused"),
        # cut short, the status still decides and what is there is read
        (400, envelope(job_part(failed(STEPS)))[:-150], MULTIPART, "invalid"),
        (400, b'{"id":"x","error":"Content Moderated","confi', "application/json", "moderated"),
        (429, b'{"id":', "application/json", "busy"),
        # ours
        (401, b"token is invalid\n", "text/plain; charset=utf-8", "misconfigured"),
        (401, b"Content Moderated", "text/plain", "misconfigured"),
        (403, b"forbidden", "text/plain", "misconfigured"),
        (302, b"", "text/html", "misconfigured"),
        (308, b"", "", "misconfigured"),
        # theirs
        (402, b'{"error":"insufficient balance"}', "application/json", "refused"),
        (402, json.dumps(failed("insufficient balance")).encode(), "application/json", "refused"),
        (404, b"not found", "text/plain", "refused"),
        (413, b"too large", "text/plain", "refused"),
        (418, b"", "", "refused"),
        (429, b"", "", "busy"),
        (429, b'{"error":"cannot be scheduled"}', "application/json", "busy"),
        (429, envelope(job_part(failed("no capacity"))), MULTIPART, "busy"),
        (429, json.dumps(failed("value must be one of 'a', 'b'")).encode(), "application/json", "invalid"),
        (429, b"unknown job type", "text/plain", "invalid"),
        # a 5xx is known to have failed only if the job's own document says so
        (500, envelope(job_part(failed("out of memory"))), MULTIPART, "failed"),
        (502, json.dumps(failed("Content Moderated")).encode(), "application/json", "moderated"),
        (503, json.dumps(failed("out of memory")).encode(), "application/json", "failed"),
        (500, b'{"error":"internal","id":"req-1"}', "application/json", "error"),
        (500, envelope(job_part(job(state={"current": "processing"}, error="x"))), MULTIPART, "error"),
        (500, b"Content Moderated", "text/plain", "error"),
        (502, b"<html>bad gateway</html>", "text/html", "error"),
        (503, b"", "", "error"),
        (504, b"", "", "error"),
        (599, b"", "", "error"),
    ],
)  # fmt: skip
def test_a_refusal_is_classified(status: int, body: bytes, content_type: str, outcome: str) -> None:
    fault = fault_of(status, body, content_type)
    assert (fault.outcome, fault.status) == (outcome, status)


def test_retry_after_is_read_where_it_means_something() -> None:
    assert fault_of(429, b"", "", retry_after=["7"]).retry_after == 7
    assert fault_of(429, b"", "", retry_after=["soon"]).retry_after is None
    unavailable = fault_of(503, b"", "", retry_after=["2"])
    assert (unavailable.outcome, unavailable.retry_after) == ("unavailable", 2)
    assert fault_of(503, b"", "", retry_after=["-1"]).outcome == "error"
    assert fault_of(500, b"", "", retry_after=["2"]).outcome == "error"


def test_what_the_upstream_said_is_kept_for_invalid_and_failed_jobs_alone() -> None:
    invalid = fault_of(400, envelope(job_part(failed(STEPS))))
    assert (invalid.message, invalid.field) == (STEPS, "steps")
    assert fault_of(400, b"no face found", "text/plain").message == "no face found"
    assert fault_of(400, b"Content Moderated", "text/plain").message is None
    assert fault_of(500, b"stack trace", "text/plain").message is None
    assert fault_of(400, b"<html><body>nginx</body></html>", "text/html").message is None


def test_what_the_upstream_said_is_bounded_cleaned_and_free_of_our_token() -> None:
    text = "\x1b[31mbad\r\n\u202e token tok-\x00secret-1 tok-secret-1" + "x" * 1000
    fault = fault_of(400, json.dumps(failed(text)).encode(), "application/json", secrets=["tok-secret-1"])
    assert fault.message is not None
    assert fault.message.startswith("[31mbad token [redacted] [redacted]xxx")
    assert len(fault.message) == 300
    assert "tok-secret" not in f"{fault!r} {fault} {vars(fault)}"


def test_a_token_is_not_taken_for_a_field_name() -> None:
    fault = fault_of(400, b"at '/config/tok_secret_1': maximum: got 2, want 1", "", secrets=["tok_secret_1"])
    assert (fault.outcome, fault.field) == ("invalid", None)


def test_a_prompt_in_the_echoed_config_does_not_classify_a_failure() -> None:
    document = failed("out of memory", config={"prompt": 'nsfw moderated "error": "flagged"'})
    assert fault_of(400, json.dumps(document).encode(), "application/json").outcome == "failed"


def test_moderation_is_what_the_settings_say() -> None:
    with pytest.raises(Fault) as caught:
        decode(400, "text/plain", b"computer says no", output="jpeg", patterns=Moderation((r"computer says \w+",)))
    assert caught.value.outcome == "moderated"


# --- anything at all


def anything(*args: Any, **more: Any) -> Completed | Fault:
    try:
        return read(*args, **more)
    except Fault as fault:
        return fault


@settings(max_examples=400, deadline=None)
@given(
    status=st.integers(100, 599),
    content_type=st.one_of(st.sampled_from([MULTIPART, "application/json", "image/jpeg", "text/plain"]), st.text()),
    body=st.one_of(
        st.binary(max_size=300),
        st.tuples(st.integers(0, len(COMPLETED)), st.binary(max_size=20), st.integers(0, 40)).map(
            lambda cut: COMPLETED[: cut[0]] + cut[1] + COMPLETED[cut[0] + cut[2] :]
        ),
        st.recursive(
            st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=20),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(
                    st.sampled_from(
                        ["error", "state", "current", "history", "message", "id", "type", "price", "detail"]
                    ),
                    inner,
                    max_size=5,
                )
            ),
            max_leaves=12,
        ).map(lambda value: json.dumps(value).encode()),
    ),
    retry_after=st.lists(st.text(max_size=30), max_size=2),
)
def test_any_answer_is_a_picture_or_a_fault(
    status: int, content_type: str, body: bytes, retry_after: list[str]
) -> None:
    for raw in (body, envelope(job_part(body), output_part())):
        found = anything(status, raw, content_type, retry_after=retry_after)
        if isinstance(found, Completed):
            assert status == 200
            assert found.image
        else:
            assert found.message is None or len(found.message) <= 300
