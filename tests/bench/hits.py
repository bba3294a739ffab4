"""Table b: what an answer from the cache costs beside a route that reads the same 200 KB from the same Redis and checks
nothing."""

from __future__ import annotations

from collections.abc import Sequence

from . import picture
from .stand import Sample, Stand, medians
from .table import Table

PICTURES = (50, 1)


def measure(stand: Stand, *, levels: Sequence[int], rounds: int, requests: int) -> Table:
    """The table, for many pictures in turn and for a single one."""
    gateway = stand.gateway(stand.fleet.replicas[0], name="gateway, hit")
    bare = stand.bare("aiohttp", "/stored", "bare, redis GET")
    stored = stand.seeds(max(PICTURES))
    stand.load(gateway, stored, 4)
    before, after = picture.reply()
    for seed in stored:
        stand.fleet.redis.set(f"bench:stored:{seed}", before + seed.to_bytes(8, "big") + after)
    table = Table("b. Answers from the cache")
    bought = stand.fleet.replicas[0].total("kontext_gateway_images_total", source="upstream")
    for pictures in PICTURES:
        for level in levels:
            samples: dict[str, list[Sample]] = {gateway.name: [], bare.name: []}
            for turn in range(rounds + 1):
                for target in (gateway, bare):
                    seeds = [stored[number % pictures] for number in range(requests)]
                    sample = stand.sample(target, seeds, level)
                    if turn:
                        samples[target.name].append(sample)
            middle = {name: medians(found) for name, found in samples.items()}
            base = middle[bare.name]
            for name, found in middle.items():
                table.failed += found.failed
                table.rows.append(
                    {
                        "": name,
                        "pictures": pictures,
                        "in flight": level,
                        "CPU ms": found.cpu,
                        "CPU ratio": found.cpu / base.cpu,
                        "p50 ms": found.p50,
                        "p50 ratio": found.p50 / base.p50,
                        "p99 ms": found.p99,
                        "p99 ratio": found.p99 / base.p99,
                        "Valkey CPU ms": found.valkey,
                        "failed": found.failed.total(),
                    }
                )
    if stand.fleet.replicas[0].total("kontext_gateway_images_total", source="upstream") != bought:
        raise RuntimeError("not every answer came from the cache")
    return table
