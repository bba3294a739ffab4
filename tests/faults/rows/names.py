"""C-05 and C-06: a name buys once, whoever dies; and it is nobody else's."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

from tests.faults.checker import LEASE, check, received, sent_seeds, settle_down
from tests.faults.clients import History, midday
from tests.faults.crowd import NAME, crowd
from tests.faults.nemesis import SteppingClock
from tests.faults.row import Run, row
from tests.faults.storm import PATIENT, tenants, token
from tests.fleet import Fleet, fleet
from tests.redis_server import LEDGER, RedisServer

FAST = ("--time-scale", "0.01", "--picture", "small")
DAY = 86_400
TWO = "version: 1\ntenants:\n" + "".join(
    f"  {name}: {{name: {name}, timezone: {midday()}}}\n" for name in ("acme", "zeta")
)


@row(
    "C-05",
    "1 job and equal answers for all calls under a name, at once, after kill -9 and for 24 hours; other bodies 422",
    ci={"callers": 200, "kills": 2, "names": 6},
    nightly={"callers": 200, "kills": 20, "names": 10},
)
def one_name(run: Run, callers: int, kills: int, names: int) -> None:
    clock = SteppingClock(run.folder / "clock")
    server = RedisServer(run.folder / "redis", LEDGER, environment=clock.environment)
    few = PATIENT | {"GATEWAY_UPSTREAM_CONCURRENCY": str(names // 2), "GATEWAY_UPSTREAM_DEADLINE": "40s"}
    with fleet(run.folder, tenants(None), replicas=3, sandbox=FAST, server=server, **few) as running:
        key, history = token(running), History()
        running.faults([{"kind": "slow", "count": 1, "options": {"after_seconds": 1.5}}])
        crowded, _ = crowd(running, [("acme", key)], callers)
        for number in range(kills):
            _dies_between_states(run, running, key, range(1_000 * (number + 1), 1_000 * (number + 1) + names), history)
            run.reached = f"{callers} callers; {number + 1} kills under {names} names each: {history.statuses()}"
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
        assert history.outcomes()["ok"] > 0


def _dies_between_states(run: Run, running: Fleet, key: str, seeds: range, history: History) -> None:
    """The process that has these names, each in a state of its own, is killed while others ask under them too."""
    owner = running.alive[-1]
    others = [one.url for one in running.alive if one is not owner]
    names = {seed: {"name": f"killed-{seed}"} for seed in seeds}
    with ThreadPoolExecutor() as pool:
        running.faults([{"kind": "slow", "count": len(seeds), "options": {"after_seconds": 1.5}}])
        # Some are sent, some hold money and wait for a turn, some are answered: one starts every few moments.
        rate = len(seeds) / run.draw.uniform(0.5, 2.5)
        pool.submit(history.send, [owner.url], key, seeds, each=names.__getitem__, rate=rate, patience=60)
        time.sleep(run.draw.uniform(0.3, 2.5))
        owner.kill()
        again = History()
        again.send(others, key, [seed for seed in seeds for _ in range(4)], each=names.__getitem__)
    settle_down(running, "acme", seconds=LEASE + 10)
    history.calls += again.calls
    sent = sent_seeds(running)
    for seed in seeds:
        answers = [call.answer for call in again.calls if call.seed == seed and call.answer]
        statuses = {answer.status for answer in answers}
        # None where it was killed between the acknowledgement and the first byte.
        assert sent[seed] == 1 or (sent[seed] == 0 and statuses == {504}), (seed, sent[seed], statuses)
        assert len(answers) == 4
        assert statuses <= {200, 504}
        assert len({answer.digest for answer in answers}) == 1


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
