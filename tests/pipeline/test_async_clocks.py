"""A replica whose own clock is wrong lets a queued job wait as long as any other does."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.nemesis import skewed
from tests.fleet import fleet
from tests.pipeline.calls import new_key
from tests.pipeline.queued import end, queued, slow, until

TENANTS = "version: 1\ntenants:\n  one: {name: One, limits: {concurrency: 1}}\n"
HOURS = 7_200


@pytest.mark.parametrize("by", [HOURS, -HOURS])
def test_a_job_s_time_in_the_queue_is_the_ledger_s(tmp_path: Path, by: int) -> None:
    fast = ("--time-scale", "0.01", "--picture", "small")
    with fleet(tmp_path, TENANTS, sandbox=fast, replicas=0, GATEWAY_REDIS_TIMEOUT="2s") as running:
        url = running.start(**skewed(by)).url
        token = new_key(running, "one")[1]
        slow(running, 4)
        first, second = queued(url, token), queued(url, token)
        until(url, token, first, "running")
        found = [end(url, token, job) for job in (first, second)]
        assert [(job["state"], job.get("error")) for job in found] == [("succeeded", None)] * 2


def test_a_job_that_waited_too_long_is_given_up(tmp_path: Path) -> None:
    fast = ("--time-scale", "0.01", "--picture", "small")
    brief = {"GATEWAY_QUEUE_TTL": "1s", "GATEWAY_REDIS_TIMEOUT": "2s"}
    with fleet(tmp_path, TENANTS, sandbox=fast, replicas=0, **brief) as running:
        url = running.start(**skewed(-HOURS)).url
        token = new_key(running, "one")[1]
        slow(running, 6)
        first, second = queued(url, token), queued(url, token)
        assert end(url, token, second)["error"]["code"] == "job_expired"
        assert end(url, token, first)["state"] == "succeeded"
