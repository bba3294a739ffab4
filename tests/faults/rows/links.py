"""R-09 to R-13: the way to Redis is split, its scripts vanish, a stranger blocks it, everybody comes back at once."""

from __future__ import annotations

import time
from collections import Counter
from contextlib import suppress

import redis

from tests.faults.checker import check, recovers, sent_seeds, settle_down
from tests.faults.clients import History
from tests.faults.load import percentile, steady
from tests.faults.nemesis import meanwhile
from tests.faults.proxy import CALM, DOWN, Weather, weathered
from tests.faults.row import Run, row
from tests.faults.rows.ledger import outage
from tests.faults.storm import PATIENT, tenants, token
from tests.fleet import fleet

FAST = ("--time-scale", "0.01", "--picture", "small")
POOL = 8  # connections of one replica
PEAK = 12  # three replicas with one connection each, and attempts that came a moment too early


@row(
    "R-09",
    "split: the replica that sees Redis serves, the other refuses, and no picture is made twice",
    ci={"requests": 60},
    nightly={"requests": 3_000},
)
def one_replica_is_cut_off(run: Run, requests: int) -> None:
    with fleet(run.folder, tenants(None), sandbox=FAST) as running, weathered(running.redis_url) as link:
        running.start(REDIS_URL=link.at)
        key, sees, blind = token(running), History(), History()
        near, far = running.urls
        link.set(DOWN)
        blind.send([far], key, range(requests), rate=60)
        sees.send([near], key, range(requests), rate=60)
        link.set(CALM)
        recovers(running, key, after := History())
        settle_down(running, "acme")
        after.calls += sees.calls
        figures = check(running, "acme", history=after)
        run.reached = f"near {sees.statuses()}, far {blind.statuses()}; {figures}"
        assert sees.outcomes() == {"ok": len(sees.calls)}
        assert blind.statuses() == {"503 ledger_unavailable": requests}
        assert max(sent_seeds(running).values()) == 1


@row(
    "R-10",
    "0 client errors and 0 doubles while the scripts are flushed ten times a second",
    ci={"flushes": 30, "rate": 40},
    nightly={"flushes": 1_000, "rate": 60},
)
def scripts_are_flushed(run: Run, flushes: int, rate: float) -> None:
    with fleet(run.folder, tenants(None), replicas=2, sandbox=FAST, **PATIENT) as running, running.redis as client:
        key = token(running)
        with (
            steady(running.urls, key, rate) as load,
            meanwhile(run.draw, client.script_flush, times=flushes, between=(0.1, 0.1)),
        ):
            pass
        settle_down(running, "acme")
        figures = check(running, "acme", history=load)
        run.reached = f"{flushes} flushes, {load.statuses()}; {figures}"
        assert load.outcomes() == {"ok": len(load.calls)}


@row(
    "R-11",
    "a stranger's endless script is an outage like any other: 503, 0 dispatched, recovery <= 5 s",
    ci={"seconds": 3, "rate": 30},
    nightly={"seconds": 10, "rate": 60},
)
def a_stranger_blocks_redis(run: Run, seconds: float, rate: float) -> None:
    with fleet(run.folder, tenants(None), replicas=2, sandbox=FAST) as running, running.redis as client:
        client.config_set("lua-time-limit", 500)
        stranger = redis.Redis.from_url(running.redis_url, socket_timeout=0.2)

        def block() -> None:
            with suppress(redis.TimeoutError):
                stranger.eval("while true do end", 0)

        outage(run, running, rate, seconds, block, client.script_kill)
        stranger.close()


@row(
    "R-12",
    "500 at once over a slow link are all answered, with pictures or 503, and none waits for a connection for long",
    ci={"requests": 300},
    nightly={"requests": 500},
)
def more_callers_than_connections(run: Run, requests: int) -> None:
    wide = PATIENT | {"GATEWAY_UPSTREAM_CONCURRENCY": "64"}
    quiet = fleet(run.folder, tenants(None), replicas=0, sandbox=FAST, **wide)
    with quiet as running, weathered(running.redis_url) as link:
        running.start(REDIS_URL=link.at)
        link.set(Weather(delay=0.01))
        key, history = token(running), History()
        history.send(running.urls, key, range(requests))
        link.set(CALM)
        settle_down(running, "acme")
        figures = check(running, "acme", history=history)
        p99 = percentile(history.calls, 0.99)
        run.reached = f"{history.statuses()}, p99 {p99:.1f} s over {len(link.connects)} connections; {figures}"
        assert len(history.answers) == requests
        assert history.outcomes()["ok"] == requests
        assert len(link.connects) <= POOL
        assert p99 < run.within(10)


@row(
    "R-13",
    f"3 replicas come back with at most {PEAK} connections a second",
    ci={"seconds": 2, "rate": 60},
    nightly={"seconds": 20, "rate": 100},
)
def everybody_comes_back_at_once(run: Run, seconds: float, rate: float) -> None:
    with fleet(run.folder, tenants(None), replicas=0, sandbox=FAST) as running, weathered(running.redis_url) as link:
        running.ready(*(running.launch(REDIS_URL=link.at) for _ in range(3)))
        key = token(running)
        with steady(running.urls, key, rate) as load:
            time.sleep(1)
            link.set(DOWN)
            time.sleep(seconds)
            tried = len(link.connects)
            back = time.monotonic()
            link.set(CALM)
            took = recovers(running, key, load)
        settle_down(running, "acme")
        check(running, "acme", exact=False, history=load)
        after = Counter(int(at - back) for at in link.connects[tried:])
        peak = max(after.values(), default=0)
        run.reached = f"peak {peak} a second, {tried / seconds:.0f} tries a second while away; recovery {took:.1f} s"
        assert peak <= PEAK
        assert took < run.within(5)
