"""The one connection to Redis: order, bounds, and what a server that is away or frozen does to those who ask."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from app.errors import LedgerUnavailable
from app.store.redis import WINDOW, Script, Store, script
from tests.redis_server import RedisServer

TEXT = "redis.call('INCR', KEYS[1]) return redis.call('GET', KEYS[1])"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    running = RedisServer(tmp_path / "redis").start()
    yield running
    running.kill()


@asynccontextmanager
async def store(server: RedisServer, timeout: float = 2) -> AsyncIterator[Store]:
    opened = Store(server.url, timeout=timeout, connect_timeout=1, observe=lambda *_: None)
    await opened.open()
    try:
        yield opened
    finally:
        await opened.aclose()


async def test_every_reply_reaches_the_one_who_asked_though_others_leave(server: RedisServer) -> None:
    """A caller that is cancelled takes its own reply with it, and no other."""
    async with store(server) as subject:
        asked = [asyncio.ensure_future(subject.command("ECHO", f"{number}")) for number in range(500)]
        await asyncio.sleep(0)
        for call in asked[::3]:
            call.cancel()
        found = await asyncio.gather(*asked, return_exceptions=True)
        kept = [(number, reply) for number, reply in enumerate(found) if number % 3]
        assert kept == [(number, str(number).encode()) for number, _ in kept]


async def test_what_must_not_be_late_goes_before_what_waits(server: RedisServer) -> None:
    """A heartbeat is not behind a thousand commands that have no room on the line yet."""
    async with store(server) as subject:
        beat = script("app.store", "alive")
        await subject.run(beat, ["leases"], ["x"])
        many = [asyncio.ensure_future(subject.command("INCR", "count")) for _ in range(1_000)]
        await asyncio.sleep(0)
        await subject.run(beat, ["leases"], ["x"], first=True)
        before = sum(call.done() for call in many)
        assert before <= 2 * WINDOW
        await asyncio.gather(*many)


async def test_a_script_that_the_server_forgot_runs_once(server: RedisServer) -> None:
    """NOSCRIPT means that it did not run: it is loaded, and run one time."""
    import hashlib

    wanted = Script("test/incr", TEXT, hashlib.sha1(TEXT.encode(), usedforsecurity=False).hexdigest())
    async with store(server) as subject:
        assert await subject.run(wanted, ["n"], []) == b"1"
        with server.client() as client:
            client.script_flush()
        assert await subject.run(wanted, ["n"], []) == b"2"


async def test_a_frozen_server_is_found_out_by_one_call_and_found_again(server: RedisServer) -> None:
    """The first call waits for its timeout, the next are refused at once, and the thaw ends it without a restart."""
    async with store(server, timeout=0.3) as subject:
        server.freeze()
        try:
            with pytest.raises(LedgerUnavailable):
                await subject.command("PING")
            began = time.monotonic()
            for _ in range(50):
                with pytest.raises(LedgerUnavailable):
                    await subject.command("PING")
            assert time.monotonic() - began < 0.3  # fifty refusals in the time that one late reply is waited for
        finally:
            server.thaw()
        until = time.monotonic() + 20
        while time.monotonic() < until:
            try:
                assert await subject.command("ECHO", "back") == b"back"
                break
            except LedgerUnavailable:
                await asyncio.sleep(0.05)
        else:
            pytest.fail("the server was not found again")


async def test_a_reply_that_came_is_not_late_because_the_process_was_busy(server: RedisServer) -> None:
    """The loop stands still for longer than the timeout while the reply lies in the socket."""
    async with store(server, timeout=0.2) as subject:
        asked = asyncio.ensure_future(subject.command("ECHO", "here"))
        await asyncio.sleep(0.01)
        time.sleep(0.5)  # noqa: ASYNC251  # what a busy process does
        assert await asked == b"here"


@pytest.mark.parametrize("kind", [bytes, memoryview])
@pytest.mark.parametrize("more", [(), ("EX", 60), ("NX", "EX", 60)])
async def test_a_picture_arrives_as_it_was_with_all_that_stands_around_it(
    server: RedisServer, more: tuple[object, ...], kind: type[bytes] | type[memoryview]
) -> None:
    """It is not packed like the rest of its command."""
    picture = kind(b"$0\r\n*3\r\n" * 30_000)
    async with store(server) as subject:
        before, stored, found, left = await subject.commands(
            ("GET", "key"), ("SET", "a picture", picture, *more), ("GET", "a picture"), ("TTL", "a picture")
        )
    assert (before, stored, found) == (None, True, picture)
    assert left == (60 if more else -1)
