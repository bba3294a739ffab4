"""What was delivered for nothing is counted once, also when the reply to a batch is lost, and is read whole."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
import redis

from app.domain.job import Job
from app.domain.policy import apply
from app.domain.usage import parse_query
from app.domain.windows import local_date
from app.errors import LedgerUnavailable
from app.quota.deliveries import Deliveries
from app.quota.epoch import Epoch
from app.quota.ledger import Ledger
from app.quota.usage import read
from app.store.redis import Store
from tests.unit.asks import caller, request, tenant

ZONE = "Pacific/Auckland"


def job(user: str = "ada") -> Job:
    return apply(caller(tenant(timezone=ZONE)), request(user=user, tags=["web"]))


def reported(server: redis.Redis, work: Callable[[Deliveries], Awaitable[None]]) -> dict[str, Any]:
    """The report by user and tags after some work on an empty server."""
    server.flushall()

    async def run() -> dict[str, Any]:
        port = server.connection_pool.connection_kwargs["port"]
        store = Store(f"redis://127.0.0.1:{port}/0", timeout=0.5, connect_timeout=0.5, observe=lambda *_: None)
        ledger = Ledger(store, Epoch(store), "inc_1", moved=lambda _: None)
        try:
            await work(Deliveries(ledger))
            query = parse_query([("group_by", "user,tags")], today=local_date(ZONE, ledger.now()))
            return (await read(store, "acme", ZONE, query)).document()
        finally:
            await store.aclose()

    return asyncio.run(run())


def test_a_batch_whose_reply_was_lost_is_sent_again_and_counted_once(server: redis.Redis) -> None:
    info: Any = server.info("server")

    async def work(deliveries: Deliveries) -> None:
        one = job()
        deliveries.note(one, "cache", 40_000)
        await deliveries.flush()
        deliveries.note(one, "coalesced", 40_000)
        os.kill(info["process_id"], signal.SIGSTOP)
        try:
            with pytest.raises(LedgerUnavailable):
                await deliveries.flush()  # it lies in the server's socket, and will be done
        finally:
            os.kill(info["process_id"], signal.SIGCONT)
        deliveries.note(one, "cache", 40_000)
        written = 0
        while written < 3:  # connecting anew may take a try or two
            with suppress(LedgerUnavailable):
                await deliveries.flush()
                written += 1

    found = reported(server, work)
    assert [(row["user"], row["tags"]) for row in found["rows"]] == [("ada", ["web"])]
    assert found["total"]["delivered"] == {"upstream": 0, "cache": 2, "coalesced": 1}
    assert found["total"]["saved"]["micro_usd"] == 120_000


def test_a_day_with_many_groups_is_read_whole(server: redis.Redis) -> None:
    async def work(deliveries: Deliveries) -> None:
        one = job()
        for i in range(3_000):
            deliveries.note(replace(one, request=replace(one.request, user=f"user-{i}")), "cache", 40_000)
        await deliveries.flush()

    found = reported(server, work)
    assert (len(found["rows"]), found["total"]["delivered"]["cache"]) == (3_000, 3_000)
