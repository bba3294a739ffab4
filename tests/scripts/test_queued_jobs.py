"""What is kept of a queued job: its record until its end, what was asked never without an expiry."""

from __future__ import annotations

import asyncio
import random

import pytest
import redis

from app.domain.upload import Upload
from app.errors import LedgerUnavailable
from app.jobs import inputs
from app.jobs.queue import END, GROUP
from app.store import keys
from app.store.redis import Store
from app.store.seal import Seal
from tests.faults.proxy import Weather, weathered
from tests.scripts.calls import LIMITS, span
from tests.scripts.desk import TENANT, Desk, job

RECORD = keys.job(TENANT, job("r"))


def test_a_job_that_nobody_works_on_is_found_until_it_has_an_end(desk: Desk) -> None:
    desk.client.hset(RECORD, "state", "new")
    desk.client.pexpire(RECORD, 60_000)
    assert desk.reserve("r", "a", LIMITS, span(desk), amount=10, queued=True)[0] == "ok"
    assert desk.client.pttl(RECORD) == -1
    ended = [RECORD, keys.queue(TENANT), keys.waiting(TENANT), keys.queued_bytes(TENANT), keys.inputs(TENANT, job("r"))]
    ended += [keys.hooks(TENANT, "due"), keys.hook(TENANT, "msg_r")]
    assert desk.client.eval(END.text, 7, *ended, job("r"), "failed", "{}", 60_000, GROUP, "", "", "msg_r") == 1
    assert 0 < int(desk.client.pttl(RECORD)) <= 60_000  # type: ignore[arg-type]


@pytest.mark.parametrize("lost", [b"ticket", b"image:0", b"image:1"])
def test_what_was_asked_expires_also_where_the_reply_to_it_was_lost(server: redis.Redis, lost: bytes) -> None:
    """An upload that was not stored to its end expires soon, because no bound counts it."""
    server.flushall()
    at = server.connection_pool.connection_kwargs
    uploads = {"image": Upload(random.Random(1).randbytes(inputs.PIECE + 9))}

    async def go(url: str) -> None:
        store = Store(url, timeout=1, connect_timeout=1, observe=lambda *_: None)
        await store.run(inputs.KEEP, ["loaded"], [1, "a", "b"])
        try:
            await inputs.keep(store, Seal(b"pepper"), TENANT, job("r"), b"what was asked", uploads, 3_600_000)
        finally:
            await store.aclose()

    with weathered(f"redis://{at['host']}:{at['port']}") as proxy:
        proxy.set(Weather(drop_reply=1.0, only=lost))
        with pytest.raises(LedgerUnavailable):
            asyncio.run(go(proxy.at))
    key = keys.inputs(TENANT, job("r"))
    assert server.hexists(key, lost)
    most = 3_600_000 if lost == b"ticket" else inputs.WRITING_MS
    assert most - 5_000 < int(server.pttl(key)) <= most  # type: ignore[arg-type]
