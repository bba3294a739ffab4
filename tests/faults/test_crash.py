"""What a crash and a caller that leaves do to money: nothing paid is lost, nothing leaks."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path

import aiohttp

from tests.faults.checker import books, check, in_progress, settle_down
from tests.faults.clients import Answer, ask, ask_or_lose, statuses, together
from tests.faults.storm import PRICE, tenants, token
from tests.fleet import fleet, wait_until

LEASE, GRACE = 10, 5  # seconds


def test_the_holds_of_a_killed_replica_are_ended_by_the_others(tmp_path: Path) -> None:
    slots, each = 24, 30
    with fleet(tmp_path, tenants(None), replicas=3, GATEWAY_UPSTREAM_CONCURRENCY=str(slots)) as running:
        key, replicas = token(running, None), running.replicas
        running.faults([{"kind": "slow", "count": slots, "options": {"after_seconds": 3}}])
        work = [
            partial(ask_or_lose, url=replicas[i % 3].url, token=key, seed=i, user=str(i % 3)) for i in range(3 * each)
        ]
        with ThreadPoolExecutor() as pool:
            load = pool.submit(together, work)
            wait_until(lambda: in_progress(running) == slots and len(books(running).outstanding) == 3 * each, 15)
            before = books(running)
            sent_by = Counter(int(hold["user"]) for hold in before.holds.values() if hold["state"] == "DISPATCHING")
            victim, sent = sent_by.most_common(1)[0]
            replicas[victim].kill()
            killed = time.monotonic()
            answers: list[Answer | None] = load.result()
        settle_down(running, "acme", seconds=LEASE + GRACE + 5)
        took = time.monotonic() - killed
        figures = check(running, "acme")
        reaped = [row for row in books(running).rows if row["by"] == "reaper"]
        print(f"\nkilled under load: {len(reaped)} reaped ({sent} sent) after {took:.1f} s; {figures}")
        assert took < LEASE + GRACE
        assert {row["user"] for row in reaped} == {str(victim)}
        ends = Counter((before.holds[row["id"]]["state"], row["from"], row["state"]) for row in reaped)
        assert 0 < sent < each
        assert ends == {
            ("RESERVED", "RESERVED", "REFUNDED"): each - sent,
            ("DISPATCHING", "DISPATCHING", "AMBIGUOUS"): sent,
        }
        assert figures.ambiguous == sent * PRICE
        assert answers.count(None) == each
        assert statuses(answer for answer in answers if answer) == {"200 ok": 2 * each}
        others = [replica for replica in replicas if replica is not replicas[victim]]
        assert sum(replica.total("kontext_gateway_reservations_reaped_total") for replica in others) == each


def test_a_caller_that_leaves_at_any_moment_loses_no_picture_and_leaks_no_money(tmp_path: Path) -> None:
    moments, job = 20, 0.6
    few = {"GATEWAY_UPSTREAM_CONCURRENCY": "8"}  # so that some leave before their turn has come
    fast = ("--time-scale", "0.1", "--picture", "small")
    draw = random.Random(20)
    with fleet(tmp_path, tenants(None), replicas=2, sandbox=fast, **few) as running:
        key = token(running, None)
        urls = [replica.url for replica in running.replicas]

        async def leave(session: aiohttp.ClientSession, seed: int, after: float) -> Answer | None:
            with suppress(TimeoutError):
                return await asyncio.wait_for(ask(session, urls[seed % 2], key, seed=seed), after)
            return None

        first = together([partial(leave, seed=seed, after=draw.uniform(0, 1.3 * job)) for seed in range(moments)])
        settle_down(running, "acme")
        figures = check(running, "acme")
        paid = {int(row["seed"]) for row in running.bill()["rows"]}
        assert figures.bill == figures.settled == len(paid) * PRICE
        again: list[Answer] = together(
            [partial(ask, url=urls[(seed + 1) % 2], token=key, seed=seed) for seed in range(moments)]
        )
        settle_down(running, "acme")
        figures = check(running, "acme")
        print(f"\n{first.count(None)} of {moments} left, {len(paid)} were sent all the same; {figures}")
        assert {seed for seed, answer in enumerate(again) if answer.source == "cache"} == paid
        assert moments - first.count(None) < len(paid) < moments  # some left after dispatch, some before
        assert (figures.jobs, figures.ambiguous) == (moments, 0)
