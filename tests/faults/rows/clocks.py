"""M-15 and M-16: whoever's clock is wrong, the ledger's windows are the same for everybody."""

from __future__ import annotations

import time
from pathlib import Path

from tests.faults.checker import check, received, settle_down
from tests.faults.clients import History
from tests.faults.nemesis import SteppingClock, skewed
from tests.faults.row import Run, row
from tests.faults.storm import CAP, PATIENT, PRICE, spent, storm, tenants, token
from tests.fleet import fleet, get_json
from tests.redis_server import LEDGER, RedisServer

FAST = ("--time-scale", "0.01", "--picture", "small")
WIDE = {"GATEWAY_UPSTREAM_CONCURRENCY": "64"}
HOUR = 3_600


@row(
    "M-15",
    "replicas whose clocks differ by 10 minutes decide as those that agree",
    ci={"requests": 300, "skew": 300},
    nightly={"requests": 3_000, "skew": 300},
)
def the_clocks_of_replicas_differ(run: Run, requests: int, skew: int) -> None:
    """The budget is hourly, and by the ledger's clock its hour ends in four minutes: for one of the replicas it is over
    from the start."""
    clock, nearly = SteppingClock(run.folder / "clock"), 56 * 60 - time.time() % HOUR
    clock.step(nearly)
    server = RedisServer(run.folder / "redis", LEDGER, environment=clock.environment)
    hourly, wide = tenants("tenant").replace('"5.00", per: day', '"5.00", per: hour'), PATIENT | WIDE
    with fleet(run.folder, hourly, replicas=0, server=server, **wide) as running:
        running.ready(*(running.launch(**skewed(nearly + by)) for by in (-skew, skew, 0)))
        found = storm(running, "tenant", requests=requests)
        run.reached = f"+-{skew} s: {found.storm}; excess 0 in {found.sampler.samples} samples; {found.figures}"
        assert found.sampler.highest["tenant"] == CAP == spent(running, "tenant")
        assert found.refused.status == 402
        assert found.topped_up.outcomes().keys() <= {"ok"}


@row(
    "M-16",
    "0 more admitted and nobody locked out when the ledger's own clock steps by an hour; the reset stays put",
    ci={"steps": 4},
    nightly={"steps": 60},
)
def the_clock_of_redis_steps(run: Run, steps: int) -> None:
    clock = SteppingClock(run.folder / "clock")
    server = RedisServer(run.folder / "redis", LEDGER, environment=clock.environment)
    with fleet(run.folder, tenants("tenant"), replicas=2, sandbox=FAST, server=server, **PATIENT) as running:
        key, history, resets, first = token(running), History(), set(), 0
        share = max(1, CAP // PRICE // (steps + 1))
        for number in range(steps):
            history.send(running.urls, key, range(first, first + share), user="ada")
            first += share
            resets |= _resets(running.urls[0], key)
            clock.step(run.draw.choice([0, HOUR, -HOUR]) if number < steps - 1 else 0)
        settle_down(running, "acme")
        refused = sum(call.outcome != "ok" for call in history.calls)
        history.send(running.urls, key, range(first, first + 200), user="ada")
        settle_down(running, "acme")
        figures = check(running, "acme", caps={"tenant": CAP}, history=history)
        run.reached = f"{steps} steps, {refused} refused before the cap, {len(resets)} reset; {figures}"
        assert refused == 0
        assert received(running) == CAP // PRICE
        assert spent(running, "tenant") == CAP
        assert len(resets) == 1
    (folder := run.folder / "hours").mkdir()
    run.reached += f"; {_over_the_hour(folder)}"


def _over_the_hour(folder: Path) -> str:
    """Where the step leads into the next window and back: the one that it opened stays open, and the one before it is
    over."""
    clock, half_past = SteppingClock(folder / "clock"), 1_800 - time.time() % HOUR
    hourly = tenants(None).replace('"1000.00", per: day', '"0.40", per: hour')
    clock.step(half_past)
    server = RedisServer(folder / "redis", LEDGER, environment=clock.environment)
    with fleet(folder, hourly, replicas=2, sandbox=FAST, server=server, **PATIENT) as running:
        key, history, resets, admitted = token(running), History(), set(), []
        for number, (ahead, asked) in enumerate([(0, 6), (HOUR, 6), (0, 6), (HOUR, 2), (0, 2)]):
            clock.step(half_past + ahead)
            time.sleep(1.5)  # every process has renewed its lease
            before = history.outcomes().get("ok", 0)
            history.send(running.urls, key, range(100 * number, 100 * number + asked))
            admitted.append(history.outcomes().get("ok", 0) - before)
            resets |= _resets(running.urls[0], key) if number else set()
        settle_down(running, "acme")
        check(running, "acme", caps={"tenant": 10 * PRICE}, history=history)
        assert admitted == [6, 6, 4, 0, 0], f"two windows of 10 pictures gave {admitted}"
        assert len(resets) == 1
        return f"over the hour and back {admitted} of 2 windows of 10"


def _resets(url: str, key: str) -> set[int]:
    """When the budget's window ends, as a caller is told."""
    limits = get_json(f"{url}/v1/me", token=key)["limits"]
    return {limit["reset"] for limit in limits if limit["level"] == "tenant"}
