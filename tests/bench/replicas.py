"""Table d: does a request cost the same when more gateway processes share one Redis? One, two and three of three
running processes, each offered the same number of requests a second: all together fewer than the machine can answer,
because to wait for a core costs by itself."""

from __future__ import annotations

from .stand import Sample, Stand, medians
from .table import Table


def measure(stand: Stand, *, rate: int, rounds: int, requests: int) -> Table:
    """One row for each number of processes; rounds alternate between them, the first warms up."""
    running = stand.fleet.replicas[:3]
    targets = {count: stand.gateway(*running[:count]) for count in range(1, len(running) + 1)}
    samples: dict[int, list[Sample]] = {count: [] for count in targets}
    for turn in range(rounds + 1):
        for count, target in targets.items():
            sample = stand.sample(target, stand.seeds(requests * count), arrivals=requests / rate)
            if turn:
                samples[count].append(sample)
    middle = {count: medians(found) for count, found in samples.items()}
    table = Table(f"d. Gateway processes on one Redis: {rate} requests a second for each, upstream without delay")
    for count, found in middle.items():
        table.failed += found.failed
        table.rows.append(
            {
                "": "gateway",
                "processes": count,
                "CPU ms": found.cpu,
                "CPU ratio": found.cpu / middle[1].cpu,
                "Valkey CPU ms": found.valkey,
                "Valkey ratio": found.valkey / middle[1].valkey,
                "p50 ms": found.p50,
                "p99 ms": found.p99,
                "failed": found.failed.total(),
            }
        )
    return table
