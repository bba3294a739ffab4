"""Table a: what a forwarded job costs beside references that do less. Every target gets the same picture from the same
upstream, which answers at once; rounds alternate between the targets, figures are medians over the rounds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from . import peers, redis_work
from .nginx import nginx
from .stand import Sample, Stand, Target, medians
from .table import Table

POOL, REDIS = "bare, httpx2 pool", "bare, aiohttp + redis"


def measure(stand: Stand, *, levels: Sequence[int], rounds: int, requests: int, peers_in: Path | None = None) -> Table:
    """The table; the first round warms up and is left out."""
    gateway = stand.gateway(stand.fleet.replicas[0])
    stand.load(gateway, stand.seeds(20), 4)
    work = redis_work.commands(stand, gateway)
    offered: list[Target | str] = [
        gateway,
        stand.bare("pool", "/pass", POOL),
        stand.bare("aiohttp", "/pass", "bare, aiohttp"),
        stand.bare("aiohttp", f"/pass/{work['EVALSHA']}", REDIS),
        nginx(stand),
        *(peers.start(stand, peers_in) if peers_in else ()),
    ]
    targets = [target for target in offered if isinstance(target, Target)]
    table = Table("a. Forwarded jobs: upstream without delay, distinct seeds")
    for level in levels:
        samples: dict[str, list[Sample]] = {target.name: [] for target in targets}
        for turn in range(rounds + 1):
            for target in targets:
                sample = stand.sample(target, stand.seeds(requests), level)
                if turn:
                    samples[target.name].append(sample)
        middle = {name: medians(found) for name, found in samples.items()}
        pool, redis = middle[POOL], middle[REDIS]
        for name, found in middle.items():
            table.failed += found.failed
            table.rows.append(
                {
                    "": name,
                    "in flight": level,
                    "CPU ms": found.cpu,
                    "CPU/pool": found.cpu / pool.cpu,
                    "CPU/redis": found.cpu / redis.cpu,
                    "p50 ms": found.p50,
                    "p50/pool": found.p50 / pool.p50,
                    "p99 ms": found.p99,
                    "p99/pool": found.p99 / pool.p99,
                    "Valkey CPU ms": found.valkey if name in (gateway.name, REDIS) else None,
                    "failed": found.failed.total(),
                }
            )
    counted = ", ".join(f"{count} {name}" for name, count in sorted(work.items()))
    table.notes.append(f"A warm request of the gateway asks of Redis: {counted}.")
    table.notes.append(
        f"`{REDIS}` makes {work['EVALSHA']} empty EVALSHA and one SET of the reply, one after the other."
    )
    table.notes += [why for why in offered if isinstance(why, str)]
    return table
