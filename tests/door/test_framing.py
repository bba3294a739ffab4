"""What can be read as one request or as two is read as neither: one answer, and never one to what was smuggled."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator

import pytest

from tests.door.wire import Ending, Wire, gateway, head
from tests.e2e.exchange import make_keys
from tests.fleet import Fleet, Replica

Target = tuple[Fleet, Replica, str]
BODY = b'{"prompt":"ab"}'  # too short: whoever reads it answers 422, and nothing is bought


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    with gateway(tmp_path_factory.mktemp("framing")) as (running, replica):
        yield running, replica, make_keys(running, ["acme"])["acme"]


def said(url: str, *pieces: bytes) -> Ending:
    """Everything that comes back for these pieces, sent one after the other, until the server closes."""

    async def run() -> Ending:
        wire = await Wire.open(url)
        for piece in pieces:
            await wire.send(piece)
            await asyncio.sleep(0.02)
        return await wire.rest(20)

    return asyncio.run(run())


def post(key: str, *lines: str, body: bytes = BODY) -> bytes:
    return head("POST", "/v1/generate", key, "Content-Type: application/json", *lines) + body


CHUNKED, LENGTH = "Transfer-Encoding: chunked", f"Content-Length: {len(BODY)}"
WHOLE = b"f\r\n%b\r\n0\r\n\r\n" % BODY
SHAPES = {
    "a length and chunks": ((LENGTH, CHUNKED), WHOLE),
    "two lengths": ((LENGTH, "Content-Length: 0"), BODY),
    "the same length twice in one": ((f"Content-Length: {len(BODY)}, {len(BODY)}",), BODY),
    "chunked spelled otherwise": (("Transfer-Encoding: xchunked",), WHOLE),
    "chunked before identity": (("Transfer-Encoding: chunked, identity",), WHOLE),
    "a space before the colon": (("Transfer-Encoding : chunked",), WHOLE),
    "a signed length": ((f"Content-Length: +{len(BODY)}",), BODY),
    "a hexadecimal length": (("Content-Length: 0xf",), BODY),
    "a folded line": (("X-Folded: a\r\n Content-Length: 0", LENGTH), BODY),
    "bare line feeds": (("X-Bare: a\nContent-Length: 0", LENGTH), BODY),
    "a chunk that does not end": ((CHUNKED,), b"f\r\n%bXX0\r\n\r\n" % BODY),
    "a signed chunk": ((CHUNKED,), b"+f\r\n%b\r\n0\r\n\r\n" % BODY),
    "a chunk that ends in a line feed": ((CHUNKED,), b"f\n%b\n0\n\n" % BODY),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_an_ambiguous_request_is_refused_and_what_follows_it_is_never_answered(target: Target, shape: str) -> None:
    _, replica, key = target
    lines, body = SHAPES[shape]
    smuggled = head("GET", "/v1/me", key)
    for pieces in ((post(key, *lines, body=body) + smuggled,), (post(key, *lines, body=b""), body, smuggled)):
        end = said(replica.url, *pieces)
        assert end.statuses == [400], end.data
        assert b"connection: close" in end.data
        assert end.code == "invalid_request"


def test_a_second_request_before_the_first_answer_is_not_looked_at(target: Target) -> None:
    _, replica, key = target
    end = said(replica.url, post(key, LENGTH) + head("GET", "/v1/me", key) * 3)
    assert end.statuses == [422]
    end = said(replica.url, head("GET", "/v1/me", key) + b"NOT HTTP AT ALL\r\n\r\n")
    assert end.statuses == [200]


def test_what_comes_too_early_does_not_cost_the_answer(target: Target) -> None:
    _, replica, key = target
    for _ in range(10):
        end = said(replica.url, head("GET", "/v1/me", key) * 2, *[b"x" * 100_000] * 3)
        assert end.statuses == [200]


def test_a_tail_after_the_body_is_not_a_request(target: Target) -> None:
    _, replica, key = target
    end = said(replica.url, post(key, "Content-Length: 5") + head("GET", "/v1/me", key))
    assert end.statuses in ([400], [422])


@pytest.mark.parametrize(
    "lines",
    [
        ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQAAP__"),
        ("Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
         "Sec-WebSocket-Version: 13"),
        ("Connection: Upgrade", "Upgrade: TLS/1.0"),
    ],
)  # fmt: skip
def test_an_upgrade_is_never_made_and_nothing_of_another_protocol_is_read(
    target: Target, lines: tuple[str, ...]
) -> None:
    _, replica, key = target
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"
    end = said(replica.url, head("GET", "/v1/me", key, *lines) + preface, head("GET", "/v1/me", key))
    assert end.statuses == [200]
    end = said(replica.url, post(key, *lines, LENGTH) + head("GET", "/v1/me", key))
    assert end.statuses == [400]


@pytest.mark.parametrize(
    "data",
    [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc",
     b"CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n"],
    ids=["HTTP/2", "TLS", "CONNECT"],
)  # fmt: skip
def test_another_protocol_is_refused(target: Target, data: bytes) -> None:
    end = said(target[1].url, data)
    assert all(status in (400, 404, 405) for status in end.statuses)
    assert len(end.statuses) == 1


@pytest.mark.parametrize(
    "lines",
    [
        [f"X-{number}: y" for number in range(5000)], [f"X: {'y' * 65_536}"], [f"{'X' * 65_536}: y"],
        ["X: " + "y" * 1_000_000], ["A: b"] * 101,
    ],
    ids=["5,000 headers", "a value of 64 KiB", "a name of 64 KiB", "a value of 1 MB", "101 headers"],
)  # fmt: skip
def test_a_head_that_is_too_large_is_refused(target: Target, lines: list[str]) -> None:
    _, replica, key = target
    end = said(replica.url, head("GET", "/v1/me", key, *lines, "Connection: close"))
    assert end.statuses == [431]
    assert json.loads(end.data.partition(b"\r\n\r\n")[2])["code"] == "headers_too_large"
