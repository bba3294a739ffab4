"""C-01 to C-04, C-08, L-06: one job for equal requests whatever becomes of its leader; never another tenant's picture."""

from __future__ import annotations

import asyncio
import random

import uvloop

from app.errors import LedgerUnavailable
from app.store.redis import Store
from tests.faults.proxy import CALM, Weather, weathered
from tests.faults.row import Run, row
from tests.scripts.engines import engine


@row(
    "C-03",
    "0 foreign replies and nobody left waiting, with half of the calls cancelled and connections reset",
    ci={"calls": 4_000},
    nightly={"calls": 100_000},
)
def calls_to_redis_are_cancelled(run: Run, calls: int) -> None:
    with engine("valkey") as client, weathered(f"redis://127.0.0.1:{client.get_connection_kwargs()['port']}") as link:
        for number in range(100):
            client.set(f"self{number}", f"self{number}")
        seen = uvloop.run(_cancelled_calls(link, run.draw, calls))
    run.reached = ", ".join(f"{count} {word}" for word, count in sorted(seen.items()))
    assert seen["foreign"] == 0
    assert seen["hung"] == 0
    assert seen["right"] > calls / 10


async def _cancelled_calls(link: object, draw: random.Random, calls: int) -> dict[str, int]:
    seen = dict.fromkeys(("right", "foreign", "cancelled", "away", "hung"), 0)
    store = Store(link.at, timeout=1, connect_timeout=1, observe=lambda *_: None)

    async def one() -> None:
        wanted = f"self{draw.randrange(100)}"
        await asyncio.sleep(draw.random() / 10)
        asking = asyncio.ensure_future(store.command("GET", wanted))
        if draw.random() < 0.5:
            await asyncio.wait([asking], timeout=draw.random() / 50)
            asking.cancel()
        done, _ = await asyncio.wait([asking], timeout=10)
        if not done:
            seen["hung"] += 1
        elif asking.cancelled():
            seen["cancelled"] += 1
        elif isinstance(asking.exception(), LedgerUnavailable):
            seen["away"] += 1
        else:
            seen["right" if asking.result() == wanted.encode() else "foreign"] += 1

    for at in range(0, calls, 1_000):
        link.set(Weather(jitter=0.01, cut_reply=0.01, cut_request=0.01))
        wave = asyncio.gather(*(one() for _ in range(min(1_000, calls - at))))
        await asyncio.sleep(0.03)
        link.cut()
        await wave
    link.set(CALM)
    assert await store.command("GET", "self1") == b"self1"
    await store.aclose()
    return seen
