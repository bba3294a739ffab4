"""D-04: a fleet on its way from one version to the next, where each calls its own texts of the scripts."""

from __future__ import annotations

import sys
import time

from app.quota.hold import RESERVE
from tests.faults import another
from tests.faults.checker import GRACE, LEASE, books, check, settle_down
from tests.faults.load import Load, steady
from tests.faults.row import Run, row
from tests.faults.storm import CAP, PATIENT, PRICE, storm, tenant_line, token
from tests.fleet import fleet

ANOTHER = (sys.executable, "-m", "tests.faults.another")
SLOW = ("--time-scale", "0.1", "--picture", "small")


@row(
    "D-04",
    "two texts of every script on one ledger: the cap is used to its last micro-dollar and never passed, nothing is "
    "sent twice, and each version ends what the other one leaves behind",
    ci={"requests": 300, "kills": 1},
    nightly={"requests": 1_000, "kills": 10},
)
def two_versions(run: Run, requests: int, kills: int) -> None:
    """A storm over two replicas of each; then one of each is killed in turn under load."""
    text = "version: 1\ntenants:\n" + tenant_line("acme", "tenant") + tenant_line("beta", None)
    with fleet(
        run.folder, text, replicas=2, sandbox=SLOW, **PATIENT | {"GATEWAY_UPSTREAM_CONCURRENCY": "64"}
    ) as running:
        ours, running.program = running.program, ANOTHER
        running.ready(running.launch(), running.launch())
        found = storm(running, "tenant", requests=requests)
        assert found.sampler.highest["tenant"] == CAP
        both = (RESERVE.sha, another.another("app.quota", "reserve").sha)
        with running.redis as client:
            assert client.script_exists(*both) == [True, True]  # or one of them was not there
        running.faults([])
        key, load = token(running, tenant="beta"), Load(next_seed=100_000)
        with steady(running.urls, key, 20, load, tenant="beta", user="ada"):
            for kill in range(2 * kills):
                time.sleep(run.draw.uniform(1, 2))
                victim = running.alive[(0, 2)[kill % 2]]  # one of ours, then one of the others
                victim.kill()
                running.program = (ANOTHER, ours)[kill % 2]
                running.ready(running.relaunch(victim))
        settle_down(running, "beta", seconds=LEASE + GRACE + 5)
        load.calls += found.calls
        figures = check(running, "acme", "beta", exact=False, history=load)
        reaped = [one for one in books(running, "beta").rows if one["by"] == "reaper"]
        run.reached = f"{requests} at once, then {2 * kills} kills: {load.outcomes()}; {len(reaped)} reaped; {figures}"
        assert reaped
        lost = sum(one["state"] == "AMBIGUOUS" for one in reaped) * PRICE
        assert figures.ambiguous == found.figures.ambiguous + lost  # nothing else explains one
