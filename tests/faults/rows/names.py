"""C-05 and C-06: a name buys once, whoever dies; and it is nobody else's."""

from __future__ import annotations

import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

from tests.faults.checker import check, in_progress, received, settle_down
from tests.faults.clients import History, midday
from tests.faults.crowd import NAME, crowd
from tests.faults.nemesis import SteppingClock
from tests.faults.row import Run, row
from tests.faults.storm import PATIENT, tenants, token
from tests.fleet import fleet, wait_until
from tests.redis_server import LEDGER, RedisServer

FAST = ("--time-scale", "0.01", "--picture", "small")
LEASE = 10  # seconds
DAY = 86_400
TWO = "version: 1\ntenants:\n" + "".join(
    f"  {name}: {{name: {name}, timezone: {midday()}}}\n" for name in ("acme", "zeta")
)


@row(
    "C-05",
    "1 job and equal answers for all calls under a name, at once, after kill -9 and for 24 hours; other bodies 422",
    ci={"callers": 200, "kills": 6},
    nightly={"callers": 200, "kills": 200},
)
def one_name(run: Run, callers: int, kills: int) -> None:
    clock = SteppingClock(run.folder / "clock")
    server = RedisServer(run.folder / "redis", LEDGER, environment=clock.environment)
    few = PATIENT | {"GATEWAY_UPSTREAM_CONCURRENCY": "1", "GATEWAY_UPSTREAM_DEADLINE": "40s"}
    told = Counter[str]()
    with fleet(run.folder, tenants(None), replicas=3, sandbox=FAST, server=server, **few) as running:
        key, history = token(running), History()
        running.faults([{"kind": "slow", "count": 1, "options": {"after_seconds": 1.5}}])
        crowded, _ = crowd(running, [("acme", key)], callers)
        for number in range(kills):
            before, name, waits = received(running), f"killed-{number}", number % 2 == 0
            owner = running.replicas[-1]
            others = [one for one in running.urls if one != owner.url]
            with ThreadPoolExecutor() as pool:
                running.faults([{"kind": "slow", "count": 2, "options": {"after_seconds": 1.5}}])
                if waits:  # the owner holds money and waits for its turn
                    pool.submit(history.send, others[:1], key, [10_000 + number])
                    wait_until(lambda: in_progress(running) == 1, 10)
                pool.submit(history.send, [owner.url], key, [number], name=name, patience=60)
                time.sleep(run.draw.uniform(0.05, 1.2))
                owner.kill()
                again = History()
                again.send(others, key, [number] * 4, name=name)
            settle_down(running, "acme", seconds=LEASE + 10)
            history.calls += again.calls
            told.update(again.statuses())
            jobs = received(running) - before - waits
            run.reached = f"{callers} callers; {number + 1} kills: {dict(told)}, {jobs} job for the last"
            # None where it was killed between the acknowledgement and the first byte.
            assert jobs == 1 or (jobs == 0 and set(again.statuses()) == {"504 upstream_timeout"})
            assert set(again.statuses()) <= {"200 ok", "504 upstream_timeout"}
            assert len({call.answer.digest for call in again.calls if call.answer}) == 1
            running.start()
        figures = check(running, "acme", exact=False, history=history)
        before = received(running)
        clock.step(DAY - 3_600)
        time.sleep(2)  # the leases of all processes seemed to have run out
        history.send(running.urls, key, [0], name=NAME, each=lambda _: {"seed": None}, accept="application/json")
        kept = history.calls[-1].answer
        first = next(call.answer for call in crowded.calls if call.answer and call.answer.status == 200)
        assert kept is not None
        assert kept.digest == first.digest
        assert received(running) == before
        clock.step(DAY + 3_600)
        time.sleep(2)
        late = History()
        late.send(running.urls, key, [0], name=NAME, each=lambda _: {"seed": None}, accept="application/json")
        assert late.outcomes() == {"ok": 1}
        assert received(running) == before + 1
        run.reached += f"; kept for 23 h and free after 25 h; {figures}"
        assert told["200 ok"] > 0


@row(
    "C-06",
    "a name of another tenant or key is independent: each buys its own picture and is told nothing of the others",
    ci={"callers": 20},
    nightly={"callers": 200},
)
def the_same_name_of_others(run: Run, callers: int) -> None:
    with fleet(run.folder, TWO, replicas=3, sandbox=FAST, **PATIENT) as running:
        keys = [(tenant, token(running, tenant=tenant)) for tenant in ("acme", "acme", "zeta")]
        history, figures = crowd(running, keys, callers)
        bought = {call.name: call.answer.digest for call in history.calls if call.answer and call.answer.job}
        run.reached = (
            f"{len(history.calls)} calls, {len(set(bought.values()))} pictures for {len(keys)} keys; {figures}"
        )
        assert len(set(bought.values())) == len(keys)
