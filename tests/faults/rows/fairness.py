"""L-05: one tenant offers fifty times what it may have, and the others keep their shares."""

from __future__ import annotations

import re
import time
from collections import Counter
from functools import partial

import aiohttp

from tests.faults.checker import check, settle_down
from tests.faults.clients import Call, History, midday, together
from tests.faults.load import percentile
from tests.faults.row import Run, row
from tests.faults.storm import PATIENT, token
from tests.fleet import Fleet, fleet

WEIGHTS = {"noisy": 1, "one": 1, "two": 2, "three": 3, "four": 4}  # who always want more than their share
QUIET = ("quiet-1", "quiet-2", "quiet-3", "quiet-4", "quiet-5")
TYPICAL = 6.0  # seconds of a job at scale 1


@row(
    "L-05",
    "a tenant that offers 50 times its share: Jain >= 0.95 by weight; a quiet one waits <= 1 job, success >= 99.5 %",
    ci={"slots": 27, "scale": 0.15, "seconds": 10, "noise": 100},
    nightly={"slots": 30, "scale": 0.3, "seconds": 300, "noise": 150},
)
def a_noisy_neighbour(run: Run, slots: int, scale: float, seconds: float, noise: int) -> None:
    """Callers that ask again as soon as they are answered: `noise` of the noisy tenant, enough of the other busy ones
    to fill their shares twice over, and one at a time of each quiet one."""
    lines = (f"  {name}: {{name: {name}, weight: {weight}, timezone: {midday()}}}" for name, weight in WEIGHTS.items())
    quiet = (f"  {name}: {{name: {name}, weight: 2, timezone: {midday()}}}" for name in QUIET)
    file = "version: 1\ntenants:\n" + "\n".join((*lines, *quiet)) + "\n"
    sandbox = ("--time-scale", f"{scale:g}", "--picture", "small")
    total = sum(WEIGHTS.values())
    callers = {name: noise if name == "noisy" else 2 + 2 * slots * weight // total for name, weight in WEIGHTS.items()}
    wide = PATIENT | {"GATEWAY_UPSTREAM_CONCURRENCY": str(slots)}
    with fleet(run.folder, file, replicas=3, sandbox=sandbox, **wide) as running:
        history = _busy(running, callers | dict.fromkeys(QUIET, 1), seconds)
        for name in (*WEIGHTS, *QUIET):
            settle_down(running, name)
        figures = check(running, *WEIGHTS, *QUIET, history=history)
    began = min(call.began for call in history.calls)
    during = [call for call in history.calls if 3 * scale * TYPICAL < call.ended - began < seconds]
    done = Counter(call.tenant for call in during if call.outcome == "ok")
    shares = [done[name] / weight for name, weight in WEIGHTS.items()]
    jain = sum(shares) ** 2 / (len(shares) * sum(share**2 for share in shares))
    calm = [call for call in history.calls if call.tenant in QUIET]
    success, waited = sum(call.outcome == "ok" for call in calm) / len(calm), _waited(calm)
    run.reached = (
        f"Jain {jain:.3f} of {dict(done)}; quiet: {success:.1%} of {len(calm)}, p99 wait {waited:.2f} s, "
        f"p99 {percentile(calm, 0.99):.2f} s; {figures}"
    )
    assert jain >= 0.95
    assert success >= 0.995
    assert waited <= scale * TYPICAL + run.within(0.25) - 0.25


def _busy(running: Fleet, callers: dict[str, int], seconds: float) -> History:
    history, seeds = History(), iter(range(10**9))
    keys = {name: token(running, tenant=name) for name in callers}

    async def again(session: aiohttp.ClientSession, tenant: str, at: int) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            url = running.urls[at % len(running.urls)]
            await history.ask(session, url, keys[tenant], tenant=tenant, seed=next(seeds))

    work = [partial(again, tenant=name, at=at) for name, count in callers.items() for at in range(count)]
    together(work)
    return history


def _waited(calls: list[Call]) -> float:
    """Seconds for an upstream slot that 99 of 100 calls did not exceed, as they were told."""
    found = sorted(
        float(told[1]) / 1000
        for call in calls
        if call.answer and (told := re.search(r"wait;dur=([\d.]+)", call.answer.text))
    )
    return found[int(len(found) * 0.99)]
