"""R-01 to R-08, M-22, O-06: a Redis that is frozen, slow, away, emptied, rolled back, killed or full."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from tests.faults.checker import Broken, books, check, none_sent, received, recovers, settle_down
from tests.faults.clients import History
from tests.faults.load import Load, percentile, steady
from tests.faults.nemesis import meanwhile
from tests.faults.proxy import CALM, DOWN, Weather, weathered
from tests.faults.row import Run, row
from tests.faults.storm import PATIENT, tenants, token
from tests.fleet import APP, ROOT, Fleet, fleet, get_json, wait_until

FAST = ("--time-scale", "0.01", "--picture", "small")
AWAY = {"503 ledger_unavailable", "503 ledger_frozen"}


def alive(running: Fleet) -> bool:
    """Whether every replica says that it lives."""
    return all(get_json(replica.ops + "/healthz") == {"status": "ok"} for replica in running.replicas)


def logged(running: Fleet) -> int:
    """Bytes of all logs."""
    return sum(replica.log.stat().st_size for replica in running.replicas)


def outage(
    run: Run,
    running: Fleet,
    rate: float,
    seconds: float,
    begin: Callable[[], None],
    end: Callable[[], None],
) -> Load:
    """A steady load before, while and after Redis is away. Raises where a request was not refused as it must be, or a
    job was sent."""
    key = token(running)
    with steady(running.urls, key, rate) as load:
        time.sleep(1)
        begin()
        time.sleep(0.3)  # what was acknowledged before is sent
        sent, lines = received(running), logged(running)
        load.mark("away")
        time.sleep(seconds)
        lives = alive(running)
        load.mark("back")
        none_sent(running, sent)
        lines = logged(running) - lines
        end()
        took = recovers(running, key, later := History(), requests=10)
    settle_down(running, "acme", seconds=30)
    load.calls += later.calls
    figures = check(running, "acme", exact=False, history=load)
    refused, load.logged = load.between("away", "back"), lines
    codes = {f"{call.answer.status} {call.answer.code}" for call in refused if call.answer}
    run.reached = (
        f"{len(refused)} asked meanwhile: p50 {percentile(refused, 0.5) * 1000:.0f} ms, "
        f"p99 {percentile(refused, 0.99) * 1000:.0f} ms; 0 sent; recovery {took:.1f} s; "
        f"{lines / len(refused):.0f} B logged for each; {figures}"
    )
    assert lives
    assert codes <= AWAY, codes
    assert all(call.answer and call.answer.retry_after for call in refused)
    assert percentile(refused, 0.99) < run.within(0.3)
    assert took < run.within(5)
    return load


@row(
    "R-01",
    "frozen: 503 with Retry-After within 300 ms, p99 <= 20 ms once it is known, 0 dispatched, liveness 200, "
    "recovery <= 5 s",
    ci={"seconds": 3, "rate": 40},
    nightly={"seconds": 60, "rate": 100},
)
def redis_is_frozen(run: Run, seconds: float, rate: float) -> None:
    with fleet(run.folder, tenants(None), replicas=2, sandbox=FAST) as running:
        load = outage(run, running, rate, seconds, running.server.freeze, running.server.thaw)
        known = load.marks["away"] + 0.5  # a round trip was waited for in vain, and its caller told
        late = percentile([call for call in load.between("away", "back") if call.began > known], 0.99)
        run.reached = f"p99 {late * 1000:.0f} ms once known; {run.reached}"
        assert late <= run.within(0.02)


@row(
    "O-06",
    "<= 300 B logged for each request of an outage, one line for each change of state",
    ci={"seconds": 3, "rate": 40},
    nightly={"seconds": 60, "rate": 100},
)
def an_outage_is_logged(run: Run, seconds: float, rate: float) -> None:
    with fleet(run.folder, tenants(None), replicas=0, sandbox=FAST) as running, weathered(running.redis_url) as link:
        running.ready(*(running.launch(REDIS_URL=link.at) for _ in range(2)))
        load = outage(run, running, rate, seconds, lambda: link.set(DOWN), lambda: link.set(CALM))
        lines = [line for one in running.replicas for line in one.log.read_text().splitlines() if "ledger_" in line]
        changes = [line for line in lines if '"event":"ledger_' in line]
        assert load.logged / len(load.between("away", "back")) <= 300
        assert 2 <= len(changes) <= 4 * len(running.replicas), changes


@row(
    "R-02",
    "slow, with a quarter of the replies too late: 0 wrong answers, no storm of logs or CPU",
    ci={"seconds": 4, "rate": 15},
    nightly={"seconds": 60, "rate": 30},
)
def redis_is_slow(run: Run, seconds: float, rate: float) -> None:
    with fleet(run.folder, tenants(None), replicas=0, sandbox=FAST) as running, weathered(running.redis_url) as link:
        running.start(REDIS_URL=link.at)
        key, replica = token(running), running.replicas[0]
        used = []
        everything = Load()
        for weather in (CALM, Weather(delay=0.01, jitter=0.19)):
            link.set(weather)
            lines, busy, before = logged(running), _cpu(replica.process.pid), len(everything.calls)
            with steady(running.urls, key, rate, everything):
                time.sleep(seconds)
            count = len(everything.calls) - before
            took = percentile(everything.calls[before:], 0.99)
            cpu = _cpu(replica.process.pid) - busy
            used.append((count, (logged(running) - lines) / count, cpu / count * 1000, took))
        link.set(CALM)
        recovers(running, key, everything)
        settle_down(running, "acme", seconds=30)
        figures = check(running, "acme", exact=False, history=everything)
        (_, calm_log, calm_cpu, calm_p99), (count, log, cpu, p99) = used
        run.reached = (
            f"{count} requests, {everything}; p99 {calm_p99:.2f} -> {p99:.2f} s, log {calm_log:.0f} -> {log:.0f} B, "
            f"CPU {calm_cpu:.1f} -> {cpu:.1f} ms a request; {figures}"
        )
        assert log < calm_log + 300
        assert cpu < calm_cpu * (1.3 if run.depth == "nightly" else 3)


def _cpu(pid: int) -> float:
    """CPU seconds of a process so far."""
    words = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    return (int(words[11]) + int(words[12])) / 100


@row("R-03", "starts without Redis, lives, is ready <= 3 s after it", ci={"rounds": 1}, nightly={"rounds": 10})
def redis_comes_up_last(run: Run, rounds: int) -> None:
    with fleet(run.folder, tenants(None), replicas=0, sandbox=FAST) as running:
        key, slowest = token(running), 0.0
        with running.redis as client:  # what waits in Redis for a busy disk is lost with it
            client.pipeline(False).set("last", 1).execute_command("WAITAOF", 1, 0, 10_000).execute()
        for _ in range(rounds):
            running.server.kill()
            replica = running.launch()
            wait_until(lambda: _status(replica.ops + "/healthz") == 200, 20, replica.log.read_text)  # noqa: B023
            assert _status(replica.ops + "/readyz") == 503
            time.sleep(1)
            assert replica.process.poll() is None
            running.server.start()
            began = time.monotonic()
            running.ready(replica)
            slowest = max(slowest, time.monotonic() - began)
            recovers(running, key, History())
            replica.stop()
        run.reached = f"{rounds} starts, ready {slowest:.1f} s after Redis"
        assert slowest < run.within(3)


def _status(url: str) -> int:
    done = subprocess.run(
        ["curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", url], capture_output=True, check=False
    )
    return int(done.stdout)


@row(
    "R-05",
    "0 dispatched after FLUSHALL, a start without its data, or the return of an old copy, until the operator releases",
    ci={"rounds": 1},
    nightly={"rounds": 6},
)
def the_ledger_is_lost(run: Run, rounds: int) -> None:
    ways: dict[str, Callable[[Fleet], None]] = {"flushed": _flush, "started empty": _start_empty}
    ways |= {"rolled back": _roll_back, "before a release": partial(_roll_back, far=True)}
    slow, few = ("--time-scale", "0.05", "--picture", "small"), PATIENT | {"GATEWAY_UPSTREAM_CONCURRENCY": "4"}
    with fleet(run.folder, tenants(None), replicas=2, sandbox=slow, **few) as running:
        key, told = token(running), [_an_idle_replica_notices(running)]
        for way, lose in [*ways.items()] * rounds:
            run.reached = f"{'; '.join(told)}; {way}"
            with steady(running.urls, key, 20) as load:
                time.sleep(0.5)
                lose(running)
                time.sleep(run.within(0.25))  # what was acknowledged before is sent
                sent = received(running)
                load.mark("lost")
                time.sleep(1)
                if way in ("flushed", "started empty"):
                    running.command("ledger", "init")  # an empty ledger in the place of the lost one does not end it
                    key = token(running)
                time.sleep(1)
                load.mark("released")
            late = History()
            late.send(running.urls, key, range(500_000, 500_020))
            none_sent(running, sent)
            seen = {f"{one.answer.status} {one.answer.code}" for one in load.between("lost", "released") if one.answer}
            assert seen <= AWAY | {"401 unauthenticated"}  # a flushed ledger holds no keys either
            assert late.statuses() == {"503 ledger_frozen": 20}
            with steady(running.urls, key, 20):  # a release under load stops nobody for good
                running.command("ledger", "release")
                time.sleep(1.5)
            recovers(running, key, History())
            assert all(one.total("kontext_gateway_ledger_frozen") == 0 for one in running.replicas)
            told.append(f"{way}: {sorted(seen)}, 0 sent")
            run.reached = "; ".join(told)


def _an_idle_replica_notices(running: Fleet) -> str:
    """Also a replica that served nobody since the copy was made takes it for what it is."""
    busy, idle = running.urls
    key, spending, late = token(running), History(), History()
    copy = _copied(running)
    spending.send([busy], key, range(600_000, 600_010))
    time.sleep(2.5)  # two heartbeats
    _kill_and_restore(running, copy)
    time.sleep(1.5)
    late.send([idle], key, range(600_100, 600_110))
    assert spending.outcomes() == {"ok": 10}
    none_sent(running, 10)
    assert late.statuses() == {"503 ledger_frozen": 10}, late.statuses()
    running.command("ledger", "release")
    time.sleep(1.5)
    recovers(running, key, History())
    return "idle replica: 503 ledger_frozen, 0 sent"


def _flush(running: Fleet) -> None:
    with running.redis as client:
        client.flushall()


def _start_empty(running: Fleet) -> None:
    running.server.kill()
    for kept in running.server.folder.iterdir():
        shutil.rmtree(kept) if kept.is_dir() else kept.unlink()
    running.server.start()


def _roll_back(running: Fleet, *, far: bool = False) -> None:
    """To a copy of a moment ago; `far`: to one that was made after an earlier release and before the last one."""
    copy = _copied(running)
    if far:
        running.command("ledger", "release")
        time.sleep(1.5)  # every replica follows
    time.sleep(1)  # the load goes on: what it spends now is not in the copy
    _kill_and_restore(running, copy)


def _copied(running: Fleet) -> Path:
    with running.redis as client:
        client.save()
    return Path(shutil.copy(running.server.folder / "dump.rdb", running.server.folder.parent / "copy.rdb"))


def _kill_and_restore(running: Fleet, copy: Path) -> None:
    running.server.kill()
    for kept in running.server.folder.iterdir():
        shutil.rmtree(kept) if kept.is_dir() else kept.unlink()
    shutil.copy(copy, running.server.folder / "dump.rdb")
    running.server.config["appendonly"] = "no"  # an append-only file would be preferred to the copy
    running.server.start()
    with running.redis as client:
        client.config_set("appendonly", "yes")


@row(
    "R-06",
    "a ledger that may evict: refuses to start, alarms <= 60 s when it becomes so",
    ci={"patience": 60},
    nightly={"patience": 60},
)
def the_ledger_may_evict(run: Run, patience: float) -> None:
    with fleet(run.folder, tenants(None), sandbox=FAST) as running, running.redis as client:
        client.config_set("maxmemory-policy", "allkeys-lru")
        began = time.monotonic()
        refused = subprocess.run(
            [*APP, "serve"], env=running.environment, cwd=ROOT, capture_output=True, text=True, timeout=20, check=False
        )
        wait_until(lambda: "ledger_volatile" in running.replicas[0].log.read_text(), patience)
        took = time.monotonic() - began
        run.reached = f"exit code {refused.returncode}: {refused.stderr.strip()}; alarm {took:.0f} s"
        assert refused.returncode == 1
        assert "noeviction" in refused.stderr
        assert took <= patience


@row(
    "R-07",
    "nothing acknowledged is lost by kill -9 of Redis under load, with either way to sync",
    ci={"kills": 2, "rate": 30},
    nightly={"kills": 50, "rate": 50},
)
def redis_is_killed(run: Run, kills: int, rate: float) -> None:
    told = []
    for sync in ("always", "everysec"):
        (folder := run.folder / sync).mkdir()
        with fleet(folder, tenants(None), replicas=2, sandbox=FAST) as running:
            with running.redis as client:
                client.config_set("appendfsync", sync)
            running.server.config["appendfsync"] = sync

            def strike() -> None:
                running.server.kill()
                time.sleep(run.draw.uniform(0.05, 0.5))
                running.server.start()

            key = token(running)
            with steady(running.urls, key, rate) as load, meanwhile(run.draw, strike, times=kills, between=(0.5, 1.5)):
                pass
            recovers(running, key, load)
            settle_down(running, "acme", seconds=30)
            figures = check(running, "acme", exact=False, history=load)
            told.append(f"{sync}: {kills} kills, {load}; {figures}")
            run.reached = "; ".join(told)
            assert load.outcomes()["ok"] > 0


@row(
    "R-08",
    "a log that lost its tail: 0 sent until the operator releases, and what is left balances",
    ci={"cuts": 1},
    nightly={"cuts": 20},
)
def the_tail_of_the_log_is_lost(run: Run, cuts: int) -> None:
    """As after a power cut; replicas that lived through it remember more than the ledger does."""
    with fleet(run.folder, tenants(None), replicas=2, sandbox=FAST, **PATIENT) as running:
        key, lost = token(running), 0
        for number in range(cuts):
            History().send(running.urls, key, range(1_000 * number, 1_000 * number + 30))
            settle_down(running, "acme")
            time.sleep(2.5)  # every replica has seen the last sequence
            rows = len(books(running).rows)
            running.server.kill()
            log = max(
                (running.server.folder / "appendonlydir").glob("*.incr.aof"), key=lambda path: path.stat().st_size
            )
            with log.open("r+b") as file:
                file.truncate(max(0, log.stat().st_size - run.draw.randrange(3_000, 150_000)))
            running.server.start()
            time.sleep(1.5)  # both replicas have found it again
            sent, late = received(running), History()
            late.send(running.urls, key, range(500_000, 500_010))
            none_sent(running, sent)
            left = books(running)
            lost += rows - len(left.rows)
            assert late.statuses() == {"503 ledger_frozen": 10}, late.statuses()
            if broken := left.violations():
                raise Broken(broken)
            running.command("ledger", "release")
            time.sleep(1.5)
            recovers(running, key, History())
            settle_down(running, "acme", seconds=30)
            if broken := books(running).violations():
                raise Broken(broken)
        run.reached = f"{cuts} cuts, {lost} rows lost, 0 sent meanwhile, 0 violations in what was left"
        assert lost > 0


@row(
    "M-22",
    "0 settlements lost and new holds refused with 503 while Redis is full",
    ci={"jobs": 20},
    nightly={"jobs": 500},
)
def redis_is_full(run: Run, jobs: int) -> None:
    wide = {"GATEWAY_UPSTREAM_CONCURRENCY": str(jobs)}
    with fleet(run.folder, tenants(None), replicas=2, sandbox=FAST, **wide) as running, running.redis as client:
        key, flying, late = token(running), History(), History()
        running.faults([{"kind": "slow", "options": {"after_seconds": 2.0}}])
        with ThreadPoolExecutor() as pool:
            load = pool.submit(flying.send, running.urls, key, range(jobs))
            wait_until(lambda: running.stats()["in_progress"] == jobs, 10)
            client.config_set("maxmemory", 1)
            late.send(running.urls, key, range(1_000, 1_000 + jobs))
            load.result()
        wait_until(lambda: not books(running).outstanding, 10)
        written = len(books(running).rows)
        client.config_set("maxmemory", 0)
        running.faults([])
        recovers(running, key, flying)
        settle_down(running, "acme")
        figures = check(running, "acme", history=flying)
        run.reached = f"{written} of {jobs} ends written while full; {late.statuses()}; {figures}"
        assert late.statuses() == {"503 ledger_unavailable": jobs}
        assert written == jobs
        assert flying.outcomes() == {"ok": len(flying.calls)}
