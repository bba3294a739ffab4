"""An emptied or rolled back ledger is never read as "nothing spent": nothing is sent until an operator releases it."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from tests.faults.checker import books, settle_down
from tests.faults.clients import Answer, ask, statuses, together
from tests.faults.storm import tenants, token
from tests.fleet import Fleet, fleet, wait_until

SLOTS = 4


def received(running: Fleet) -> int:
    return int(running.stats()["received"])


def test_nothing_is_dispatched_after_a_flush_until_the_ledger_is_released(tmp_path: Path) -> None:
    slow = ("--time-scale", "0.3", "--picture", "small")
    with fleet(tmp_path, tenants(None), replicas=2, sandbox=slow, GATEWAY_UPSTREAM_CONCURRENCY=str(SLOTS)) as running:
        key, urls = token(running, None), [replica.url for replica in running.replicas]
        with ThreadPoolExecutor() as pool:
            load = pool.submit(together, [partial(ask, url=urls[i % 2], token=key, seed=i) for i in range(24)])
            wait_until(lambda: len(books(running).outstanding) == 24 and received(running) == SLOTS, 15)
            client = running.redis
            client.flushall()
            answers: list[Answer] = load.result()
        assert received(running) == SLOTS
        print(f"\nflushed with {24 - SLOTS} waiting: {statuses(answers)}, {received(running)} sent in all")
        refused = [answer for answer in answers if answer.status != 200]
        assert len(refused) == 24 - SLOTS
        assert {answer.code for answer in refused} <= {"ledger_frozen", "ledger_unavailable"}
        assert {answer.charged for answer in refused} == {"no"}
        running.command("ledger", "init")  # an empty ledger in the place of the lost one does not end it
        time.sleep(2.5)
        fresh = token(running, None)
        frozen: list[Answer] = together([partial(ask, url=url, token=fresh, seed=50) for url in urls])
        assert {(answer.status, answer.code) for answer in frozen} == {(503, "ledger_frozen")}
        assert received(running) == SLOTS
        running.command("ledger", "release")
        time.sleep(2.5)
        after: list[Answer] = together([partial(ask, url=urls[i % 2], token=fresh, seed=100 + i) for i in range(4)])
        assert statuses(after) == {"200 ok": 4}
        client.close()


def test_a_ledger_that_was_rolled_back_is_not_spent_from_until_it_is_released(tmp_path: Path) -> None:
    with fleet(tmp_path, tenants("tenant"), replicas=2) as running:
        key, urls = token(running, None), [replica.url for replica in running.replicas]

        def send(seeds: range) -> list[Answer]:
            return together([partial(ask, url=urls[i % 2], token=key, seed=i, user="ada") for i in seeds])

        assert statuses(send(range(10))) == {"200 ok": 10}
        settle_down(running, "acme")
        client = running.redis
        backup = {name: client.dump(name) for name in client.scan_iter("kg:{t:acme}:*", count=1000)}
        assert statuses(send(range(10, 20))) == {"200 ok": 10}
        settle_down(running, "acme")
        client.delete(*client.scan_iter("kg:{t:acme}:*", count=1000))
        for name, value in backup.items():
            client.restore(name, 0, value or b"")
        client.close()
        assert statuses(send(range(20, 40))) == {"503 ledger_frozen": 20}
        assert received(running) == 20
        running.command("ledger", "release")
        time.sleep(2.5)
        assert statuses(send(range(40, 50))) == {"200 ok": 10}
        assert all(replica.total("kontext_gateway_ledger_frozen") == 0 for replica in running.replicas)


def test_a_release_under_load_stops_nobody_for_good(tmp_path: Path) -> None:
    with fleet(tmp_path, tenants(None), replicas=2, sandbox=("--time-scale", "0", "--picture", "small")) as running:
        key, urls = token(running, None), [replica.url for replica in running.replicas]

        def send(first: int) -> list[Answer]:
            return together([partial(ask, url=urls[i % 2], token=key, seed=first + i) for i in range(60)])

        with ThreadPoolExecutor() as pool:
            released = pool.submit(running.command, "ledger", "release")
            answers: list[Answer] = []
            while not released.done() or len(answers) < 120:
                answers += send(len(answers))
        assert {answer.code for answer in answers} <= {"ok", "ledger_unavailable", "ledger_frozen"}
        time.sleep(2.5)
        assert statuses(send(100_000)) == {"200 ok": 60}
        print(f"\nreleased under load: {statuses(answers)}")
