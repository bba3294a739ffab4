"""What each way to fail means for money, by the upstream's own bill; with the outcome table as it is, and turned."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.faults.checker import check, settle_down
from tests.faults.clients import DOCUMENTED, Answer, ask, statuses, together
from tests.faults.storm import CAP, FAULTS, PRICE, spent, storm, tenants, token
from tests.fleet import Fleet, fleet

FAST = ("--time-scale", "0.01", "--picture", "small")
BILLED, UNBILLED = "billed", "unbilled"

# kind, its options; the answer; what becomes of the money; and whether the sandbox bills it.
WAYS: list[tuple[str, Mapping[str, Any], tuple[int, str], str, str]] = [
    ("failed", {}, (502, "upstream_failed"), "no", UNBILLED),
    ("failed_json", {}, (502, "upstream_failed"), "no", UNBILLED),
    ("moderated_prompt", {}, (422, "content_moderated"), "no", UNBILLED),
    ("moderated_output", {}, (422, "content_moderated"), "no", UNBILLED),
    ("unauthorised", {}, (502, "upstream_misconfigured"), "no", UNBILLED),
    ("redirect", {}, (502, "upstream_misconfigured"), "no", UNBILLED),
    ("error", {"status": 404}, (502, "upstream_failed"), "no", UNBILLED),
    ("error", {"status": 413}, (502, "upstream_failed"), "no", UNBILLED),
    ("busy", {"retry_after": 0}, (503, "upstream_busy"), "no", UNBILLED),
    ("busy", {"retry_after": 3000}, (503, "upstream_busy"), "no", UNBILLED),
    ("error", {"status": 503, "retry_after": 0}, (503, "upstream_busy"), "no", UNBILLED),
    ("error", {"status": 500}, (502, "upstream_failed"), "unknown", UNBILLED),
    ("error", {"status": 502, "html": True}, (502, "upstream_failed"), "unknown", UNBILLED),
    ("error", {"status": 500, "accepted": True}, (502, "upstream_failed"), "unknown", BILLED),
    ("cut_after_accept", {}, (502, "upstream_failed"), "unknown", BILLED),
    ("cut_after_accept", {"reset": True}, (502, "upstream_failed"), "unknown", BILLED),
    ("hang", {}, (504, "upstream_timeout"), "unknown", BILLED),
    ("cut_mid_body", {}, (502, "upstream_invalid"), "unknown", BILLED),
    ("truncated", {}, (502, "upstream_invalid"), "unknown", BILLED),
    ("malformed", {"variant": "missing_output"}, (502, "upstream_invalid"), "unknown", BILLED),
    ("malformed", {"variant": "garbage"}, (502, "upstream_invalid"), "unknown", BILLED),
    ("wrong_content_type", {}, (502, "upstream_invalid"), "unknown", BILLED),
    ("overcharge", {}, (200, "ok"), "", BILLED),
    ("overcharge", {"dollars": 0.01}, (200, "ok"), "", BILLED),
]


def send(running: Fleet, key: str, seed: int) -> Answer:
    answer: Answer = together([partial(ask, url=running.replicas[0].url, token=key, seed=seed)])[0]
    return answer


def test_each_way_to_fail_moves_money_as_the_table_says(tmp_path: Path) -> None:
    with fleet(tmp_path, tenants(None), sandbox=FAST, GATEWAY_UPSTREAM_DEADLINE="2s") as running:
        key, seen, unbilled_unknowns = token(running, None), [], 0
        for seed, (kind, options, *_) in enumerate(WAYS):
            running.faults([{"kind": kind, "options": dict(options)}])
            before = running.bill()["jobs"]
            answer = send(running, key, seed)
            settle_down(running, "acme")
            billed = BILLED if running.bill()["jobs"] > before else UNBILLED
            unbilled_unknowns += answer.charged == "unknown" and billed == UNBILLED
            seen.append((kind, options, (answer.status, answer.code), answer.charged, billed))
            running.faults([])
            assert send(running, key, 1_000 + seed).status == 200
        figures = check(running, "acme", exact=False)
        print(f"\n{len(WAYS)} ways to fail: {figures}")
        assert seen == WAYS
        drift = running.replicas[0].total("kontext_gateway_price_drift_dollars_total", variant="pro")
        assert round(drift * 1_000_000) == PRICE
        assert figures.bill - PRICE == figures.settled + figures.ambiguous - unbilled_unknowns * PRICE


@pytest.mark.parametrize("kind", ["failed", "moderated_output"])
def test_an_upstream_that_bills_failures_is_paid_for_them_when_the_table_says_so(tmp_path: Path, kind: str) -> None:
    table = "failed=charge,moderated=charge"
    billing = (*FAST, "--bill-failures")
    with fleet(tmp_path, tenants(None), sandbox=billing, GATEWAY_OUTCOMES=table) as running:
        key = token(running, None)
        running.faults([{"kind": kind}])
        assert send(running, key, 1).charged == "yes"
        settle_down(running, "acme")
        figures = check(running, "acme")
        assert figures.bill == figures.settled == PRICE


def test_the_budget_holds_with_the_outcome_table_turned_the_other_way(tmp_path: Path) -> None:
    billing = ("--time-scale", "0.05", "--picture", "small", "--bill-failures")
    table = {"GATEWAY_OUTCOMES": "failed=charge", "GATEWAY_UPSTREAM_CONCURRENCY": "64"}
    with fleet(tmp_path, tenants("tenant"), replicas=3, sandbox=billing, **table) as running:
        run = storm(running, "tenant", faults=FAULTS)
        print(f"\nfailures billed: {statuses(run.answers)}; {run.sampler.samples} samples; {run.figures}")
        assert {(answer.status, answer.code) for answer in run.answers} <= DOCUMENTED
        charged = sum(answer.charged == "yes" for answer in run.answers)
        delivered = sum(answer.status == 200 for answer in (*run.answers, *run.topped_up))
        assert charged > 0
        assert (charged + delivered) * PRICE == run.figures.settled
        assert spent(running, "tenant") == CAP == run.figures.bill
