"""One attempt against real sockets: above all, whether a failure is proven unsent or may have been paid for."""

from __future__ import annotations

import asyncio
import gzip
import socket
import time
from typing import Any

import httpx2
import pytest

from app.prodia.client import Prodia
from app.prodia.faults import Fault
from app.prodia.wire import Call, Part
from tests.prodia.answers import COMPLETED, JOB_ID, MULTIPART, envelope, failed, job_part
from tests.prodia.upstream import PICTURE, TEXT, TOKEN, Wire, answering, answers, edit, http, outcome, prodia, upstream

pytestmark = pytest.mark.anyio


# --- what is sent


async def test_a_request_is_these_bytes_and_no_others() -> None:
    async with upstream(answers) as server, prodia(server.url) as subject:
        assert await subject.attempt(TEXT, timeout=5) == PICTURE
    host = server.url.removeprefix("http://").removesuffix("/v2")
    assert server.received[0].head.decode() == (
        "POST /v2/job?price=true HTTP/1.1\r\n"
        f"host: {host}\r\n"
        f"authorization: Bearer {TOKEN}\r\n"
        "accept: multipart/form-data; image/jpeg\r\n"
        "accept-encoding: identity\r\n"
        "user-agent: kontext-gateway\r\n"
        "content-type: application/json\r\n"
        "content-length: 78\r\n"
        "\r\n"
    )
    assert server.received[0].body == (
        b'{"type":"inference.flux-kontext.pro.txt2img.v2","config":{"prompt":"a storm"}}'
    )


async def test_a_large_upload_has_a_length_and_arrives_whole_on_a_kept_connection() -> None:
    async with upstream(answers) as server, prodia(server.url) as subject:
        for _ in range(3):
            assert await subject.attempt(edit(3_000_000), timeout=5) == PICTURE
    assert server.connections == 1
    for received in server.received:
        assert received.headers("transfer-encoding") == []
        assert received.body.count(b"x" * 3_000_000) == 1


async def test_a_transport_can_be_given() -> None:
    async def handler(request: httpx2.Request) -> httpx2.Response:
        assert request.url == "http://upstream.test/v2/job?price=true"
        return httpx2.Response(200, headers={"content-type": MULTIPART}, content=COMPLETED)

    async with prodia("http://upstream.test/v2/", transport=httpx2.MockTransport(handler)) as subject:
        assert await subject.attempt(edit(10), timeout=5) == PICTURE


@pytest.mark.parametrize(
    "url",
    ["", "inference.prodia.com/v2", "ftp://h/v2", "http://", "https://user:pw@h/v2", "https://h/v2?x=1", "https://h#f"],
)
async def test_an_address_that_could_mislead_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="address"):
        Prodia(base_url=url, token=TOKEN, max_connections=1)


@pytest.mark.parametrize("token", ["a\r\nX-Evil: 1", "a\x00", "tök"])
async def test_a_token_that_a_header_cannot_carry_is_refused_unseen(token: str) -> None:
    with pytest.raises(ValueError, match="token") as caught:
        Prodia(base_url="http://127.0.0.1", token=token, max_connections=1)
    assert token not in str(caught.value)


# --- proven unsent


async def test_a_refused_connection_is_unsent() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    async with prodia(f"http://127.0.0.1:{port}/v2") as subject:
        fault = await outcome(subject)
    assert (fault.outcome, fault.timed_out, fault.cause) == ("unsent", False, "ClientConnectorError")


@pytest.mark.parametrize("seconds", [0.0, 1.0])
async def test_a_name_that_does_not_resolve_is_unsent(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    def no_name(*_: Any, **__: Any) -> Any:
        time.sleep(seconds)
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", no_name)
    async with prodia("http://nowhere.invalid/v2") as subject:
        started = time.monotonic()
        fault = await outcome(subject, timeout=0.3)
        assert time.monotonic() - started < 0.8
    assert (fault.outcome, fault.timed_out) == ("unsent", seconds > 0)


async def test_a_connection_that_is_never_accepted_is_unsent_within_the_connect_timeout() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        address = listener.getsockname()
        queue = [socket.socket() for _ in range(3)]
        for waiting in queue:
            waiting.setblocking(False)
            waiting.connect_ex(address)
        started = time.monotonic()
        async with prodia(f"http://127.0.0.1:{address[1]}/v2", connect_timeout=0.3) as subject:
            fault = await outcome(subject)
        for waiting in queue:
            waiting.close()
    assert fault.outcome == "unsent"
    assert time.monotonic() - started < 1.5


async def test_a_server_that_does_not_speak_tls_is_unsent() -> None:
    async def refuses(wire: Wire) -> None:
        await wire.reader.read(10)
        await wire.send(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    async with upstream(refuses) as server, prodia(server.url.replace("http", "https")) as subject:
        assert (await outcome(subject)).outcome == "unsent"
    assert server.connections == 1


@pytest.mark.parametrize("rst", [False, True])
async def test_a_cut_in_the_middle_of_the_upload_is_unsent(rst: bool) -> None:
    async def half(wire: Wire) -> None:
        await wire.head()
        await wire.reader.readexactly(500_000)
        if rst:
            wire.reset()

    sent: list[bool] = []
    async with upstream(half, receive_buffer=16_384) as server, prodia(server.url) as subject:
        with pytest.raises(Fault) as caught:
            await subject.attempt(edit(8_000_000), timeout=5, on_sent=lambda: sent.append(True))
    assert (caught.value.outcome, sent) == ("unsent", [])
    assert server.connections == 1


async def test_a_server_that_stops_reading_is_unsent_at_the_deadline() -> None:
    async def stalls(wire: Wire) -> None:
        await wire.head()
        await asyncio.sleep(30)

    async with upstream(stalls, receive_buffer=16_384) as server, prodia(server.url) as subject:
        fault = await outcome(subject, edit(16_000_000), timeout=0.5)
    assert (fault.outcome, fault.timed_out) == ("unsent", True)


async def test_a_body_that_breaks_off_or_is_not_as_long_as_it_said_is_unsent() -> None:
    class Lying:
        size = 100_000

        def __init__(self, *chunks: bytes) -> None:
            self._chunks = chunks

        def chunks(self) -> Any:
            yield from self._chunks
            if not self._chunks:
                raise OSError("the spool file is gone")

    for blob in (Lying(), Lying(b"x" * 50_000), Lying(b"x" * 50_000, b"x" * 60_000)):
        async with upstream(answers) as server, prodia(server.url) as subject:
            call = Call("img2img", {}, (Part("a.png", "image/png", blob),), "jpeg")
            assert (await outcome(subject, call)).outcome == "unsent"
        assert server.received == []


# --- sent, and then nothing


@pytest.mark.parametrize("rst", [False, True])
@pytest.mark.parametrize("call", [TEXT, edit(1_000_000)])
async def test_a_cut_after_the_whole_request_is_lost(call: Call, rst: bool) -> None:
    async def takes_it(wire: Wire) -> None:
        await wire.request()
        if rst:
            wire.reset()

    sent: list[bool] = []
    async with upstream(takes_it) as server, prodia(server.url) as subject:
        with pytest.raises(Fault) as caught:
            await subject.attempt(call, timeout=5, on_sent=lambda: sent.append(True))
    assert (caught.value.outcome, caught.value.timed_out, sent) == ("lost", False, [True])
    assert len(server.received) == 1


async def test_a_small_request_whose_connection_is_closed_unread_is_lost() -> None:
    async def hangs_up(wire: Wire) -> None:
        return

    async with upstream(hangs_up) as server, prodia(server.url) as subject:
        assert (await outcome(subject)).outcome == "lost"
    assert server.connections == 1


async def test_silence_is_lost_at_the_deadline() -> None:
    async def silent(wire: Wire) -> None:
        await wire.request()
        await asyncio.sleep(30)

    async with upstream(silent) as server, prodia(server.url) as subject:
        started = time.monotonic()
        fault = await outcome(subject, timeout=0.4)
    assert (fault.outcome, fault.timed_out) == ("lost", True)
    assert 0.4 <= time.monotonic() - started < 0.9


async def test_a_trickled_answer_is_lost_at_the_deadline() -> None:
    async def trickles(wire: Wire) -> None:
        await wire.request()
        for at in range(len(COMPLETED)):
            await wire.send(http()[at : at + 1] if at < 200 else b"x")
            await asyncio.sleep(0.02 if at > 150 else 0)

    async with upstream(trickles) as server, prodia(server.url) as subject:
        started = time.monotonic()
        fault = await outcome(subject, timeout=0.6)
    assert (fault.outcome, fault.timed_out) == ("lost", True)
    assert time.monotonic() - started < 1.1


@pytest.mark.parametrize("rst", [False, True])
@pytest.mark.parametrize("framing", ["length", "chunked", "close"])
async def test_half_an_answer_is_malformed(framing: str, rst: bool) -> None:
    head = {
        "length": f"Content-Length: {len(COMPLETED)}\r\n\r\n",
        "chunked": f"Transfer-Encoding: chunked\r\n\r\n{len(COMPLETED):x}\r\n",
        "close": "Connection: close\r\n\r\n",
    }[framing]
    data = f"HTTP/1.1 200 OK\r\nContent-Type: {MULTIPART}\r\n{head}".encode() + COMPLETED[:-200]

    async def breaks_off(wire: Wire) -> None:
        await wire.request()
        await wire.send(data)
        await asyncio.sleep(0.05)
        if rst:
            wire.reset()

    async with upstream(breaks_off) as server, prodia(server.url) as subject:
        fault = await outcome(subject)
    assert fault.outcome == "malformed"
    assert rst or fault.upstream_id == JOB_ID  # so a bill can tell what became of it


@pytest.mark.parametrize(
    "data",
    [
        b"SSH-2.0-OpenSSH\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 500 + b"\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"y" * 100_000 + b"\r\n\r\n",
        b"HTTP/1.1 20",
    ],
)
async def test_an_answer_that_is_not_http_is_lost_and_shows_no_token(data: bytes) -> None:
    async with upstream(answering(data)) as server, prodia(server.url) as subject:
        fault = await outcome(subject)
    assert fault.outcome == "lost"
    assert fault.__cause__ is None
    assert fault.__context__ is None


# --- answers


async def test_an_answer_while_the_upload_runs_is_the_outcome() -> None:
    async def refuses_early(wire: Wire) -> None:
        await wire.head()
        await wire.send(http(413, b"too large", "text/plain", "Connection: close"))
        await asyncio.sleep(0.3)

    async with upstream(refuses_early, receive_buffer=16_384) as server, prodia(server.url) as subject:
        fault = await outcome(subject, edit(16_000_000))
    assert (fault.outcome, fault.status) == ("refused", 413)


async def test_a_gateway_error_while_the_upload_runs_is_proven_unsent() -> None:
    async def breaks_early(wire: Wire) -> None:
        await wire.head()
        await wire.send(http(502, b"bad gateway", "text/plain"))
        await asyncio.sleep(0.3)

    async with upstream(breaks_early, receive_buffer=16_384) as server, prodia(server.url) as subject:
        fault = await outcome(subject, edit(16_000_000))
    assert (fault.outcome, fault.status) == ("unsent", 502)


async def test_a_picture_that_comes_before_the_request_has_left_is_not_believed() -> None:
    async def hasty(wire: Wire) -> None:
        await wire.head()
        await wire.send(http())
        await asyncio.sleep(0.3)

    async with upstream(hasty, receive_buffer=16_384) as server, prodia(server.url) as subject:
        assert (await outcome(subject, edit(16_000_000))).outcome == "unsent"


async def test_a_busy_upstream_says_how_long_to_wait() -> None:
    data = http(429, b"", "text/plain", "Retry-After: 2", "Retry-After: 7")
    async with upstream(answering(data)) as server, prodia(server.url) as subject:
        fault = await outcome(subject)
    assert (fault.outcome, fault.status, fault.retry_after) == ("busy", 429, 7)


async def test_a_refusal_counts_although_its_body_is_cut_endless_or_compressed() -> None:
    async def endless(wire: Wire) -> None:
        await wire.request()
        await wire.send(b"HTTP/1.1 400 Bad\r\nContent-Length: 999999999\r\n\r\n")
        while True:
            await wire.send(b"x" * 65_536)

    cut = answering(http(401, b"token is inv", "text/plain", length=1000))
    packed = answering(http(429, gzip.compress(b"busy"), "text/plain", "Content-Encoding: gzip"))
    for behaviour, expected in ((endless, "failed"), (cut, "misconfigured"), (packed, "busy")):
        async with upstream(behaviour) as server, prodia(server.url) as subject:
            assert (await outcome(subject)).outcome == expected


async def test_a_trickled_refusal_counts_at_the_deadline() -> None:
    async def trickles(wire: Wire) -> None:
        await wire.request()
        await wire.send(http(429, b"", "text/plain", length=1000))
        await asyncio.sleep(30)

    async with upstream(trickles) as server, prodia(server.url) as subject:
        assert (await outcome(subject, timeout=0.4)).outcome == "busy"


async def test_a_redirect_is_not_followed_and_the_token_stays() -> None:
    async with upstream(answers) as elsewhere:
        for status in (301, 302, 303, 307, 308):
            for target in (elsewhere.url, "//", "http://[", "/v3/job"):
                data = http(status, b"", "text/html", f"Location: {target}")
                async with upstream(answering(data)) as server, prodia(server.url) as subject:
                    fault = await outcome(subject)
                assert (fault.outcome, fault.status) == ("misconfigured", status)
                assert server.connections == 1
    assert elsewhere.connections == 0


@pytest.mark.parametrize("encoding", ["gzip", "identity, gzip", "br"])
async def test_a_compressed_answer_is_refused_undecoded(encoding: str) -> None:
    for content in (COMPLETED, b"\0" * 50_000_000):
        data = http(200, gzip.compress(content), MULTIPART, f"Content-Encoding: {encoding}")
        async with upstream(answering(data)) as server, prodia(server.url) as subject:
            assert (await outcome(subject)).outcome == "malformed"


@pytest.mark.parametrize("declared", [True, False])
async def test_a_hundred_megabyte_answer_is_given_up_at_the_cap(declared: bool) -> None:
    written = 0

    async def floods(wire: Wire) -> None:
        nonlocal written
        await wire.request()
        framing = "Content-Length: 100000000" if declared else "Connection: close"
        await wire.send(f"HTTP/1.1 200 OK\r\nContent-Type: {MULTIPART}\r\n{framing}\r\n\r\n".encode())
        for _ in range(100):
            await wire.send(b"x" * 1_000_000)
            written += 1_000_000

    async with upstream(floods) as server, prodia(server.url, max_response_bytes=2_000_000) as subject:
        assert (await outcome(subject)).outcome == "malformed"
        await asyncio.sleep(0.05)
        assert not server.open
    assert written < 20_000_000


async def test_our_token_is_nowhere_in_a_fault_although_the_upstream_echoes_it() -> None:
    echo = envelope(job_part(failed(f"Bearer {TOKEN} at '/config/{TOKEN}': maximum: got 2, want 1", id=TOKEN)))
    for status in (200, 400, 401, 403, 429, 500, 503):
        data = http(status, echo, MULTIPART, f"X-Echo: {TOKEN}", f"Retry-After: {TOKEN}")
        async with upstream(answering(data)) as server, prodia(server.url) as subject:
            fault = await outcome(subject)
            assert TOKEN not in f"{subject!r} {fault!r} {fault} {vars(fault)} {fault.__cause__!r} {fault.__context__!r}"
