"""The identity of a ledger: what replicas remember of it decides whether one that they find is the one they knew."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from app.quota.epoch import Epoch, initialise, release
from app.store import keys
from app.store.redis import Store
from tests.redis_server import RedisServer


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    with RedisServer(tmp_path / "redis") as server:
        opened = Store(server.url, timeout=2, connect_timeout=1, observe=lambda *_: None)
        await initialise(opened)
        yield opened
        await opened.aclose()


async def known(store: Store) -> Epoch:
    """What a replica knows that starts now."""
    epoch = Epoch(store)
    await epoch.open()
    return epoch


async def test_a_release_is_followed_by_whoever_lives(store: Store) -> None:
    epoch = await known(store)
    for _ in range(2):
        wanted = await release(store)
        await epoch.watch()
        assert (epoch.id, epoch.frozen) == (wanted, False)


async def test_a_ledger_of_before_the_last_release_is_no_release(store: Store) -> None:
    """It was released once, and so says its copy; what was spent since the last release is not in it."""
    await release(store)
    copy = await store.command("HGETALL", keys.ROOT)
    await release(store)
    watching, asking = await known(store), await known(store)
    await store.command("HSET", keys.ROOT, *(part for pair in copy.items() for part in pair))
    await watching.watch()
    assert watching.frozen
    with pytest.raises(Exception, match="rolled back"):
        await asking.mismatch("acme", b"")
    wanted = await release(store)
    for epoch in (watching, asking):
        await epoch.watch()
        assert (epoch.id, epoch.frozen) == (wanted, False)


async def test_one_replica_that_remembers_more_stops_all_of_them(store: Store) -> None:
    """Its own requests were the last before the ledger was rolled back; the other has not heard of them, and one that
    starts afterwards has not heard of anything."""
    remembers, forgot = await known(store), await known(store)
    await store.command("SADD", keys.TENANTS, "acme")
    await store.command("HSET", keys.ledger("acme"), "epoch", str(remembers.id), "seq", 100)
    remembers.saw("acme", b"150")
    forgot.saw("acme", b"90")
    await remembers.watch()
    await forgot.watch()
    assert remembers.frozen
    assert forgot.frozen
    later = await known(store)
    assert later.frozen
    wanted = await release(store)
    for epoch in (remembers, forgot, later, await known(store)):
        await epoch.watch()
        assert (epoch.id, epoch.frozen) == (wanted, False)


async def test_a_release_by_a_clock_that_is_behind_is_followed(store: Store) -> None:
    """The copy was brought back on a server whose clock is an hour behind that of the one that was lost."""
    await release(store)
    copy = await store.command("HGETALL", keys.ROOT)
    await store.command("HSET", keys.ROOT, "id", "led_later", "released", int(copy[b"released"]) + 3_600_000)
    lives = await known(store)
    await store.command("HSET", keys.ROOT, *(part for pair in copy.items() for part in pair))
    await lives.watch()
    assert lives.frozen
    wanted = await release(store)
    await lives.watch()
    assert (lives.id, lives.frozen) == (wanted, False)


async def test_a_ledger_that_was_made_in_the_place_of_a_lost_one_is_doubted(store: Store) -> None:
    """A replica that starts on it takes it for empty no more than those do that knew the lost one."""
    lives = await known(store)
    await store.command("DEL", keys.ROOT)
    await lives.watch()
    await initialise(store)
    await lives.watch()
    assert (await known(store)).frozen
