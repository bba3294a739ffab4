"""More connections than there are files: the newest are told so, health still answers, and it is over in seconds."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path
from time import monotonic

from tests.door.wire import Ending, Wire, gateway, head
from tests.e2e.exchange import make_keys
from tests.fleet import APP

FILES, FLOOD = 256, 1000


async def get(url: str, path: str, key: str | None = None) -> Ending:
    wire = await Wire.open(url)
    await wire.send(head("GET", path, key, "Connection: close"))
    return await wire.rest(10)


def test_a_flood_of_connections_is_shed_and_forgotten(tmp_path: Path) -> None:
    with gateway(tmp_path, program=("prlimit", f"--nofile={FILES}", *APP)) as (running, replica):
        key = make_keys(running, ["acme"])["acme"]

        async def flood() -> None:
            wires = await asyncio.gather(*(Wire.open(replica.url) for _ in range(FLOOD)))
            began = monotonic()
            ends = [asyncio.create_task(wire.rest(20)) for wire in wires]
            await asyncio.sleep(1)
            shed = Counter(tuple(task.result().statuses) for task in ends if task.done())
            assert shed == {(503,): FLOOD - FILES // 2}
            assert (await get(replica.url, "/v1/me", key)).code == "overloaded"
            for path in ("/healthz", "/metrics"):  # this one reads the ledger
                assert (await get(replica.ops, path)).statuses == [200]
            while (await get(replica.url, "/v1/me", key)).statuses != [200]:  # noqa: ASYNC110
                await asyncio.sleep(0.1)
            recovered = monotonic() - began
            await asyncio.gather(*ends)
            print(f"\nserved again {recovered:.1f} s after the flood")
            assert recovered < 12  # idle connections end after 5 s; a machine with other work takes longer

        asyncio.run(flood())
        assert replica.process.poll() is None
