"""What a job must not be: refused with the field, in Prodia's form, for nothing, and without reaching the upstream."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from tests.e2e.exchange import FORM, Answer, exchange, form, send
from tests.pipeline.calls import picture
from tests.surfaces.conftest import Desk
from tests.surfaces.jobs import BOTH, EDIT, GENERATE, JPEG, JSON, body, document, post

PHOTO = picture()
INPUT = ("input", PHOTO, JPEG)
JOB = ("job", body(EDIT), JSON)
CANARY = "kanarienvogel"
AS_JSON = "application/json"


@dataclass(frozen=True)
class Bad:
    """One request that is refused, and the field and words that its answer must have."""

    name: str
    content: bytes
    content_type: str = AS_JSON
    field: str | None = None
    says: str = ""
    code: str = "invalid_request"
    headers: tuple[tuple[str, str], ...] = ()


def spelled(config: str, kind: str = GENERATE) -> bytes:
    """A job whose config is written as it stands."""
    return f'{{"type":"{kind}","config":{{"prompt":"a lighthouse",{config}}}}}'.encode("utf-8", "surrogatepass")


def bodies() -> Iterator[Bad]:
    """JSON that is no job."""
    for name, text in (
        ("empty", b""), ("not_json", b"{"), ("two", b"{}{}"), ("array", b"[]"), ("string", b'"job"'), ("null", b"null"),
        ("not_utf8", b'{"type":"\xff"}'), ("utf16", body(GENERATE).decode().encode("utf-16")),
        ("nan", spelled('"seed":NaN')),
        ("deep", b'{"type":' + b"[" * 30_000 + b"]" * 30_000 + b"}"),
    ):  # fmt: skip
        yield Bad(f"body_{name}", text)
    yield Bad("body_huge", body(GENERATE, prompt="x" * 70_000), code="too_large")
    yield Bad("body_of_another_type", body(GENERATE), "text/plain", code="unsupported_type")
    yield Bad("body_without_type", body(GENERATE), "", code="unsupported_type")
    yield Bad("body_as_urlencoded", b"job=%7B%7D", "application/x-www-form-urlencoded", code="unsupported_type")
    yield Bad("no_type", b'{"config":{"prompt":"abc"}}', field="type", says="missing property 'type'")
    yield Bad("no_config", json.dumps({"type": GENERATE}).encode(), field="prompt")
    yield Bad("name", json.dumps({"type": GENERATE, "config": {"prompt": "abc"}, "name": "x"}).encode(), field="name")
    yield Bad("key_empty", json.dumps({"type": GENERATE, "config": {"prompt": "abc"}, "": 1}).encode(), field="")
    yield Bad("key_empty_inside", body(GENERATE, **{"": 1}), field="")
    for value in ([], "prompt", 7, None, True):
        yield Bad(f"config_{value}", json.dumps({"type": GENERATE, "config": value}).encode(), field="config")
    for kind in (f"{GENERATE} ", GENERATE.upper(), "", "../job", f"{GENERATE}\u0000", GENERATE.replace("pro", "*"),
                 "inference.flux-kontext.pro.txt2img.v1", "pro", "x" * 5000):  # fmt: skip
        yield Bad(f"type_{kind[:24]!r}", body(kind), field="type", says="unknown job type")
    for kind in ([GENERATE], {"a": GENERATE}, 7, None):
        yield Bad(f"type_{kind}", body(kind), field="type")
    yield Bad("prompt_huge", body(GENERATE, prompt="x" * 4097), field="prompt", says="maxLength: got 4,097, want 4,096")
    yield Bad("prompt_of_half_a_pair", spelled('"seed":1').replace(b"a lighthouse", rb"\ud800abc"), field="prompt")
    yield Bad("seed_of_400_digits", spelled(f'"seed":1{"0" * 400}'), field="seed")
    yield Bad("seed_of_5000_digits", spelled(f'"seed":1{"0" * 5000}'))
    yield Bad("infinite_scale", spelled('"guidance_scale":1e999', "inference.flux-fast.dev-kontext.img2img.v1"))
    for own in ("variant", "user", "tags", "output_format", "fit", "response_format", "image", "webhook_url", "model"):
        yield Bad(f"own_{own}", body(GENERATE, **{own: "max"}), field=own, says="not allowed")
    yield Bad("edit_without_input", body(EDIT), field="input", says="minItems: got 0, want 1")


def ceilings() -> Iterator[Bad]:
    """Every way to write a tolerance that is not the one plain integer."""
    tolerance, escaped = '"safety_tolerance"', r'"safety\u005ftolerance"'
    for value in ('"6"', "6.0", "1e0", "true", "null", "[6]", '{"value":6}', "-1", "7", "9" * 40, "06", "+6", "1e400"):
        yield Bad(f"tolerance_{value[:12]}", spelled(f"{tolerance}:{value}"))
    for names in ((tolerance, tolerance), (tolerance, escaped), (escaped, escaped)):
        yield Bad(f"tolerance_{names[0]}_{names[1]}", spelled(f"{names[0]}:0,{names[1]}:6"), says="more than once")
    for more in (
        '"config":{"safety_tolerance":6}', '"safety":{"safety_tolerance":6}', '"safetyTolerance":6',
        '"SAFETY_TOLERANCE":6', '"safety_tolerance ":6', '"config.safety_tolerance":6', '"ѕafety_tolerance":6',
        '"extra_body":{"safety_tolerance":6}', '"__proto__":{"safety_tolerance":6}', '"safety_tolerance[]":6',
    ):  # fmt: skip
        yield Bad(f"tolerance_as_{more}", spelled(more))
    whole = body(GENERATE).decode()
    for more in ('"config":{"prompt":"abc","safety_tolerance":6}', '"safety_tolerance":6', '"type":"x"',
                 r'"con\u0066ig":{"prompt":"abc","safety_tolerance":6}'):  # fmt: skip
        yield Bad(f"beside_{more[:24]}", f"{whole[:-1]},{more}}}".encode())
    yield Bad("tolerance_where_there_is_none", body("inference.flux-fast.dev-kontext.img2img.v1", safety_tolerance=0))


def forms() -> Iterator[Bad]:
    """Parts."""
    unsafe = ("job", body(EDIT, safety_tolerance=2), JSON)

    def bad(name: str, *given: Any, end: bool = True, **more: Any) -> Bad:
        return Bad(f"form_{name}", form(*given, end=end), FORM, **more)

    yield bad("job_twice", JOB, INPUT, unsafe, field="job", says="more than once")
    yield bad("job_twice_the_same", JOB, JOB, INPUT, field="job", says="more than once")
    yield bad("job_twice_once_without_name", JOB, ("job", unsafe[1]), INPUT, field="job")
    yield bad("no_job", INPUT, field="job", says="required")
    yield bad("nothing")
    yield bad("cut_short", JOB, INPUT, end=False)
    yield bad("job_twice_in_its_json", ("job", JOB[1][:-1] + b',"config":{}}', JSON), INPUT, says="more than once")
    yield bad("job_huge", ("job", body(EDIT, prompt="x" * 70_000), JSON), INPUT, code="too_large")
    yield bad("job_empty", ("job", b"", JSON), INPUT)
    yield bad("job_picture", ("job", PHOTO, '; filename="job.json"\r\nContent-Type: image/png'), INPUT, code="too_large"
              if len(PHOTO) > 65_536 else "invalid_request")  # fmt: skip
    for name in ("config", "type", "safety_tolerance", "image", "Job", "job ", "input[]", "prompt", "job\u200b"):
        yield bad(f"part_{name!r}", JOB, INPUT, (name, b"6"), field=name)
    yield bad("part_without_name", JOB, INPUT, b"Content-Disposition: form-data\r\n\r\nx")
    yield bad("part_of_two_dispositions", JOB, INPUT, b'Content-Disposition: form-data; name="input"\r\n'
              b'Content-Disposition: form-data; name="job"\r\n\r\n{}')  # fmt: skip
    yield bad("part_encoded", INPUT, ("job", b"e30=", JSON + "\r\nContent-Transfer-Encoding: base64"))
    yield bad(
        "input_twice", JOB, INPUT, ("input", picture((9, 9, 9)), JPEG), field="input", says="maxItems: got 2, want 1"
    )
    yield bad("input_of_a_generation", ("job", body(GENERATE), JSON), INPUT, field="input", says="want 0")
    yield bad("input_empty", JOB, ("input", b"", JPEG), code="invalid_image")
    yield bad("input_text", JOB, ("input", b"<svg/>", JPEG), code="unsupported_type")
    yield bad("input_broken", JOB, ("input", PHOTO[:60], JPEG), code="invalid_image")
    yield bad("input_small", JOB, ("input", picture(side=8)[:-12], JPEG), code="invalid_image")
    yield bad("input_beyond_all", JOB, ("input", os.urandom(25_000_001), JPEG), code="too_large")
    yield bad("parts_65", JOB, *[INPUT] * 64, code="too_large")
    yield bad("images_elsewhere", ("job", body(EDIT, images=["../../etc/passwd"]), JSON), INPUT, field="images")
    yield bad("images_ambiguous", ("job", body(EDIT, images=["image.jpg"]), JSON), INPUT,
              ("input", picture((9, 9, 9)), JPEG), field="images")  # fmt: skip
    yield Bad("form_boundary_absent", form(JOB, INPUT), "multipart/form-data")
    yield Bad("form_boundary_long", form(JOB, INPUT), f"multipart/form-data; boundary={'b' * 71}")
    yield Bad("form_boundary_other", form(JOB, INPUT), "multipart/form-data; boundary=another")
    yield Bad("form_mixed", form(JOB, INPUT), FORM.replace("form-data", "mixed"), code="unsupported_type")


def heads() -> Iterator[Bad]:
    """Headers."""
    for user in ("", "x" * 129, "\xff"):
        yield Bad(f"user_{user[:3]!r}", body(GENERATE), field="Gateway-User", headers=(("Gateway-User", user),))
    for tags in ("", ",", "x" * 33, ",".join("abcdefghi")):
        yield Bad(f"tags_{tags[:9]!r}", body(GENERATE), field="Gateway-Tags", headers=(("Gateway-Tags", tags),))
    for name in ("", "x" * 256, "ä"):
        yield Bad(f"name_{name[:3]!r}", body(GENERATE), field="Idempotency-Key", headers=(("Idempotency-Key", name),))
    yield Bad("accept", body(GENERATE), field="Accept", headers=(("Accept", "video/mp4"),))


TABLE = [*bodies(), *ceilings(), *forms(), *heads()]


@pytest.mark.parametrize("bad", TABLE, ids=lambda bad: bad.name)
def test_what_is_wrong_is_a_user_error_that_names_it_and_costs_nothing(desk: Desk, bad: Bad) -> None:
    before = desk.fleet.stats()
    headers = {"Accept": BOTH} | dict(bad.headers)
    given = [("Authorization", f"Bearer {desk.tokens['shop']}"), *headers.items()]
    given += [("Content-Type", bad.content_type)] if bad.content_type else []
    answer = send(desk.url, "POST", "/v2/job", given, bad.content, timeout=30)
    assert answer.status == 400, answer.body[:500]
    assert "retry-after" not in answer.headers
    if bad.name != "accept":
        assert answer.headers["content-type"].startswith("multipart/form-data; boundary=")
    told = document(answer)
    assert (told["gateway"]["code"], told["gateway"]["charged"]) == (bad.code, "no")
    assert told["state"] == {"current": "failed", "history": [{"message": told["error"]}]}
    assert bad.says in told["error"]
    if bad.field is not None:
        assert told["gateway"]["field"] == bad.field
    assert desk.fleet.stats() == before


def test_two_headers_of_a_kind_are_refused(desk: Desk) -> None:
    for name in ("Gateway-User", "Gateway-Tags", "Idempotency-Key"):
        headers = [
            ("Authorization", f"Bearer {desk.tokens['shop']}"),
            ("Content-Type", AS_JSON),
            (name, "a"),
            (name, "b"),
        ]
        answer = send(desk.url, "POST", "/v2/job", headers, body(GENERATE))
        assert (answer.status, document(answer)["gateway"]["field"]) == (400, name)


@pytest.mark.parametrize(
    "carriers",
    [[], [("Authorization", "Basic abc")], [("Authorization", "Bearer ")], [("X-Api-Key", "{key}")],
     [("Authorization", "Bearer {key}"), ("Authorization", "Bearer {key}")], [("Authorization", "Bearer {key}x")],
     [("Authorization", "Bearer kgw_live_" + "a" * 38)], [("Cookie", "token={key}")]],
)  # fmt: skip
def test_every_wrong_key_is_answered_with_the_same_text(desk: Desk, carriers: list[tuple[str, str]]) -> None:
    given = [(name, value.format(key=desk.tokens["shop"])) for name, value in carriers]
    answer = send(desk.url, "POST", "/v2/job", [*given, ("Content-Type", AS_JSON), ("Accept", BOTH)], body(GENERATE))
    assert (answer.status, answer.body) == (401, b"token is invalid\n")
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"


def test_nothing_of_a_job_is_logged(desk: Desk) -> None:
    """Neither what was made nor what was refused, nor whose it is."""
    shop = desk.tokens["shop"]
    headers = {"Gateway-User": f"{CANARY}-user", "Idempotency-Key": f"{CANARY}-name", "Gateway-Tags": f"{CANARY}-tag"}
    answers: list[Answer] = [
        post(desk.url, shop, body(GENERATE, prompt=CANARY), headers=headers),
        post(desk.url, shop, body(GENERATE, prompt=CANARY, **{CANARY: 1}), headers=headers),
        post(desk.url, shop, body(CANARY), headers=headers),
        post(
            desk.url, shop, form(JOB, ("input", PHOTO, f'; filename="{CANARY}.png"'), (CANARY, b"1")), content_type=FORM
        ),
    ]
    assert [answer.status for answer in answers] == [200, 400, 400, 400]
    assert send(desk.url, "GET", "/v2/job").status == 405
    log = desk.fleet.replicas[0].log.read_text()
    assert '"route":"/v2/job","surface":"prodia"' in log
    assert CANARY not in log
    assert "unhandled" not in log


def test_without_a_key_a_body_is_not_waited_for(desk: Desk) -> None:
    head = f"POST /v2/job HTTP/1.1\r\nHost: a\r\nContent-Type: {FORM}\r\nContent-Length: 40000000\r\n\r\n"
    answer = exchange(desk.url, head.encode())
    assert (answer.status, answer.body, answer.headers["connection"]) == (401, b"token is invalid\n", "close")
