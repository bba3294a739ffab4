"""M-15 and M-16: whoever's clock is wrong, the ledger's windows are the same for everybody."""

from __future__ import annotations

from tests.faults.checker import check, received, settle_down
from tests.faults.clients import History
from tests.faults.nemesis import SteppingClock, skewed
from tests.faults.row import Run, row
from tests.faults.storm import CAP, PATIENT, PRICE, spent, storm, tenants, token
from tests.fleet import fleet, get_json
from tests.redis_server import LEDGER, RedisServer

FAST = ("--time-scale", "0.01", "--picture", "small")
HOUR = 3_600


@row(
    "M-15",
    "replicas whose clocks differ by 10 minutes decide as those that agree",
    ci={"requests": 300, "skew": 300},
    nightly={"requests": 3_000, "skew": 300},
)
def the_clocks_of_replicas_differ(run: Run, requests: int, skew: int) -> None:
    with fleet(run.folder, tenants("tenant"), replicas=0, GATEWAY_UPSTREAM_CONCURRENCY="64", **PATIENT) as running:
        running.ready(*(running.launch(**skewed(by)) for by in (-skew, skew)), running.launch())
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


def _resets(url: str, key: str) -> set[int]:
    """When the budget's window ends, as a caller is told."""
    limits = get_json(f"{url}/v1/me", token=key)["limits"]
    return {limit["reset"] for limit in limits if limit["level"] == "tenant"}
