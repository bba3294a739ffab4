"""M-01 to M-07: no storm, lost reply, absent client, crash or silence moves a micro-dollar that is not in the books."""

from __future__ import annotations

import socket
import time
from collections import Counter
from contextlib import suppress
from urllib.parse import urlsplit

from tests.faults.checker import books, check, received, recovers, settle_down
from tests.faults.clients import DOCUMENTED, History
from tests.faults.nemesis import meanwhile
from tests.faults.proxy import CALM, Weather, weathered
from tests.faults.row import Run, row
from tests.faults.storm import CAP, PATIENT, PRICE, Level, spent, storm, tenants, token
from tests.fleet import fleet, wait_until

SLOW = ("--time-scale", "0.1", "--picture", "small")
FAST = ("--time-scale", "0.01", "--picture", "small")
LEASE, GRACE = 10, 5  # seconds
LEVELS: tuple[Level, ...] = ("tenant", "key", "user")
# Every fourth round failures are billed, and the table of outcomes says so.
TURNED = {"GATEWAY_OUTCOMES": "failed=charge"}


@row(
    "M-01",
    "a cap of 125 pictures is used to its last micro-dollar and never passed, at each level",
    ci={"rounds": 4, "requests": 400},
    nightly={"rounds": 200, "requests": 1_000},
)
def storms_at_the_cap(run: Run, rounds: int, requests: int) -> None:
    samples = instants = 0
    for number in range(rounds):
        level, folder = LEVELS[number % 3], run.folder / str(number)
        folder.mkdir()
        turned = number % 4 == 3
        billing = ("--time-scale", "0.05", "--picture", "small", *(["--bill-failures"] if turned else []))
        table = PATIENT | {"GATEWAY_UPSTREAM_CONCURRENCY": "64"} | (TURNED if turned else {})
        dear = {seed for seed in range(requests) if run.draw.random() < 0.1}
        with fleet(folder, tenants(level), replicas=3, sandbox=billing, **table) as running:
            found = storm(running, level, requests=requests, dear=dear.__contains__)
            samples, instants = samples + found.sampler.samples, instants + found.sampler.instants
            figures, delivered = found.figures, found.storm.cost + found.topped_up.cost
            run.reached = f"{number + 1} rounds, excess 0 in {samples} samples, I2 at {instants} instants"
            assert {(answer.status, answer.code) for answer in found.storm.answers} <= DOCUMENTED
            assert found.sampler.samples > 100
            assert found.sampler.highest[level] == CAP  # the run did press against the cap
            assert figures.ambiguous > 0
            charged = [answer for answer in found.storm.answers if answer.charged == "yes"]
            assert bool(charged) == turned
            assert figures.refunds > 0
            assert found.topped_up.outcomes().keys() <= {"ok"}
            assert (found.refused.status, found.refused.code) == (402, "budget_exhausted")
            assert spent(running, level) == CAP == figures.bill == figures.settled + figures.ambiguous
            if not turned:
                assert delivered == figures.settled


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
    "billed = settled and nothing leaks, whenever a client leaves",
    ci={"rounds": 2},
    nightly={"rounds": 125},
)
def clients_leave_at_forty_points(run: Run, rounds: int) -> None:
    points, job = 40, 0.6
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
                return {"patience": max(0.01, moment * 2.5 * job)}

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
                f"leaks 0; {figures}"
            )
            assert found == paid & set(seeds)  # whatever was paid is found again
            assert again.outcomes() == {"ok": points}
            assert 0 < len(left) < points
            assert figures.bill == figures.settled
            assert figures.ambiguous == 0


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
    with fleet(run.folder, tenants(None), replicas=3, sandbox=SLOW, **PATIENT) as running:
        key, history = token(running), History()
        last = [time.monotonic()]

        def strike() -> None:
            run.draw.choice([one for one in running.replicas if one.process.poll() is None]).kill()
            last[0] = time.monotonic()
            running.start()

        with meanwhile(run.draw, strike, times=kills, between=(0.3, 1.2)) as over:
            first = 0
            while not over():
                history.send(running.urls, key, range(first, first + rate), rate=rate, user="ada")
                first += rate
        settle_down(running, "acme", seconds=LEASE + GRACE + 5)
        took = time.monotonic() - last[0]
        figures = check(running, "acme", exact=False, history=history)
        reaped = [one for one in books(running).rows if one["by"] == "reaper"]
        ends = Counter((one["from"], one["state"]) for one in reaped)
        run.reached = f"{kills} kills, {history}; {len(reaped)} reaped, the last after {took:.1f} s; {figures}"
        assert ends.keys() <= {("RESERVED", "REFUNDED"), ("DISPATCHING", "AMBIGUOUS")}
        assert figures.ambiguous == ends["DISPATCHING", "AMBIGUOUS"] * PRICE  # nothing else explains one
        assert len(reaped) > 0
        assert took < LEASE + GRACE
        recovers(running, key, history)


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
            for at in range(0, len(seeds), 8):  # ten failures in a row open the breaker: a rest after eight
                history.send(running.urls, key, seeds[at : at + 8])
                running.faults([])
                history.send(running.urls, key, [100_000 + seeds[at]])
                running.faults([way])
        running.faults([])
        settle_down(running, "acme")
        figures = check(running, "acme", history=history)
        unknown = history.outcomes().get("unknown", 0)
        run.reached = (
            f"{unknown} jobs without an answer, {received(running)} sent for {len(history.calls)} requests; {figures}"
        )
        assert unknown == len(range(0, jobs // len(ways))) * len(ways)
        assert received(running) == len(history.calls)
        assert figures.ambiguous == unknown * PRICE
