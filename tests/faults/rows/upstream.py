"""U-03 to U-05, U-09, O-05: an upstream that is down, the breaker over three replicas, reloads, what metrics say."""

from __future__ import annotations

import time

from tests.faults.checker import books, check, received, recovers, settle_down
from tests.faults.clients import History
from tests.faults.load import steady
from tests.faults.nemesis import meanwhile
from tests.faults.row import Run, row
from tests.faults.storm import PATIENT, tenants, token
from tests.fleet import Fleet, fleet, wait_until

FAST = ("--time-scale", "0.01", "--picture", "small")
PRO = "inference.flux-kontext.pro.txt2img.v2"
ADVANCE = 3  # re-sends that each replica may make before its first calls have earned any
FAILURES = 10  # in a row open the breaker
OPEN = 5  # seconds
BREAKER = "kontext_gateway_upstream_breaker_state"


def state(running: Fleet) -> set[str]:
    """The breaker as every replica shows it."""
    words = ("closed", "open", "half_open")
    return {word for one in running.replicas for word in words if one.total(BREAKER, job_type=PRO, state=word)}


@row(
    "U-03",
    "<= 10 % extra calls while the upstream is down",
    ci={"seconds": 4, "rate": 50},
    nightly={"seconds": 300, "rate": 50},
)
def the_upstream_is_down(run: Run, seconds: int, rate: int) -> None:
    with fleet(run.folder, tenants(None), replicas=2, sandbox=FAST, **PATIENT) as running:
        key, history = token(running), History()
        running.faults([{"kind": "error", "options": {"status": 503, "retry_after": 1}}])
        history.send(running.urls, key, range(seconds * rate), rate=rate)
        settle_down(running, "acme")
        figures = check(running, "acme", history=history)
        extra = received(running) - len(history.calls)
        run.reached = f"{extra} extra calls for {len(history.calls)} jobs, {history.statuses()}; {figures}"
        assert history.statuses() == {"503 upstream_busy": len(history.calls)}
        assert extra <= max(ADVANCE * 2, len(history.calls) / 10)
        running.faults([])
        recovers(running, key, History())


@row(
    "U-04",
    f"opens after {FAILURES} failures, one probe an interval over 3 replicas, closed by the first that succeeds",
    ci={"intervals": 1},
    nightly={"intervals": 4},
)
def the_breaker(run: Run, intervals: int) -> None:
    with fleet(run.folder, tenants(None), replicas=3, sandbox=FAST, **PATIENT) as running:
        key, history, sent = token(running), History(), 0
        running.faults([{"kind": "error", "options": {"status": 500}}])
        while history.statuses().get("503 upstream_unavailable", 0) == 0:
            history.send(running.urls, key, range(sent, sent + 3))
            sent += 3
            assert sent < 60
        opened = received(running)
        assert state(running) == {"open"}
        probes, wait = [], OPEN
        for number in range(intervals):
            wait_until(lambda: state(running) == {"half_open"}, wait + 3)
            before = received(running)
            if number == intervals - 1:
                running.faults([{"kind": "slow", "count": 1, "options": {"after_seconds": 1.0}}])
            history.send(running.urls, key, range(10_000 + number * 100, 10_030 + number * 100))
            probes.append(received(running) - before)
            wait *= 2
        took = recovers(running, key, history)
        settle_down(running, "acme")
        check(running, "acme", exact=False, history=history)
        run.reached = f"open after {opened} failures, probes {probes}, closed {took:.1f} s after the last"
        assert opened < FAILURES + 3  # three were asked at once
        assert state(running) == {"closed"}
        assert probes == [1] * intervals
        refused = [answer for answer in history.answers if answer.code == "upstream_unavailable"]
        assert refused
        assert all(answer.retry_after and answer.charged == "no" for answer in refused)


@row("U-05", "a tenant's own mistakes never open the breaker", ci={"jobs": 60}, nightly={"jobs": 1_000})
def one_tenant_sends_bad_jobs(run: Run, jobs: int) -> None:
    with fleet(run.folder, tenants(None), replicas=2, sandbox=FAST, **PATIENT) as running:
        key, history = token(running), History()
        for number, kind in enumerate(("failed", "moderated_prompt", "error")):
            running.faults([{"kind": kind, "options": {"status": 422} if kind == "error" else {}}])
            history.send(running.urls, key, range(number * jobs, number * jobs + jobs // 3))
        running.faults([])
        run.reached = f"{history.statuses()}, breaker {state(running)}"
        assert set(history.statuses()) == {"422 content_moderated", "502 upstream_failed"}
        assert state(running) == {"closed"}
        recovers(running, key, History())


@row("U-09", "0 failures while the tenants are loaded again and again", ci={"loads": 60}, nightly={"loads": 2_000})
def the_tenants_are_reloaded(run: Run, loads: int) -> None:
    with fleet(run.folder, tenants(None), replicas=2, sandbox=FAST, **PATIENT) as running:
        key, count = token(running), [0]

        def reload() -> None:
            count[0] += 1
            running.tenants(tenants(None).replace("Acme", f"Acme {count[0]}"))

        with (
            steady(running.urls, key, 40) as load,
            meanwhile(run.draw, reload, times=loads, between=(0.03, 0.07)),
        ):
            pass
        settle_down(running, "acme")
        figures = check(running, "acme", history=load)
        run.reached = f"{loads} loads, {load.statuses()}; {figures}"
        assert load.outcomes() == {"ok": len(load.calls)}


@row("O-05", "gauges = books on every replica after a crash, nothing stale", ci={"kills": 1}, nightly={"kills": 20})
def metrics_after_crashes(run: Run, kills: int) -> None:
    with fleet(run.folder, tenants(None), replicas=2, sandbox=FAST, **PATIENT) as running:
        key = token(running)
        for _ in range(kills):
            running.faults([{"kind": "slow", "options": {"after_seconds": 1.0}}])
            with steady(running.urls, key, 20):
                time.sleep(0.7)
                run.draw.choice([one for one in running.replicas if one.process.poll() is None]).kill()
            running.faults([])
            running.start()
        settle_down(running, "acme", seconds=25)
        check(running, "acme", exact=False)
        found = books(running)
        spent = {window[0] for name, window in found.windows.items() if ":win:tenant:" in name}
        shown, stale = set(), 0.0
        for one in running.replicas:
            if one.process.poll() is None:
                shown.add(round(one.total("kontext_gateway_budget_spent_dollars") * 1_000_000))
                stale += one.total("kontext_gateway_budget_reserved_dollars")
                stale += one.total("kontext_gateway_upstream_requests_in_progress")
                stale += one.total("kontext_gateway_jobs_queued") + one.total("kontext_gateway_settlements_unwritten")
        run.reached = f"{kills} kills: books {spent}, gauges {shown}, stale {stale:.0f}"
        assert shown == spent
        assert stale == 0
