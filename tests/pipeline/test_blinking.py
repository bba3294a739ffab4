"""Queued jobs whose dispatch the ledger did not acknowledge in time wait, and are sent once, when it is back."""

from __future__ import annotations

from pathlib import Path

from app.quota.hold import DISPATCH
from app.store import keys
from tests.faults.checker import check
from tests.faults.proxy import CALM, Weather, weathered
from tests.fleet import fleet, wait_until
from tests.pipeline.queued import end, queued

TENANTS = "version: 1\ntenants:\n  acme: {name: A}\n"


def test_jobs_whose_dispatch_was_not_acknowledged_are_sent_once_later(tmp_path: Path) -> None:
    with fleet(tmp_path, TENANTS, replicas=0) as running, weathered(running.redis_url) as link, running.redis as client:
        running.start(REDIS_URL=link.at)
        url, token = running.start(GATEWAY_QUEUE_SEATS="0").url, running.token("acme")
        end(url, token, queued(url, token))  # the script is known, and is asked for by its digest
        link.set(Weather(drop_reply=1.0, only=DISPATCH.sha.encode()))
        job = queued(url, token)
        held = keys.reservation("acme", client.hget(keys.job("acme", job), "reservation").decode())
        wait_until(lambda: client.hget(held, "dispatched"), 20)
        link.set(CALM)
        found = end(url, token, job)
        assert (found["state"], found["charged"], found["cost"]["micro_usd"]) == ("succeeded", "yes", 40_000)
        assert running.stats()["received"] == 2
        check(running, "acme")
