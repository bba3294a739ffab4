"""Connections that are kept, go stale, are cancelled, stall or run out: none may cost a job or lose a slot."""

from __future__ import annotations

import asyncio
import os

import pytest

from app.prodia import client as client_module
from app.prodia.wire import Call
from tests.prodia.answers import COMPLETED, JPEG, MULTIPART, envelope, job, job_part, output_part
from tests.prodia.upstream import PICTURE, TEXT, Wire, answers, edit, http, outcome, prodia, upstream

pytestmark = pytest.mark.anyio


async def test_a_request_on_a_connection_that_went_stale_is_never_sent_twice() -> None:
    """The upstream closes a kept connection once its next request is in: the one failure HTTP clients re-send on."""

    async def closes_when_reused(wire: Wire) -> None:
        await wire.request()
        await wire.send(http())
        await wire.request()

    async with upstream(closes_when_reused) as server, prodia(server.url) as subject:
        for call in (TEXT, edit(200_000)):
            assert await subject.attempt(call, timeout=5) == PICTURE
            assert (await outcome(subject, call)).outcome == "lost"
    assert len(server.received) == 4


async def test_an_idle_connection_that_the_upstream_closed_is_not_used_again() -> None:
    async def once(wire: Wire) -> None:
        await wire.request()
        await wire.send(http())

    async with upstream(once) as server, prodia(server.url) as subject:
        for _ in range(3):
            assert await subject.attempt(TEXT, timeout=5) == PICTURE
            await asyncio.sleep(0.02)
    assert server.connections == 3


@pytest.mark.parametrize("call", [TEXT, edit(200_000)])
async def test_an_answer_that_nobody_asked_for_is_not_taken_for_the_next_jobs(call: Call) -> None:
    stray = envelope(job_part(job()), output_part(JPEG + b"of another tenant"))

    async def answers_twice(wire: Wire) -> None:
        await wire.request()
        await wire.send(http())
        await asyncio.sleep(0.02)
        await wire.send(http(200, stray))
        await answers(wire)

    async with upstream(answers_twice) as server, prodia(server.url) as subject:
        assert await subject.attempt(TEXT, timeout=5) == PICTURE
        await asyncio.sleep(0.1)
        assert (await outcome(subject, call)).outcome == "unsent"
        assert await subject.attempt(TEXT, timeout=5) == PICTURE


async def test_a_time_out_sent_to_an_idle_connection_is_unsent_for_the_job_that_finds_it() -> None:
    async def times_out_when_idle(wire: Wire) -> None:
        await wire.request()
        await wire.send(http())
        await asyncio.sleep(0.02)
        await wire.send(http(408, b"idle", "text/plain"))
        await asyncio.sleep(1)

    async with upstream(times_out_when_idle) as server, prodia(server.url) as subject:
        assert await subject.attempt(TEXT, timeout=5) == PICTURE
        await asyncio.sleep(0.1)
        fault = await outcome(subject)
    assert (fault.outcome, fault.status) == ("unsent", 408)
    assert len(server.received) == 1


async def test_idle_connections_are_closed_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    assert client_module.KEEPALIVE_SECONDS <= 4
    monkeypatch.setattr(client_module, "KEEPALIVE_SECONDS", 0.2)
    async with upstream(answers) as server, prodia(server.url) as subject:
        await subject.attempt(TEXT, timeout=5)
        await asyncio.sleep(0.3)
        await subject.attempt(TEXT, timeout=5)
    assert server.connections == 2


async def test_cancelled_calls_do_not_wedge_the_pool() -> None:
    async def slow(wire: Wire) -> None:
        while True:
            await wire.request()
            await asyncio.sleep(0.05)
            await wire.send(http(200, COMPLETED, MULTIPART, "Connection: close"))

    async with upstream(slow) as server, prodia(server.url, max_connections=4) as subject:
        for wave in range(4):
            calls = [asyncio.create_task(subject.attempt(edit(100_000 * (n % 3)), timeout=5)) for n in range(40)]
            for number, call in enumerate(calls):
                asyncio.get_running_loop().call_later((number % 10) * 0.004 + wave * 0.02, call.cancel)
            await asyncio.gather(*calls, return_exceptions=True)
        found = await asyncio.gather(*(subject.attempt(TEXT, timeout=5) for _ in range(10)))
        assert found == [PICTURE] * 10
        await asyncio.sleep(0.1)
        assert len(server.open) <= 4


async def test_no_more_connections_are_open_than_allowed_and_waiting_is_unsent() -> None:
    async def silent(wire: Wire) -> None:
        await wire.request()
        await asyncio.sleep(30)

    async with upstream(silent) as server, prodia(server.url, max_connections=3) as subject:
        found = await asyncio.gather(*(outcome(subject, timeout=0.6 if n < 3 else 0.3) for n in range(8)))
        assert server.connections == 3
    assert [fault.outcome for fault in found] == ["lost"] * 3 + ["unsent"] * 5


async def test_sockets_of_a_server_that_stopped_reading_are_closed_after_a_while(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def stalls(wire: Wire) -> None:
        await wire.head()
        await asyncio.sleep(30)

    monkeypatch.setattr(client_module, "STALLED_SECONDS", 1)
    async with upstream(stalls, receive_buffer=16_384) as server, prodia(server.url) as subject:
        found = await asyncio.gather(*(outcome(subject, edit(16_000_000), timeout=0.3) for _ in range(4)))
        assert [fault.outcome for fault in found] == ["unsent"] * 4
        held = len(os.listdir("/proc/self/fd"))
        await asyncio.sleep(2.5)
        assert len(os.listdir("/proc/self/fd")) <= held - 4


async def test_attempts_under_way_end_as_faults_when_the_client_closes() -> None:
    async def silent(wire: Wire) -> None:
        await wire.request()
        await asyncio.sleep(30)

    async with upstream(silent) as server, prodia(server.url) as subject:
        call = asyncio.create_task(outcome(subject))
        async with asyncio.timeout(10):
            while not server.received:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        await subject.aclose()
        assert (await call).outcome == "lost"
        assert (await outcome(subject)).outcome == "unsent"


async def test_cookies_of_the_upstream_are_neither_kept_nor_sent() -> None:
    async def sets_cookies(wire: Wire) -> None:
        while True:
            await wire.request()
            await wire.send(http(200, COMPLETED, MULTIPART, "Set-Cookie: a=b; Path=/"))

    async with upstream(sets_cookies) as server, prodia(server.url) as subject:
        for _ in range(2):
            await subject.attempt(TEXT, timeout=5)
    assert [received.headers("cookie") for received in server.received] == [[], []]


async def test_the_environment_cannot_send_requests_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    async with upstream(answers) as server, upstream(answers) as proxy:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, proxy.url.removesuffix("/v2"))
        async with prodia(server.url) as subject:
            await subject.attempt(TEXT, timeout=5)
    assert (server.connections, proxy.connections) == (1, 0)
