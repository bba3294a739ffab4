"""M-08: charges whose outcome was lost end as the upstream's exported bill says, to the micro-dollar and once."""

from __future__ import annotations

import json
import urllib.request
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.faults.checker import books, check, settle_down
from tests.faults.clients import History
from tests.faults.row import Run, row
from tests.faults.storm import CAP, PATIENT, PRICE, tenants, token
from tests.fleet import Fleet, fleet

FAST = ("--time-scale", "0.01", "--picture", "small")
# The stand-in's clock is the ledger's, and it bills at once.
TERMS = ("--tolerance", "0s", "--older-than", "0s", "--to", "now", "--from", "2020-01-01", "--json")
AT_ONCE = 8
WAYS: list[Mapping[str, Any]] = [
    {"kind": "cut_after_accept"},
    {"kind": "cut_after_accept", "options": {"billed": False}},
    {"kind": "cut_after_accept", "options": {"reset": True, "billed": False}},
    {"kind": "truncated"},  # an answer that names its job
    {"kind": "cut_mid_body", "options": {"billed": False}},
    {"kind": "error", "options": {"status": 500}},
    {"kind": "error", "options": {"status": 500, "accepted": True}},
]


@row(
    "M-08",
    "each lost charge ends as the exported bill says, the difference is 0, and a second run changes nothing",
    ci={"rounds": 2, "bursts": 2},
    nightly={"rounds": 40, "bursts": 20},
)
def lost_charges_are_reconciled(run: Run, rounds: int, bursts: int) -> None:
    wide = PATIENT | {"GATEWAY_UPSTREAM_CONCURRENCY": "64"}
    with fleet(run.folder, tenants("tenant").replace("5.00", "500.00"), replicas=2, sandbox=FAST, **wide) as running:
        key, history = token(running), History()

        def lose(faults: list[Mapping[str, Any]], seeds: range) -> None:
            """At once, and then one that is answered: ten failures in a row open the breaker."""
            running.faults([dict(fault) for fault in faults])
            history.send(running.urls, key, seeds, user="ada")
            running.faults([])
            history.send(running.urls, key, [100_000 + seeds.start], user="ada")

        ways = [way for _ in range(rounds) for way in WAYS]
        run.draw.shuffle(ways)
        for seed, way in enumerate(ways):
            lose([way], range(seed, seed + 1))
        settle_down(running, "acme")
        before = books(running)
        billed = {int(line["seed"]) for line in running.bill()["rows"]}
        found = _reconcile(running, _csv(running))
        (moved := running.folder / "lines.jsonl").write_bytes(b"\n" + (running.folder / "bill.jsonl").read_bytes())
        assert found == _reconcile(running, moved)  # the other export, with the same numbers of lines
        assert books(running) == before  # a report changes nothing
        listed = json.loads(running.command("ledger", "ambiguous", "--json"))
        assert listed["total"]["micro_usd"] == before.sum("AMBIGUOUS") == len(ways) * PRICE
        seeds = {name: int(hold["seed"]) for name, hold in before.holds.items()}
        told = {one["reservation"]: one["told"] for one in found["entries"]}
        assert told == {name: "billed" if seeds[name] in billed else "not billed" for name in before.ambiguous}
        assert found["complete"]
        assert not found["unexplained"]
        by_id = sum(one["why"] == "by its id" for one in found["entries"])
        assert by_id >= rounds  # of every answer that was cut after it had named its job
        applied = _reconcile(running, _csv(running), "--apply")
        assert applied["ended"] == {"now": len(ways), "before": 0}
        _all_is_explained(running, history)

        unbilled = run.draw.randrange(1, AT_ONCE)
        for burst in range(bursts):  # what is lost together, some of it billed: only the numbers tell
            faults = [{"kind": "cut_after_accept", "count": unbilled, "options": {"billed": False}}, WAYS[0]]
            lose(faults, range(1_000 + burst * AT_ONCE, 1_000 + (burst + 1) * AT_ONCE))
        settle_down(running, "acme")
        lost = len(books(running).ambiguous)
        unsure = _reconcile(running, _csv(running), "--apply", code=1)
        left = Counter(one["told"] for one in unsure["entries"])["cannot be told"]
        assert left == len(books(running).ambiguous) > 0
        counted = _reconcile(running, _csv(running), "--apply", "--by-count")
        assert counted["ended"]["now"] == left
        figures = _all_is_explained(running, history)
        ends = Counter(one["state"] for one in books(running).rows if one["by"] == "reconcile")
        run.reached = f"{len(ways) + lost} lost charges, {left} of them told by count: {dict(ends)}; {figures}"
        after = books(running)
        again = _reconcile(running, _csv(running), "--apply", "--by-count")
        assert (again["ended"]["now"], again["entries"], books(running)) == (0, [], after)


def _all_is_explained(running: Fleet, history: History) -> Any:
    """Nothing is ambiguous any more, and the bill is what is settled."""
    figures = check(running, "acme", caps={"tenant": 100 * CAP}, history=history)
    assert figures.ambiguous == 0
    assert figures.bill == figures.settled
    return figures


def _csv(running: Fleet) -> Path:
    """The bill as the stand-in exports it now."""
    path = running.folder / "export.csv"
    with urllib.request.urlopen(running.upstream + "/sandbox/bill.csv", timeout=30) as answer:
        path.write_bytes(answer.read())
    return path


def _reconcile(running: Fleet, bill: Path, *options: str, code: int = 0) -> Any:
    return json.loads(running.command("ledger", "reconcile", "--bill", str(bill), *TERMS, *options, code=code))
