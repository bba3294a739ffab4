"""What happens at the very moment when it matters: a lead that is handed to one who leaves, a probe that is not used,
an answer or a word of a leader while Redis is away."""

from __future__ import annotations

import asyncio
import json
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from app.domain.job import Ask
from app.errors import GatewayError, Refused
from app.pipeline import Control
from app.purchase import Buyer
from app.store import keys
from app.telemetry.outcome import Outcome
from tests.faults.checker import books, in_progress
from tests.faults.clients import History
from tests.faults.leaving import inside
from tests.faults.proxy import CALM, DOWN, Weather, weathered
from tests.faults.rows.upstream import state
from tests.faults.storm import PATIENT, tenants, token
from tests.fleet import Fleet, fleet, wait_until

INSTANT = ("--time-scale", "0", "--picture", "small")
REFUSED = Refused("budget_exhausted", "The leader's own.")


async def _handed_on(running: Fleet, left_by: str) -> None:
    """The first follower is gone in the same turn of the loop in which it is told to lead."""
    async with inside(running) as app:
        flights = app.gateway.flights
        flight, _ = flights.board("t:acme", left_by)
        await flights.join(flight, fresh=False)
        first = asyncio.create_task(flights.follow(flight, 0 if left_by == "deadline" else 60))
        second = asyncio.create_task(flights.follow(flight, 60))
        await asyncio.sleep(0)
        await flights.failed(flight, REFUSED)  # it hands over without a pause
        if left_by == "cancel":
            first.cancel()
        with suppress(asyncio.CancelledError, GatewayError):
            assert await first is not None
        assert await asyncio.wait_for(second, 5) is None


@pytest.mark.parametrize("left_by", ["cancel", "deadline"])
def test_a_lead_that_is_handed_to_one_who_leaves_goes_to_the_next(tmp_path: Path, left_by: str) -> None:
    with fleet(tmp_path, tenants(None), replicas=0, sandbox=INSTANT) as running:
        asyncio.run(_handed_on(running, left_by))


def test_a_probe_whose_job_is_refused_is_left_to_the_next(tmp_path: Path) -> None:
    with fleet(tmp_path, tenants(None), replicas=2, sandbox=INSTANT, **PATIENT) as running:
        key, poor = token(running), running.token("acme", "0.01/day")
        failing, calm = running.urls
        warm, asked = History(), History()
        warm.send([calm], key, range(3))  # a slot is likely to be free there
        running.faults([{"kind": "error", "options": {"status": 500}}])
        for seed in range(100, 130):
            asked.send([failing], key, [seed])
        assert state(running) == {"open"}
        running.faults([])
        wait_until(lambda: state(running) == {"half_open"}, 10)
        broke, next_one = History(), History()
        broke.send([calm], poor, [200])
        next_one.send([calm], key, [300])
        assert broke.statuses() == {"402 budget_exhausted": 1}
        assert next_one.statuses() == {"200 ok": 1}


def test_a_429_while_redis_is_away_costs_nothing(tmp_path: Path) -> None:
    with (
        fleet(tmp_path, tenants(None), replicas=0, sandbox=INSTANT) as running,
        weathered(running.redis_url) as link,
        weathered(running.upstream) as way,
        ThreadPoolExecutor(1) as pool,
    ):
        running.start(REDIS_URL=link.at, PRODIA_BASE_URL=way.at + "/v2")
        key, asked = token(running), History()
        History().send(running.urls, key, [1])
        running.faults([{"kind": "busy", "options": {"retry_after": 0}}])
        way.set(Weather(delay=1.0))  # the answer is on its way when Redis goes
        asking = pool.submit(asked.send, running.urls, key, [2])
        wait_until(lambda: running.stats()["received"] == 2, 10)
        link.set(DOWN)
        asking.result()
        running.faults([])
        link.set(CALM)
        wait_until(lambda: not books(running).outstanding, 20)
        found = books(running)
        assert [(answer.status, answer.charged) for answer in asked.answers] == [(503, "no")]
        assert not found.ambiguous
        assert not found.violations()
        assert found.sum("SETTLED") == running.bill()["micro_usd"] == 40_000


async def _a_probe_is_not_used(running: Fleet, key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its job is refused after it was given the slot: the next one is the probe, and closes the breaker."""
    gate = {"fails": 10, "open_ms": 5_000, "until": 1, "probe": "", "probe_until": 0, "pause": 0}
    with running.redis as client:
        client.hset(keys.GATES, "inference.flux-kontext.pro.txt2img.v2", json.dumps(gate))
    async with inside(running) as app:

        async def submit(seed: int) -> None:
            record = Outcome(f"req_{seed}")
            caller = await app.gateway.authenticate(key, record)
            ask = Ask("generate", {"prompt": "a lighthouse at dawn", "seed": seed}, {})
            await app.gateway.submit(caller, ask, Control(), record)

        async def forbidden(self: Buyer, job: object) -> None:
            raise Refused("forbidden", "The policy became stricter.")

        with monkeypatch.context() as stricter:
            stricter.setattr(Buyer, "_still_allowed", forbidden)
            with pytest.raises(Refused, match="stricter"):
                await submit(1)
        await submit(2)


def test_a_probe_whose_job_is_refused_at_its_turn_is_left_to_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with fleet(tmp_path, tenants(None), replicas=0, sandbox=INSTANT) as running:
        asyncio.run(_a_probe_is_not_used(running, token(running), monkeypatch))


def test_what_a_leader_could_not_say_while_redis_was_away_is_said_later(tmp_path: Path) -> None:
    slow = {"GATEWAY_UPSTREAM_DEADLINE": "40s"}
    with (
        fleet(tmp_path, tenants(None), sandbox=INSTANT, **slow) as running,
        weathered(running.redis_url) as link,
        ThreadPoolExecutor(2) as pool,
    ):
        leader, key = running.start(REDIS_URL=link.at), token(running)
        History().send(running.urls, key, [1, 2])
        led, followed = History(), History()
        running.faults([{"kind": "failed", "count": 1, "options": {"after_seconds": 1.5}}])
        leading = pool.submit(led.send, [leader.url], key, [3])
        wait_until(lambda: in_progress(running) == 1, 10)
        following = pool.submit(followed.send, running.urls[:1], key, [3])
        time.sleep(0.5)
        link.set(DOWN)
        leading.result()
        back = time.monotonic()
        link.set(CALM)
        following.result()
        assert led.statuses() == {"502 upstream_failed": 1}
        assert followed.statuses() == {"502 upstream_failed": 1}
        assert followed.calls[0].ended - back < 8  # neither the leader's lease nor anybody's deadline
