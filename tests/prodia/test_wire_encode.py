"""What leaves for Prodia, byte by byte."""

from __future__ import annotations

import json
import re

import pytest
from multipart import PushMultipartParser

from app.prodia.wire import BytesBlob, Call, Encoded, Part, encode

CONFIG = {"prompt": "make the sky stormy", "safety_tolerance": 1}


def body_of(encoded: Encoded) -> bytes:
    return b"".join(encoded.chunks())


def test_a_job_without_inputs_is_json() -> None:
    encoded = encode(Call("inference.flux-kontext.pro.txt2img.v2", CONFIG, (), "png"))
    assert body_of(encoded) == (
        b'{"type":"inference.flux-kontext.pro.txt2img.v2",'
        b'"config":{"prompt":"make the sky stormy","safety_tolerance":1}}'
    )
    assert encoded.content_type == "application/json"
    assert encoded.accept == "multipart/form-data; image/png"
    assert encoded.length == len(body_of(encoded))


def test_a_job_with_inputs_is_multipart_with_the_job_first() -> None:
    parts = (Part("a.png", "image/png", BytesBlob(b"\x89PNG")), Part("b.webp", "image/webp", BytesBlob(b"RIFF\r\n--x")))
    encoded = encode(Call("inference.flux-kontext.pro.img2img.v2", CONFIG, parts, "jpeg"))
    boundary = re.fullmatch(r"multipart/form-data; boundary=([0-9a-f]{60})", encoded.content_type)
    assert boundary is not None
    mark = boundary[1].encode()
    assert body_of(encoded) == (
        b"--" + mark + b"\r\n"
        b'Content-Disposition: form-data; name="job"; filename="job.json"\r\n'
        b"Content-Type: application/json\r\n\r\n"
        b'{"type":"inference.flux-kontext.pro.img2img.v2",'
        b'"config":{"prompt":"make the sky stormy","safety_tolerance":1}}\r\n'
        b"--" + mark + b"\r\n"
        b'Content-Disposition: form-data; name="input"; filename="a.png"\r\n'
        b"Content-Type: image/png\r\n\r\n"
        b"\x89PNG\r\n"
        b"--" + mark + b"\r\n"
        b'Content-Disposition: form-data; name="input"; filename="b.webp"\r\n'
        b"Content-Type: image/webp\r\n\r\n"
        b"RIFF\r\n--x\r\n"
        b"--" + mark + b"--\r\n"
    )
    assert encoded.accept == "multipart/form-data; image/jpeg"
    assert encoded.length == len(body_of(encoded))


def test_a_body_can_be_sent_again_and_a_large_input_is_never_one_chunk() -> None:
    picture = bytes(range(256)) * 1024
    encoded = encode(Call("t", {}, (Part("a.png", "image/png", BytesBlob(picture)),), "jpeg"))
    first, second = list(encoded.chunks()), list(encoded.chunks())
    assert first == second
    assert max(len(chunk) for chunk in first) <= 65_536
    parser = PushMultipartParser(encoded.content_type.partition("boundary=")[2], strict=True)
    events = [event for chunk in first for event in parser.parse(chunk)]
    parser.close()  # type: ignore[no-untyped-call]
    assert picture == b"".join(bytes(event) for event in events[3:] if isinstance(event, (bytes, bytearray)))


def test_each_request_has_a_boundary_of_its_own() -> None:
    call = Call("t", {}, (Part("a.png", "image/png", BytesBlob(b"x")),), "jpeg")
    assert encode(call).content_type != encode(call).content_type


def test_a_filename_cannot_end_its_header() -> None:
    call = Call("t", {}, (Part('a"\r\nX-Evil: 1\r\n\r\n.png', "image/png", BytesBlob(b"x")),), "jpeg")
    assert b'filename="a%22%0D%0AX-Evil: 1%0D%0A%0D%0A.png"\r\n' in body_of(encode(call))


def test_a_content_type_cannot_end_its_header() -> None:
    call = Call("t", {}, (Part("a.png", "image/png\r\nX-Evil: 1", BytesBlob(b"x")),), "jpeg")
    with pytest.raises(ValueError, match="control characters"):
        encode(call)


def test_text_is_sent_as_it_is() -> None:
    prompt = 'Grüße, 日本 "quoted" \\ \u200b'
    body = body_of(encode(Call("t", {"prompt": prompt, "seed": 2**53 - 1}, (), "webp")))
    assert json.loads(body)["config"] == {"prompt": prompt, "seed": 9007199254740991}
