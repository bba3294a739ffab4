"""A cap is never passed by one micro-dollar, whoever asks and whatever the upstream does; and all of it can be used."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.clients import DOCUMENTED, statuses
from tests.faults.storm import CAP, PRICE, Level, spent, storm, tenants
from tests.fleet import fleet


@pytest.mark.parametrize("level", ["tenant", "key", "user"])
def test_a_thousand_callers_never_pass_a_cap_that_fits_125_pictures(tmp_path: Path, level: Level) -> None:
    with fleet(tmp_path, tenants(level), replicas=3, GATEWAY_UPSTREAM_CONCURRENCY="64") as running:
        run = storm(running, level)
        print(f"\n{level}: {statuses(run.answers)}; then {statuses(run.topped_up)}; then {run.refused.code}")
        print(
            f"{level}: {run.sampler.samples} samples, highest {run.sampler.highest[level]:,} of {CAP:,}; {run.figures}"
        )
        assert {(answer.status, answer.code) for answer in run.answers} <= DOCUMENTED
        assert run.sampler.samples > 100
        assert run.sampler.highest[level] == CAP  # the run did press against the cap
        assert run.figures.ambiguous > 0
        assert run.figures.refunds > 0
        assert all(answer.status == 200 for answer in run.topped_up)
        assert (run.refused.status, run.refused.code, run.refused.charged) == (402, "budget_exhausted", "no")
        assert spent(running, level) == CAP == run.figures.bill == run.figures.settled + run.figures.ambiguous
        delivered = [answer for answer in (*run.answers, *run.topped_up) if answer.status == 200]
        assert {answer.source for answer in delivered} == {"upstream"}
        assert len(delivered) * PRICE == run.figures.settled
        unknown = sum(answer.charged == "unknown" for answer in run.answers)
        assert unknown * PRICE == run.figures.ambiguous
