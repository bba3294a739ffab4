"""Equal requests become one paid job, on however many replicas they arrive, whatever becomes of the one that leads."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from tests.faults.checker import books, check, in_progress, settle_down
from tests.faults.clients import Answer, ask, ask_after, ask_or_lose, statuses, together
from tests.faults.flock import THREE_SECONDS, flock
from tests.faults.storm import PRICE, tenants, token
from tests.fleet import fleet, wait_until

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


def test_a_leader_killed_before_dispatch_is_replaced_by_a_follower_of_another_replica(tmp_path: Path) -> None:
    with fleet(tmp_path, tenants(None), replicas=2, GATEWAY_UPSTREAM_CONCURRENCY="1") as running:
        key = token(running, None)
        first, second = running.replicas
        running.faults([{"kind": "slow", "count": 1, "options": {"after_seconds": 6}}])
        with ThreadPoolExecutor() as pool:
            long = pool.submit(together, [partial(ask, url=second.url, token=key, seed=1)])
            wait_until(lambda: in_progress(running) == 1, 10)
            leader = pool.submit(together, [partial(ask_or_lose, url=first.url, token=key, seed=2)])
            wait_until(lambda: len(books(running).outstanding) == 2, 10)  # it waits for its turn, with its money held
            follower = pool.submit(together, [partial(ask, url=second.url, token=key, seed=2)] * 3)
            time.sleep(0.5)
            first.kill()
            assert leader.result() == [None]
            assert statuses(long.result()) == {"200 ok": 1}
            answers = follower.result()
        settle_down(running, "acme")
        figures = check(running, "acme")
        print(f"\nleader killed before dispatch: {[answer.source for answer in answers]}; {figures}")
        assert sorted(answer.source for answer in answers) == ["coalesced", "coalesced", "upstream"]
        assert (figures.jobs, figures.refunds) == (2, 1)
        assert {row["by"] for row in books(running).rows if row["state"] == "REFUNDED"} == {"reaper"}


def test_a_job_whose_leader_was_killed_after_dispatch_is_never_sent_again(tmp_path: Path) -> None:
    with fleet(tmp_path, tenants(None), replicas=2, GATEWAY_UPSTREAM_DEADLINE="13s") as running:
        key = token(running, None)
        first, second = running.replicas
        running.faults([{"kind": "slow", "count": 1, "options": {"after_seconds": 3}}])
        with ThreadPoolExecutor() as pool:
            leader = pool.submit(together, [partial(ask_or_lose, url=first.url, token=key, seed=2)])
            wait_until(lambda: in_progress(running) == 1, 10)
            began = time.monotonic()
            follower = pool.submit(together, [partial(ask, url=second.url, token=key, seed=2)] * 3)
            time.sleep(0.5)
            first.kill()
            assert leader.result() == [None]
            answers: list[Answer] = follower.result()
            waited = time.monotonic() - began
        settle_down(running, "acme")
        figures = check(running, "acme")
        print(f"\nleader killed after dispatch: {statuses(answers)} after {waited:.1f} s; {figures}")
        assert {(answer.status, answer.code, answer.charged) for answer in answers} == {
            (504, "upstream_timeout", "unknown")
        }
        assert waited < 13 + 5
        assert running.stats()["received"] == figures.jobs == 1
        assert (figures.settled, figures.ambiguous) == (0, PRICE)
        assert {row["by"] for row in books(running).rows} == {"reaper"}
