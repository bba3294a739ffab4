"""A hold of a dead process is found among however many others, by the ledger's clock."""

from __future__ import annotations

import asyncio
from pathlib import Path

from app.quota import reaper
from app.store import keys
from app.telemetry.outcome import Outcome
from tests.faults.books import Books
from tests.faults.leaving import inside
from tests.faults.storm import tenants, token
from tests.fleet import Fleet, fleet
from tests.scripts.desk import DIGEST, KEY, TENANT, Desk, Limit

WAITING = reaper.PAGE + 20


async def _reaped(running: Fleet, key: str, desk: Desk) -> int:
    """How many are ended where one hold of a dead process is younger than all that wait in the queue."""
    async with inside(running) as app:
        app.health._task.cancel()  # type: ignore[union-attr]  # nobody reaps but this test
        await app.gateway.authenticate(key, Outcome("req_1"))  # the tenant is enrolled
        desk.client.hset(keys.key(TENANT, KEY), mapping={f"d:{DIGEST}": "0", "version": "1"})
        span, limits = (desk.now - 1_000, desk.now + 10_000), [Limit("user", "usd", 10**9, 10)]
        for number in range(WAITING):
            assert desk.reserve(f"waits{number}", "", limits, span, amount=10, queued=True)[0] == "ok"
        for number in range(2):
            assert desk.reserve(f"dead{number}", "inc_dead", limits, span, amount=10)[0] == "ok"
        scores = {f"waits{number}": 1 for number in range(WAITING)} | {"dead0": 2, "dead1": 2}
        desk.client.zadd(keys.outstanding(TENANT), scores)
        return await reaper.reap(app.gateway.ledger, app.health._incarnation)


def test_a_dead_hold_is_reaped_though_many_wait_in_the_queue(tmp_path: Path) -> None:
    with fleet(tmp_path, tenants(None), replicas=0) as running, running.redis as client:
        desk = Desk(client, epoch=str(client.hget(keys.ROOT, "id").decode()))
        assert asyncio.run(_reaped(running, token(running), desk)) == 2
        found = Books.read(client, TENANT)
        assert {found.holds[f"dead{number}"]["state"] for number in range(2)} == {"REFUNDED"}
        assert len(found.outstanding) == WAITING
        assert not found.violations()
