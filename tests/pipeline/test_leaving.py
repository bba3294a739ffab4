"""Who is cancelled while money is held for it leaves nothing behind, however often it is cancelled, and whenever."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from pathlib import Path

from app.domain.job import Ask
from app.quota.hold import Hold
from app.telemetry.outcome import Outcome
from tests.faults.books import Books
from tests.faults.leaving import Steps, counted, inside
from tests.faults.storm import tenants, token
from tests.fleet import Fleet, fleet, wait_until

AWAITS = 8


async def _cancelled_twice(running: Fleet, key: str) -> int:
    """How many holds were cancelled at one await and again at a later one, in every pair."""
    async with inside(running) as app:
        caller = await app.gateway.authenticate(key, Outcome("req_1"))
        ask = Ask("generate", {"prompt": "a lighthouse at dawn", "seed": 1}, {})
        job = (await app.gateway.admit(caller, ask, Outcome("req_1"))).job
        count = 0
        for first in range(AWAITS):
            for second in range(first + 1, AWAITS + 1):
                steps, hold = Steps(frozenset({first, second})), Hold(app.gateway.ledger, job, "job_1")

                async def enter(hold: Hold = hold) -> None:
                    async with hold:
                        await asyncio.sleep(0)
                        await asyncio.sleep(0)

                steps.caller = asyncio.create_task(counted(enter(), steps))
                with suppress(asyncio.CancelledError):
                    await steps.caller
                count += len(steps.left) == 2
        async with asyncio.timeout(5):
            while app.gateway.ledger.active:  # noqa: ASYNC110  # what is still being given back
                await asyncio.sleep(0.02)
        return count


def test_a_hold_whose_caller_is_cancelled_twice_is_given_back(tmp_path: Path) -> None:
    with fleet(tmp_path, tenants(None), replicas=0, sandbox=("--time-scale", "0")) as running, running.redis as client:
        twice = asyncio.run(_cancelled_twice(running, token(running)))
        wait_until(lambda: not client.zcard("kg:{t:acme}:open"), 5)
        found = Books.read(client, "acme")
        assert twice > 2
        assert not found.violations()
        assert {reserved for _, reserved in found.windows.values()} == {0}
