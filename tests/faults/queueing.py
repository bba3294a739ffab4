"""Jobs whose callers do not wait, many at once: queued until they are, and looked at until they have ended."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import aiohttp

from tests.faults.clients import PROMPT, together
from tests.fleet import Fleet
from tests.processes import wait_until

OVER = ("succeeded", "failed", "cancelled")


async def put(
    session: aiohttp.ClientSession, fleet: Fleet, token: str, seed: int, fields: Mapping[str, Any]
) -> tuple[int, str]:
    """(seed, job) of a job that is asked for under a name until it is in the queue, whichever replica dies."""
    headers = {"Authorization": f"Bearer {token}", "Prefer": "respond-async", "Idempotency-Key": f"seed-{seed}"}
    until = time.monotonic() + 90
    while time.monotonic() < until:
        urls = fleet.urls
        try:
            url = f"{urls[seed % len(urls)]}/v1/generate"
            async with session.post(url, json={"prompt": PROMPT, "seed": seed, **fields}, headers=headers) as answer:
                told = await answer.json()
                if answer.status == 202:
                    return seed, str(told["id"])
                assert answer.status in (409, 429, 503), told
        except (aiohttp.ClientError, OSError, ZeroDivisionError):
            pass
        await asyncio.sleep(0.2)
    raise AssertionError(f"seed {seed} was not queued in time")


def put_all(fleet: Fleet, token: str, seeds: Sequence[int], **fields: Any) -> dict[int, str]:
    """Seed -> job, all at once."""
    return dict(together([partial(put, fleet=fleet, token=token, seed=seed, fields=fields) for seed in seeds]))


async def look(session: aiohttp.ClientSession, fleet: Fleet, token: str, job: str) -> Any:
    """A job's document."""
    headers = {"Authorization": f"Bearer {token}"}
    async with session.get(f"{fleet.urls[0]}/v1/jobs/{job}", headers=headers) as answer:
        assert answer.status == 200, await answer.text()
        return await answer.json()


def look_at(fleet: Fleet, token: str, jobs: Sequence[str]) -> dict[str, Any]:
    """Job -> its document."""
    found = together([partial(look, fleet=fleet, token=token, job=job) for job in jobs])
    return dict(zip(jobs, found, strict=True))


def empty(fleet: Fleet, tenant: str, seconds: float) -> None:
    """Wait until nothing of a tenant is in the queue."""
    with fleet.redis as client:
        wait_until(lambda: client.xlen(f"kg:{{t:{tenant}}}:queue") == 0, seconds)


def states(documents: Mapping[str, Any]) -> dict[str, int]:
    """How many jobs came to what."""
    words = (f"{told['state']}, charged {told['charged']}" for told in documents.values())
    return dict(sorted(Counter(words).items()))
