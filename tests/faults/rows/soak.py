"""L-13: a long mixed load with faults, after which nothing has grown. Run by its name, for it takes an hour."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path

from tests.door.wire import memory
from tests.faults.checker import check, settle_down
from tests.faults.clients import History
from tests.faults.load import Load, steady
from tests.faults.nemesis import meanwhile
from tests.faults.row import Run, row
from tests.faults.storm import FAULTS, PATIENT, tenants, token
from tests.fleet import Fleet, fleet

FAST = ("--time-scale", "0.05", "--picture", "small")
MINUTE = 60


@row(
    "L-13",
    "memory +<= 1 MiB an hour and an equal number of files and connections after a mixed load with faults",
    ci={"seconds": 3, "rate": 20},
    nightly={"seconds": 3_600, "rate": 20},
    by_name=True,
)
def a_long_load(run: Run, seconds: int, rate: float) -> None:
    """After a warm-up of a fifth, memory is looked at once a minute (at CI depth three times in all), always at rest
    for a moment; the slope is that of the least squares."""
    hot = {"GATEWAY_HOT_CACHE_BYTES": "2000000"}  # is full before the warm-up is over
    quiet = fleet(run.folder, tenants(None), replicas=2, sandbox=FAST, **PATIENT, **hot)
    with quiet as running, running.redis as client:
        key, rounds = token(running), 3 if run.depth == "ci" else seconds // MINUTE
        each, samples, open_files = seconds / rounds, [], Counter[int]()
        everything = 0
        for number in range(rounds):
            running.faults([dict(fault) for fault in FAULTS])
            load = Load(next_seed=(number + 1) * 1_000_000)
            with (
                steady(running.urls, key, rate, load, user=f"user-{number % 10}"),
                meanwhile(run.draw, client.script_flush, times=2, between=(each / 4, each / 3)),
            ):
                leaving = History()  # four at a time ask for the same
                seeds = [number * 100 + at // 4 for at in range(40)]
                leaving.send(running.urls, key, seeds, patience=run.draw.uniform(0.01, 0.3))
                time.sleep(max(0.0, each - 1))
            running.faults([])
            settle_down(running, "acme")
            everything += len(load.calls)
            samples.append((number * each, sum(memory(one, "VmRSS") for one in running.replicas)))
            open_files[_files(running)] += 1
        figures = check(running, "acme", exact=False)
        warm = samples[rounds // 5 :]
        slope = _slope(warm) * 3_600
        run.reached = (
            f"{everything} requests in {seconds} s: memory {warm[0][1]:.0f} -> {warm[-1][1]:.0f} MiB, "
            f"{slope:+.1f} MiB an hour, open files {dict(open_files)}; {figures}"
        )
        assert max(open_files) - min(open_files) <= 40
        assert run.depth == "ci" or slope <= 1


def _files(running: Fleet) -> int:
    return sum(len(list(Path(f"/proc/{one.process.pid}/fd").iterdir())) for one in running.replicas)


def _slope(samples: list[tuple[float, float]]) -> float:
    """MiB a second."""
    count, times, sizes = len(samples), [at for at, _ in samples], [size for _, size in samples]
    mean_time, mean_size = sum(times) / count, sum(sizes) / count
    spread = sum((at - mean_time) ** 2 for at in times)
    return sum((at - mean_time) * (size - mean_size) for at, size in samples) / spread if spread else 0.0
