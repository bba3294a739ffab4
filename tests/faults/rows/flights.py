"""C-01 to C-04, C-08, L-06: one job for equal requests whatever becomes of its leader; no other tenant's picture."""

from __future__ import annotations

import asyncio
import random
import time
from ast import literal_eval
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import uvloop

from app.errors import LedgerUnavailable
from app.store.redis import Store
from tests.faults.checker import LEASE, Broken, Violation, books, check, in_progress, recovers, settle_down
from tests.faults.clients import History, midday
from tests.faults.digests import distinct
from tests.faults.nemesis import meanwhile
from tests.faults.proxy import CALM, Proxy, Weather, weathered
from tests.faults.row import Run, row
from tests.faults.storm import PATIENT, tenants, token
from tests.fleet import Fleet, fleet, get_json, wait_until
from tests.scripts.engines import engine

FAST = ("--time-scale", "0.01", "--picture", "small")
SLOTS = 6
CEILINGS = {"acme": 1, "zeta": 6, "pool-low": 1, "pool-high": 6}
FOUR = "version: 1\ntenants:\n" + "".join(
    f"  {name}: {{name: {name}, timezone: {midday()}, safety: {{generate: {{ceiling: {ceiling}}}, mode: clamp}}"
    f"{', cache: {scope: pool:shared}' * name.startswith('pool')}}}\n"
    for name, ceiling in CEILINGS.items()
)
USUAL = 4  # the tolerance of a request that asks for none


@row(
    "C-01",
    "0 pictures across tenants or at another tolerance among mixed equal requests; 0 collisions in 1,000,000 pairs",
    ci={"requests": 200, "digests": 1_500},
    nightly={"requests": 25_000, "digests": 20_000},
)
def tenants_ask_for_the_same(run: Run, requests: int, digests: int) -> None:
    """Two tenants by themselves and two that share a pool, so many requests each, under unequal ceilings."""
    fast = PATIENT | {"GATEWAY_UPSTREAM_CONCURRENCY": "64"}
    with fleet(run.folder, FOUR, replicas=3, sandbox=FAST, **fast) as running:
        keys = {name: token(running, tenant=name) for name in CEILINGS}
        history, wants = History(), {}
        for at in range(requests):
            wants[at] = {
                "seed": run.draw.randrange(max(10, requests // 20)),
                "safety_tolerance": run.draw.choice([None, 0, 1, 2, 6]),
                "output_format": run.draw.choice([None, "jpeg", "png"]),
            }
        with ThreadPoolExecutor() as pool:
            for name, key in keys.items():
                pool.submit(history.send, running.urls, key, range(requests), each=wants.get, tenant=name, rate=60)
        for name in CEILINGS:
            settle_down(running, name)
        found = {name: books(running, name) for name in CEILINGS}
        config = {job["id"]: job["config"] for job in get_json(running.upstream + "/sandbox/jobs?limit=200000")["jobs"]}
        paid = {name: {line["job"]: line["upstream_id"] for line in found[name].rows} for name in CEILINGS}
        pooled = paid["pool-low"] | paid["pool-high"]
        wrong, sources = [], Counter(answer.source for answer in history.answers)
        for call in (call for call in history.calls if call.answer and call.outcome == "ok"):
            theirs = pooled if call.tenant.startswith("pool") else paid[call.tenant]
            if call.answer.job not in theirs:
                wrong.append(Violation("I8", f"{call.tenant} was given {call.answer.job}, which others paid for"))
                continue
            sent, asked = config[theirs[call.answer.job]], dict(literal_eval(call.wish)).get("safety_tolerance")
            due = min(USUAL if asked is None else asked, CEILINGS[call.tenant])
            if (sent["seed"], sent["safety_tolerance"]) != (call.answer.seed, due):
                wrong.append(Violation("I9", f"{call.tenant} was given {sent} where {due} applies"))
        if wrong:
            raise Broken(wrong[:20])
        run.reached = f"{len(history.calls)} requests: {dict(sources)}"
        assert history.outcomes() == {"ok": len(CEILINGS) * requests}
        assert min(sources["cache"], sources["upstream"]) > requests / 10
    pairs = distinct(run.draw, digests)
    run.reached += f"; 0 collisions in {pairs:,} pairs of digests"
    assert pairs > 1_000_000


@row(
    "C-02",
    f"<= 1 job for each picture, nobody stuck, others lead <= {LEASE + 2} s after the leader's death",
    ci={"rounds": 1, "pictures": 12, "followers": 4},
    nightly={"rounds": 21, "pictures": 24, "followers": 8},  # 504 deaths of a leader
)
def the_leader_is_killed(run: Run, rounds: int, pictures: int, followers: int) -> None:
    few = PATIENT | {"GATEWAY_UPSTREAM_CONCURRENCY": str(SLOTS), "GATEWAY_UPSTREAM_DEADLINE": "20s"}
    told, slowest = Counter[str](), 0.0
    with fleet(run.folder, tenants(None), replicas=3, sandbox=FAST, **few) as running:
        key, everything = token(running), History()
        for number in range(rounds):
            running.faults([{"kind": "slow", "count": SLOTS, "options": {"after_seconds": 3.0}}])
            leader, *others = [one for one in running.replicas if one.process.poll() is None]
            seeds = range(number * 1_000, number * 1_000 + pictures)
            led, followed = History(), History()
            with ThreadPoolExecutor() as pool:
                leading = pool.submit(led.send, [leader.url], key, seeds)
                time.sleep(run.draw.uniform(0.02, 0.4))
                urls = [one.url for one in others]
                following = pool.submit(followed.send, urls, key, [seed for seed in seeds for _ in range(followers)])
                time.sleep(run.draw.uniform(0.05, 2.5))
                leader.kill()
                killed = time.monotonic()
                leading.result()
                following.result()
            running.faults([])
            settle_down(running, "acme", seconds=LEASE + 10)
            sent = Counter(
                job["config"]["seed"] for job in get_json(running.upstream + "/sandbox/jobs?limit=9999")["jobs"]
            )
            everything.calls += led.calls + followed.calls
            told.update(followed.statuses())
            taken = [call for call in followed.calls if call.outcome == "ok" and call.ended > killed + 4]
            slowest = max([slowest, *(call.ended - killed for call in taken)])
            run.reached = (
                f"{rounds} deaths, {dict(told)}, taken over after {slowest:.1f} s, at most {max(sent.values())} job"
            )
            assert max(sent.values()) == 1
            stuck = {call.seed for call in followed.calls if call.answer and call.answer.status == 504}
            assert len(stuck) <= SLOTS  # only what may have been sent is not taken over
            assert all(call.answer is not None for call in followed.calls)
            assert set(followed.statuses()) <= {"200 ok", "504 upstream_timeout"}
            for seed in seeds:  # all who follow one leader are told alike
                assert len({call.answer.status for call in followed.calls if call.seed == seed and call.answer}) == 1
            running.start()
        figures = check(running, "acme", exact=False, history=everything)
        run.reached += f"; {figures}"
        assert told["200 ok"] > 0
        assert slowest < LEASE + run.within(2)


@row(
    "C-04",
    "a leader that fails hands over once: calls <= those of one request, every follower is told, and none for a leader "
    "that may not spend",
    ci={"rounds": 4, "followers": 20},
    nightly={"rounds": 100, "followers": 50},
)
def the_leader_fails(run: Run, rounds: int, followers: int) -> None:
    ways = {"failed": "502", "moderated_prompt": "422", "busy": "503", "cut_after_accept": "502"}
    with fleet(run.folder, tenants(None), replicas=3, sandbox=FAST, **PATIENT) as running:
        key, most = token(running), 0
        for number in range(rounds):
            kind, status = list(ways.items())[number % len(ways)]
            asked = History()
            running.faults(
                [{"kind": kind, "options": {"retry_after": 0} if kind == "busy" else {"after_seconds": 0.5}}]
            )
            before = running.stats()["received"]
            asked.send(running.urls, key, [number] * followers)
            settle_down(running, "acme")
            calls = running.stats()["received"] - before
            most = max(most, calls)
            run.reached = f"{number + 1} failed leaders, at most {most} calls for {followers} requests"
            assert {word.split()[0] for word in asked.statuses()} == {status}
            assert calls <= 5
            assert len(asked.answers) == followers
        running.faults([])
        _a_leader_without_money(running, key)
        settle_down(running, "acme")
        check(running, "acme")
        recovers(running, key, History())


def _a_leader_without_money(running: Fleet, key: str) -> None:
    """It is refused after others, who can pay, have begun to wait for its picture."""
    poor, rich, broke = History(), History(), running.token("acme", "0.01/day")
    with weathered(running.redis_url) as link, ThreadPoolExecutor(1) as pool:
        running.ready(*(replicas := [running.launch(REDIS_URL=link.at) for _ in range(2)]))
        urls = [one.url for one in replicas]
        for warm in (key, broke):  # each replica knows them
            History().send(urls, warm, range(800_000, 800_004))
        link.set(Weather(delay=0.3))
        leading = pool.submit(poor.send, urls[:1], broke, [900_000])
        time.sleep(0.15)
        rich.send(urls, key, [900_000, 900_001, 900_002, 900_003], each=lambda _: {"seed": 900_000})
        leading.result()
        link.set(CALM)
        assert [one.stop() for one in replicas] == [0, 0]
    assert poor.statuses() == {"402 budget_exhausted": 1}, poor.statuses()
    assert rich.outcomes() == {"ok": 4}, f"rich callers: {rich.statuses()}"


@row("C-08", "0 spoilt pictures served or stored", ci={"rounds": 1}, nightly={"rounds": 30})
def spoilt_pictures(run: Run, rounds: int) -> None:
    """What the upstream spoils is never stored; what is spoilt in Redis is bought again."""
    ways = [
        {"kind": "truncated"},
        {"kind": "cut_mid_body"},
        {"kind": "wrong_content_type"},
        *(
            {"kind": "malformed", "options": {"variant": word}}
            for word in ("empty_output", "garbage", "missing_output")
        ),
    ]
    with fleet(run.folder, tenants(None), sandbox=FAST, **PATIENT) as running, running.redis as client:
        key, served = token(running), 0
        for number in range(rounds * len(ways)):
            running.faults([ways[number % len(ways)]])
            asked = History()
            asked.send(running.urls, key, [number])
            assert asked.answers[0].status == 502
            assert not list(client.scan_iter("kg:*:result:*"))
            running.faults([])
            asked.send(running.urls, key, [number])
            name = next(client.scan_iter("kg:*:result:*"))
            value = bytearray(client.get(name))
            value[run.draw.randrange(len(value))] ^= 1 << run.draw.randrange(8)
            client.set(name, bytes(value))
            asked.send(running.urls, key, [number])
            first, second = asked.answers[1:]
            served += (second.status, second.source, second.digest) != (200, "upstream", first.digest)
            client.delete(name)
            client.delete(*client.scan_iter("kg:*:flight:*"))
        run.reached = f"{served} served in {rounds * len(ways)} spoilt answers and as many flipped bits"
        assert served == 0


@row(
    "L-06",
    "no place and no slot is left by kills, clients that leave and failures; then all of them can be used",
    ci={"rounds": 2},
    nightly={"rounds": 60},
)
def places_do_not_leak(run: Run, rounds: int) -> None:
    slots = 8
    held = tenants(None).replace("limits: {", f"limits: {{concurrency: {slots}, ")
    wide = PATIENT | {"GATEWAY_UPSTREAM_CONCURRENCY": str(slots)}
    speed = ("--time-scale", "0.1", "--picture", "small")
    with fleet(run.folder, held, replicas=2, sandbox=speed, **wide) as running:
        key = token(running)
        running.faults([{"kind": "failed", "probability": 0.2}, {"kind": "cut_after_accept", "probability": 0.1}])

        def strike() -> None:
            run.draw.choice([one for one in running.replicas if one.process.poll() is None]).kill()
            killed.append(time.monotonic())
            running.start()

        seed, killed = 0, [0.0]
        with meanwhile(run.draw, strike, times=rounds, between=(0.3, 1.0)) as over:
            while not over():
                leaving = History()
                leaving.send(running.urls, key, range(seed, seed + 20), rate=40, patience=run.draw.uniform(0.05, 1.0))
                seed += 20
        running.faults([])
        settle_down(running, "acme", seconds=LEASE + 10)
        check(running, "acme", exact=False)
        time.sleep(max(0.0, killed[-1] + LEASE + 1 - time.monotonic()))
        _all_slots_work(running, key, slots)
        run.reached = f"{rounds} kills, {seed} clients that left; 0 places and 0 slots taken, {slots} of {slots} usable"


def _all_slots_work(running: Fleet, key: str, slots: int) -> None:
    running.faults([{"kind": "slow", "options": {"after_seconds": 1.0}}])
    last = History()
    with ThreadPoolExecutor() as pool:
        sending = pool.submit(last.send, running.urls, key, range(10**6, 10**6 + slots))
        wait_until(lambda: in_progress(running) == slots, 10)
        sending.result()
    assert last.outcomes() == {"ok": slots}
    with running.redis as client:
        wait_until(lambda: not client.hgetall("kg:{up}:held"), 5)


@row(
    "C-03",
    "0 foreign replies and nobody left waiting, with half of the calls cancelled and connections reset",
    ci={"calls": 4_000},
    nightly={"calls": 100_000},
)
def calls_to_redis_are_cancelled(run: Run, calls: int) -> None:
    with engine("valkey") as client, weathered(f"redis://127.0.0.1:{client.get_connection_kwargs()['port']}") as link:
        for number in range(100):
            client.set(f"self{number}", f"self{number}")
        seen = uvloop.run(_cancelled_calls(link, run.draw, calls))
    run.reached = ", ".join(f"{count} {word}" for word, count in sorted(seen.items()))
    assert seen["foreign"] == 0
    assert seen["hung"] == 0
    assert seen["right"] > calls / 40


async def _cancelled_calls(link: Proxy, draw: random.Random, calls: int) -> dict[str, int]:
    seen = dict.fromkeys(("right", "foreign", "cancelled", "away", "hung"), 0)
    store = Store(link.at, timeout=1, connect_timeout=1, observe=lambda *_: None)

    async def one() -> None:
        wanted = f"self{draw.randrange(100)}"
        await asyncio.sleep(draw.random() / 10)
        asking = asyncio.ensure_future(store.command("GET", wanted))
        if draw.random() < 0.5:
            await asyncio.wait([asking], timeout=draw.random() / 50)
            asking.cancel()
        done, _ = await asyncio.wait([asking], timeout=10)
        if not done:
            seen["hung"] += 1
        elif asking.cancelled():
            seen["cancelled"] += 1
        elif isinstance(asking.exception(), LedgerUnavailable):
            seen["away"] += 1
        else:
            seen["right" if asking.result() == wanted.encode() else "foreign"] += 1

    for at in range(0, calls, 1_000):
        link.set(Weather(jitter=0.01, cut_reply=0.002, cut_request=0.002))
        wave = asyncio.gather(*(one() for _ in range(min(1_000, calls - at))))
        await asyncio.sleep(0.03)
        link.cut()
        await wave
    link.set(CALM)
    async with asyncio.timeout(5):
        while not await _answers(store):  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    await store.aclose()
    return seen


async def _answers(store: Store) -> bool:
    with suppress(LedgerUnavailable):
        return bool(await store.command("GET", "self1") == b"self1")
    return False
