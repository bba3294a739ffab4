"""Equal requests become one paid job, on however many replicas they arrive, whatever becomes of the one that leads."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

from tests.faults.checker import books, check, settle_down
from tests.faults.clients import ask, ask_after, statuses, together
from tests.faults.flock import THREE_SECONDS, flock
from tests.faults.storm import PRICE, tenants
from tests.fleet import fleet

CALLERS = 200


def test_200_equal_seeded_requests_over_3_replicas_are_one_paid_job(tmp_path: Path) -> None:
    with fleet(tmp_path, tenants(None), replicas=3, sandbox=THREE_SECONDS) as running:
        answers, figures = flock(running, CALLERS, seed=7, jobs=1)
        sources = sorted(answer.source for answer in answers)
        print(f"\nseeded: {statuses(answers)}, {sources.count('coalesced')} coalesced; {figures}")
        assert sources == ["coalesced"] * (CALLERS - 1) + ["upstream"]
        assert figures.bill == figures.settled == PRICE
        assert len({answer.digest for answer in answers}) == 1
        assert {answer.cost for answer in answers if answer.source == "coalesced"} == {"0.000000"}
        assert [answer.cost for answer in answers if answer.source == "upstream"] == ["0.040000"]


def test_200_equal_requests_without_a_seed_are_200_jobs(tmp_path: Path) -> None:
    wide = {"GATEWAY_UPSTREAM_CONCURRENCY": str(CALLERS)}
    with fleet(tmp_path, tenants(None), replicas=3, sandbox=THREE_SECONDS, **wide) as running:
        answers, figures = flock(running, CALLERS, seed=None, jobs=CALLERS)
        print(f"\nseedless: {statuses(answers)}; {figures}")
        assert statuses(answers) == {"200 ok": CALLERS}
        assert {answer.source for answer in answers} == {"upstream"}
        assert len({answer.seed for answer in answers}) == CALLERS
        assert figures.settled == CALLERS * PRICE


def test_a_leader_without_budget_hands_the_flight_to_one_that_has_some(tmp_path: Path) -> None:
    rounds, followers = 12, 9
    with fleet(tmp_path, tenants(None), replicas=3) as running:
        poor = running.key("acme", "--budget", "0.01/day")
        made = running.command("keys", "create", "--tenant", "acme", "--name", "rich", "--json", "--budget", "5.00/day")
        rich, rich_id = str(json.loads(made)["token"]), json.loads(made)["key_id"]
        urls = [replica.url for replica in running.replicas]
        refused = 0
        for seed in range(rounds):
            gap = seed / 1_000  # the first to arrive is still leading, has just been refused, or is long gone
            work = [partial(ask, url=urls[seed % 3], token=poor, seed=seed)]
            for i in range(followers):
                work += [partial(ask_after, gap, url=urls[(seed + i % 2) % 3], token=rich, seed=seed)]
            first, *others = together(work)
            assert statuses(others) == {"200 ok": followers}
            assert sum(answer.source == "upstream" for answer in others) == 1
            if first.status == 402:
                assert (first.code, first.charged) == ("budget_exhausted", "no")
                refused += 1
            else:  # it came too late to lead: a follower needs no budget
                assert (first.status, first.source) == (200, "coalesced")
        settle_down(running, "acme")
        figures = check(running, "acme")
        print(f"\nexhausted leaders: {refused} of {rounds} refused, {figures}")
        assert refused > 0
        assert running.stats()["received"] == rounds
        assert {row["key"] for row in books(running).rows} == {rich_id}
