"""A slot that was given back a moment ago is taken again without asking, and never more than the fleet may have."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from time import monotonic
from types import MappingProxyType

import pytest
import redis

from app.errors import Refused
from app.prodia import turns
from app.prodia.turns import Turns
from app.store import keys
from app.store.redis import Store

LINE = ("acme", "pro")


@asynccontextmanager
async def process(
    server: redis.Redis, name: str, *, total: int = 2, caps: Mapping[str, int] = MappingProxyType({})
) -> AsyncIterator[tuple[Turns, Counter[str]]]:
    """One process's turns, alive, and how often it asked for what."""
    asked: Counter[str] = Counter()
    port = server.connection_pool.connection_kwargs["port"]
    store = Store(
        f"redis://127.0.0.1:{port}/0", timeout=5, connect_timeout=5, observe=lambda op, *_: asked.update([op])
    )
    server.zadd(keys.LEASES, {name: 10**15})
    try:
        yield Turns(store, name, total=total, caps=caps, probe_seconds=5), asked
    finally:
        await store.aclose()


async def job(of: Turns, *, seconds: float = 0.0, within: float = 5.0) -> None:
    """Take a slot, use it, give it back."""
    async with of.turn(LINE[0], 1, LINE[1], monotonic() + 60).taken(timeout=within):
        await asyncio.sleep(seconds)


def test_jobs_that_follow_each_other_share_a_slot_without_asking(server: redis.Redis) -> None:
    async def play() -> int:
        server.flushall()
        async with process(server, "a") as (ours, asked):
            for _ in range(200):
                await job(ours)
            return asked["prodia/turns"]

    assert asyncio.run(play()) < 100  # what is told a few hundredths of a second later is told for many


def test_one_slot_that_was_given_back_goes_to_one_job(server: redis.Redis) -> None:
    async def play() -> int:
        server.flushall()
        now = most = 0
        async with process(server, "a", total=2) as (ours, _):

            async def counted() -> None:
                nonlocal now, most
                async with ours.turn(LINE[0], 1, LINE[1], monotonic() + 60).taken(timeout=5):
                    now += 1
                    most = max(most, now)
                    await asyncio.sleep(0.05)
                    now -= 1

            await job(ours)
            await asyncio.gather(counted(), counted(), counted())
        return most

    assert asyncio.run(play()) == 2


def test_a_slot_that_was_told_of_is_not_this_processs_any_more(
    server: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turns, "FRESH", 60)

    async def slots(name: str, count: int) -> None:
        while int(server.hget(keys.HELD, f"{name}|acme|pro") or 0) != count:  # noqa: ASYNC110
            await asyncio.sleep(0.01)

    async def play() -> str:
        server.flushall()
        async with process(server, "a", total=2) as (ours, _), process(server, "b", total=2) as (theirs, _):
            await job(ours)
            await slots("a", 0)
            there = asyncio.gather(job(theirs, seconds=0.5), job(theirs, seconds=0.5))
            await slots("b", 2)
            try:
                await job(ours, within=0.1)
            except Refused as refused:
                return refused.code
            finally:
                await there
        return "taken"

    assert asyncio.run(play()) == "upstream_busy"


def test_a_pause_that_another_process_told_is_heard_before_the_next_job_but_for_a_moment(server: redis.Redis) -> None:
    """A process that is busy without a break would else never hear of it."""

    async def play() -> tuple[int, str]:
        server.flushall()
        async with process(server, "a") as (ours, _), process(server, "b") as (theirs, _):
            await job(ours, seconds=turns.FRESH * 2)  # what it heard is old by now, and its slot is given back just now
            long = asyncio.create_task(job(ours, seconds=turns.FRESH * 2))
            await asyncio.sleep(turns.FRESH)
            theirs.pause(LINE[1], 30)
            await long
            sent = 0
            began = monotonic()
            while monotonic() - began < 1:
                try:
                    await job(ours, within=0.2)
                    sent += 1
                except Refused as refused:
                    return sent, refused.code
        return sent, "never heard"

    assert asyncio.run(play()) == (0, "upstream_busy")


@pytest.mark.parametrize("teller", ["another process", "itself"])
def test_a_process_whose_every_job_takes_a_slot_again_hears_of_a_pause(server: redis.Redis, teller: str) -> None:
    """It wants nothing when it asks, so what only those hear who want something would never reach it."""

    async def play() -> int:
        server.flushall()
        async with process(server, "a", total=24) as (ours, _), process(server, "b", total=24) as (theirs, _):
            sent: list[float] = []
            until = monotonic() + 2

            async def client() -> None:
                while monotonic() < until:
                    with suppress(Refused):
                        async with ours.turn(LINE[0], 1, LINE[1], monotonic() + 60).taken(timeout=0.5):
                            sent.append(monotonic())
                            await asyncio.sleep(0.01)

            clients = asyncio.gather(*(client() for _ in range(4)))
            await asyncio.sleep(0.5)
            (ours if teller == "itself" else theirs).pause(LINE[1], 30)
            heard = monotonic() + 0.5  # ten times what it may take
            await clients
        return sum(moment > heard for moment in sent)

    assert asyncio.run(play()) == 0


def test_a_slot_below_the_cap_of_its_type_is_not_taken_again_while_another_process_waits_for_one(
    server: redis.Redis,
) -> None:
    async def play() -> float:
        server.flushall()
        caps, longest, over = {LINE[1]: 2}, 0.0, False
        async with (
            process(server, "a", total=24, caps=caps) as (ours, _),
            process(server, "b", total=24, caps=caps) as (theirs, _),
        ):

            async def client() -> None:
                while not over:
                    await job(ours, seconds=0.005)

            clients = asyncio.gather(client(), client())
            await asyncio.sleep(0.2)
            for _ in range(6):
                began = monotonic()
                async with theirs.turn("zeta", 1, LINE[1], monotonic() + 60).taken(timeout=30):
                    longest = max(longest, monotonic() - began)
                await asyncio.sleep(0.05)
            over = True
            await clients
        return longest

    assert asyncio.run(play()) < 1
