"""M-01 to M-07: no storm, lost reply, absent client, crash or silence moves a micro-dollar that is not in the books."""

from __future__ import annotations

import asyncio
import socket
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

from tests.faults.checker import (
    GRACE,
    LEASE,
    Broken,
    Violation,
    books,
    check,
    in_progress,
    none_lost,
    received,
    recovers,
    settle_down,
)
from tests.faults.clients import DOCUMENTED, History
from tests.faults.leaving import leave_at_each_await
from tests.faults.nemesis import meanwhile
from tests.faults.proxy import CALM, FROZEN, Weather, weathered
from tests.faults.row import Run, row
from tests.faults.storm import CAP, PATIENT, PRICE, Level, spent, storm, tenant_line, tenants, token
from tests.fleet import Fleet, Replica, fleet, wait_until

SLOW = ("--time-scale", "0.1", "--picture", "small")
FAST = ("--time-scale", "0.01", "--picture", "small")
LEVELS: tuple[Level, ...] = ("tenant", "key", "user")
TURNED = {"GATEWAY_OUTCOMES": "failed=charge"}


@row(
    "M-01",
    "a cap of 125 pictures is used to its last micro-dollar and never passed, at each level",
    ci={"fleets": 2, "rounds": 2, "requests": 400},
    nightly={"fleets": 20, "rounds": 10, "requests": 1_000},
)
def storms_at_the_cap(run: Run, fleets: int, rounds: int, requests: int) -> None:
    """Each round has a tenant of its own; in every second fleet failures are billed, and the table of outcomes says
    so."""
    samples = instants = done = 0
    for number in range(fleets):
        turned, folder = number % 2 == 1, run.folder / str(number)
        folder.mkdir()
        levels = {f"acme-{at}": LEVELS[(number + at) % 3] for at in range(rounds)}
        file = "version: 1\ntenants:\n" + "".join(tenant_line(*one) for one in levels.items())
        billing = ("--time-scale", "0.05", "--picture", "small", *(["--bill-failures"] if turned else []))
        table = PATIENT | {"GATEWAY_UPSTREAM_CONCURRENCY": "64"} | (TURNED if turned else {})
        with fleet(folder, file, replicas=3, sandbox=billing, **table) as running:
            everything = History()
            for at, (tenant, level) in enumerate(levels.items()):
                dear = {seed for seed in range(requests) if run.draw.random() < 0.1}
                found = storm(
                    running, level, requests=requests, dear=dear.__contains__, tenant=tenant, first=at * 30_000,
                    before=everything.calls,
                )  # fmt: skip
                everything.calls += found.calls
                done, samples, instants = done + 1, samples + found.sampler.samples, instants + found.sampler.instants
                figures, due = found.figures, (at + 1) * CAP
                run.reached = f"{done} rounds, excess 0 in {samples} samples, I2 at {instants} instants"
                assert {(answer.status, answer.code) for answer in found.storm.answers} <= DOCUMENTED
                assert found.sampler.samples > 100
                assert found.sampler.highest[level] == CAP  # the run did press against the cap
                assert figures.ambiguous > 0
                assert any(answer.charged == "yes" for answer in found.storm.answers) == turned
                assert figures.refunds > 0
                assert found.topped_up.outcomes().keys() <= {"ok"}
                assert (found.refused.status, found.refused.code) == (402, "budget_exhausted")
                assert spent(running, level, tenant) == CAP
                assert due == figures.bill == figures.settled + figures.ambiguous
                if not turned:
                    assert everything.cost == figures.settled


@row(
    "M-02",
    "0 doubles and books that balance with 10 % and 30 % of the ledger's replies lost",
    ci={"requests": 150, "rate": 40},
    nightly={"requests": 10_000, "rate": 60},
)
def replies_of_the_ledger_are_lost(run: Run, requests: int, rate: int) -> None:
    told = []
    for share in (0.1, 0.3):
        folder = run.folder / str(share)
        folder.mkdir()
        with fleet(folder, tenants(None), replicas=0, sandbox=FAST, **PATIENT) as running:
            key, history = token(running), History()
            with weathered(running.redis_url, run.seed) as link:
                running.ready(*(running.launch(REDIS_URL=link.at) for _ in range(2)))
                link.set(Weather(only=b"EVALSHA", cut_reply=share / 2, drop_reply=share / 2))
                history.send(running.urls, key, range(requests), rate=rate, user="ada")
                link.set(CALM)
                recovers(running, key, history)
                settle_down(running, "acme", seconds=30)
                figures = check(running, "acme", exact=False, history=history)
                lost = link.done["cut reply"] + link.done["drop reply"]
            told.append(
                f"{share:.0%}: {lost} of {link.done.total()} exchanges lost, {history}, {figures.refunds} freed"
            )
            run.reached = "; ".join(told)
            assert lost > requests * share / 2


@row(
    "M-03",
    "billed = settled and nothing leaks, whenever a client leaves: at 40 points in time, and at every await",
    ci={"rounds": 2, "walks": 1},
    nightly={"rounds": 125, "walks": 40},
)
def clients_leave_at_forty_points(run: Run, rounds: int, walks: int) -> None:
    points, job = 40, 0.6
    (folder := run.folder / "awaits").mkdir()
    awaits = _leave_at_every_await(run, folder, walks) if walks else ""
    with fleet(
        run.folder, tenants(None), replicas=2, sandbox=("--time-scale", "0.1", "--picture", "small"),
        GATEWAY_UPSTREAM_CONCURRENCY="12", **PATIENT,
    ) as running:  # fmt: skip
        key = token(running)
        for number in range(rounds):
            history, seeds = History(), range(number * points, (number + 1) * points)
            for at in range(10):  # in the middle of the request: it is never whole
                _half_a_request(running.urls[at % 2], key, (at + run.draw.random()) / 10)

            def leaves(seed: int) -> dict[str, float]:
                moment = ((seed % points) + run.draw.random()) / points  # from the first byte to after the last
                return {"patience": max(0.01, moment * 2.5 * job) if seed % points < points - 1 else 60}

            history.send(running.urls, key, seeds, each=leaves)
            settle_down(running, "acme")
            check(running, "acme", history=history)
            paid = {int(one["seed"]) for one in running.bill()["rows"]}
            left = [call.seed for call in history.calls if call.answer is None]
            again = History()
            again.send(running.urls[::-1], key, seeds)
            settle_down(running, "acme")
            figures = check(running, "acme", history=again)
            found = {call.seed for call in again.calls if call.answer and call.answer.source == "cache"}
            run.reached = (
                f"{(number + 1) * points} clients, {len(left)} of the last {points} left, "
                f"{len(paid & set(seeds))} of them sent, "
                f"leaks 0; {awaits}; {figures}"
            )
            assert found == paid & set(seeds)  # whatever was paid is found again
            assert again.outcomes() == {"ok": points}
            assert 0 < len(left) < points
            assert figures.bill == figures.settled
            assert figures.ambiguous == 0


def _leave_at_every_await(run: Run, folder: Path, walks: int) -> str:
    """Once, and once more by a caller that is cancelled a second time; then again as often as asked."""
    with fleet(folder, tenants(None), replicas=0, sandbox=("--time-scale", "0", "--picture", "small")) as running:
        key, told = token(running), []
        for walk in range(2 * walks):
            told.append(asyncio.run(leave_at_each_await(running, key, run.draw, twice=walk % 2 == 1, first=walk)))
        settle_down(running, "acme", seconds=LEASE + GRACE)
        found, bill = books(running), running.bill()
        broken = found.violations()
        if found.outstanding or any(found.places.values()):
            broken.append(Violation("I5", f"left behind: {found.outstanding}, {found.places}"))
        if found.ambiguous or bill["micro_usd"] != found.sum("SETTLED"):
            broken.append(Violation("I3", f"billed {bill['micro_usd']}, settled {found.sum('SETTLED')}"))
        with running.redis as client:
            names = client.scan_iter("kg:{t:acme}:idem:*", count=1000)
            broken += [
                Violation("I6", "a name is still taken") for name in names if client.hget(name, "state") == b"claimed"
            ]
        if broken:
            raise Broken(broken)
        paid = none_lost(running)
        assert paid > 0  # some left too late to be in time
        return f"left at each of {told[0]} awaits, {paid} of them sent"


def _half_a_request(url: str, key: str, share: float) -> None:
    """Send so much of a request and leave."""
    place, body = urlsplit(url), b'{"prompt": "a request that never arrives"}'
    head = f"POST /v1/generate HTTP/1.1\r\nHost: {place.netloc}\r\nAuthorization: Bearer {key}\r\n"
    whole = f"{head}Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
    with socket.create_connection((str(place.hostname), int(place.port or 0)), timeout=5) as connection:
        connection.sendall(whole[: max(1, int(len(whole) * share))])
        with suppress(OSError):
            connection.shutdown(socket.SHUT_WR)


@row(
    "M-05",
    "after kill -9 at random moments, holds are ended within lease + 5 s and every micro-dollar is explained",
    ci={"kills": 4, "rate": 30},
    nightly={"kills": 300, "rate": 30},
)
def replicas_are_killed_under_load(run: Run, kills: int, rate: int) -> None:
    """One more is killed while others still start: there are always at least two that work."""
    with fleet(run.folder, tenants(None), replicas=5, sandbox=SLOW, **PATIENT) as running:
        key, history = token(running), History()
        _killed_before_its_picture_is_stored(running, key, history)
        last, at_work, starting = time.monotonic(), running.alive, list[Replica]()

        def enough() -> bool:
            for one in [one for one in starting if one.is_ready()]:
                starting.remove(one)
                at_work.append(one)
            return len(at_work) > 2

        def strike() -> None:
            nonlocal last
            victim = run.draw.choice(at_work)
            at_work.remove(victim)
            victim.kill()
            last = time.monotonic()
            starting.append(running.launch())
            wait_until(enough, 60)

        with meanwhile(run.draw, strike, times=kills, between=(0.3, 1.2)) as over:
            first = 0
            while not over():
                urls = [one.url for one in at_work]
                history.send(urls, key, range(first, first + rate), rate=rate, user="ada")
                first += rate
        settle_down(running, "acme", seconds=LEASE + GRACE + 5)
        took = time.monotonic() - last
        running.ready(*starting)
        kept = none_lost(running)
        figures = check(running, "acme", exact=False, history=history)
        reaped = [one for one in books(running).rows if one["by"] == "reaper"]
        ends = Counter((one["from"], one["state"]) for one in reaped)
        run.reached = f"{kills} kills, {history}; {len(reaped)} reaped, the last after {took:.1f} s; "
        run.reached += f"{kept} pictures paid, none lost; {figures}"
        assert ends.keys() <= {("RESERVED", "REFUNDED"), ("DISPATCHING", "AMBIGUOUS")}
        assert figures.ambiguous == ends["DISPATCHING", "AMBIGUOUS"] * PRICE  # nothing else explains one
        assert len(reaped) > 0
        assert took < LEASE + GRACE
        recovers(running, key, history)


def _killed_before_its_picture_is_stored(running: Fleet, key: str, history: History) -> None:
    """The cache does not take the picture, and the process dies while it waits: nothing is settled yet."""
    running.faults([{"kind": "slow", "count": 1, "options": {"after_seconds": 0.5}}])
    with weathered(running.redis_url) as cache, ThreadPoolExecutor(1) as pool:
        victim = running.start(CACHE_REDIS_URL=cache.at)
        asking = pool.submit(history.send, [victim.url], key, [900_000])
        wait_until(lambda: in_progress(running) == 1, 10)
        cache.set(FROZEN)
        wait_until(lambda: in_progress(running) == 0, 10)
        time.sleep(0.3)
        victim.kill()
        asking.result()


@row(
    "M-06",
    "a replica that was frozen for longer than its lease has 0 second effects",
    ci={"seconds": 14},
    nightly={"seconds": 90},
)
def a_replica_is_frozen_for_longer_than_its_lease(run: Run, seconds: float) -> None:
    with fleet(
        run.folder, tenants(None), replicas=2, sandbox=FAST, GATEWAY_UPSTREAM_CONCURRENCY="4", **PATIENT
    ) as running:
        key, history = token(running), History()
        sleeper = running.replicas[0]
        running.faults([{"kind": "slow", "count": 4, "options": {"after_seconds": 4}}])

        def freeze() -> None:
            wait_until(lambda: len(books(running).outstanding) == 8 and received(running) == 4, 10)
            sleeper.freeze()
            time.sleep(seconds)
            ends = Counter((one["from"], one["state"], one["by"]) for one in books(running).rows)
            sleeper.thaw()
            assert ends == {("RESERVED", "REFUNDED", "reaper"): 4, ("DISPATCHING", "AMBIGUOUS", "reaper"): 4}

        with meanwhile(run.draw, freeze, times=1, between=(0, 0.01)):
            history.send([sleeper.url], key, range(8))
        settle_down(running, "acme")
        figures = check(running, "acme", history=history)
        run.reached = (
            f"frozen {seconds} s, 4 sent and 4 waiting: {history.statuses()}, {received(running)} sent; {figures}"
        )
        assert received(running) == 4  # what was given back is never sent
        assert figures.settled == 4 * PRICE  # and what was sent is settled late, once
        assert history.outcomes() == {"ok": 4, "fail": 4}
        recovers(running, key, history)


@row(
    "M-07",
    "jobs accepted = requests, charged = billed, never sent again, and the caller is told `unknown`",
    ci={"jobs": 60},
    nightly={"jobs": 1_000},
)
def the_upstream_bills_and_says_nothing(run: Run, jobs: int) -> None:
    ways = [
        {"kind": "cut_after_accept"},
        {"kind": "cut_after_accept", "options": {"reset": True}},
        {"kind": "cut_mid_body"},
        {"kind": "truncated"},
        {"kind": "hang"},
    ]
    wide = PATIENT | {"GATEWAY_UPSTREAM_DEADLINE": "4s", "GATEWAY_UPSTREAM_CONCURRENCY": "64"}
    with fleet(run.folder, tenants(None), replicas=2, sandbox=FAST, **wide) as running:
        key, history = token(running), History()
        for number, way in enumerate(ways):
            running.faults([way])
            first = number * jobs // len(ways)
            seeds = range(first, first + jobs // len(ways))
            # Ten failures in a row open the breaker, and what two replicas tell of theirs may cross: a rest after four.
            for at in range(0, len(seeds), 4):
                history.send(running.urls, key, seeds[at : at + 4])
                running.faults([])
                history.send(running.urls, key, [100_000 + seeds[at]])
                running.faults([way])
        running.faults([])
        settle_down(running, "acme")
        figures = check(running, "acme", history=history)
        unknown = history.outcomes().get("unknown", 0)
        run.reached = (
            f"{unknown} jobs without an answer, {received(running)} sent for {len(history.calls)} requests: "
            f"{history.statuses()}; {figures}"
        )
        assert unknown == len(range(0, jobs // len(ways))) * len(ways)
        assert received(running) == len(history.calls)
        assert figures.ambiguous == unknown * PRICE
