"""D-01 to D-03: replicas behind a load balancer are restarted under load, given too little time, or told twice."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from tests.faults.checker import check, recovers, sent_seeds, settle_down
from tests.faults.clients import History
from tests.faults.load import steady
from tests.faults.row import Run, row
from tests.faults.storm import PATIENT, tenants, token
from tests.fleet import Replica, fleet, free_port, get_json, wait_until

DELAY = 2.0  # seconds that a replica goes on taking requests after SIGTERM
WIDE = {"GATEWAY_UPSTREAM_CONCURRENCY": "500", "GATEWAY_DRAIN_DELAY": f"{DELAY:g}s", **PATIENT}

# No retries and no redispatch: a connection that a replica refuses is a 503 that the client sees.
BALANCER = """
global
    maxconn 2000
defaults
    mode http
    retries 0
    timeout connect 2s
    timeout client 180s
    timeout server 180s
    timeout http-request 10s
    timeout http-keep-alive 5s
frontend public
    bind 127.0.0.1:{port}
    default_backend replicas
backend replicas
    balance roundrobin
    option httpchk GET /readyz
{servers}
"""


@contextmanager
def balanced(folder: Path, replicas: Sequence[Replica]) -> Iterator[str]:
    """HAProxy in front of the replicas, asking their readiness; its address."""
    port, lines = free_port(), []
    for number, replica in enumerate(replicas):
        at, ops = (url.rsplit(":", 1)[1] for url in (replica.url, replica.ops))
        lines.append(f"    server r{number} 127.0.0.1:{at} check port {ops} inter 1s fall 1 rise 1")
    config = folder / "haproxy.cfg"
    config.write_text(BALANCER.format(port=port, servers="\n".join(lines)))
    with (folder / "haproxy.log").open("wb") as log:
        process = subprocess.Popen(["haproxy", "-db", "-f", str(config)], stdout=log, stderr=log)
    try:
        url = f"http://127.0.0.1:{port}"
        wait_until(lambda: _serves(url), 20)
        yield url
    finally:
        process.kill()
        process.wait()


def _serves(url: str) -> bool:
    try:
        get_json(url + "/v1/models")
    except OSError as error:
        return getattr(error, "code", None) == 401  # a replica answered, and wants a key
    return False


@row(
    "D-01",
    "3 replicas restarted in turn behind HAProxy under load: failed 0, lost 0, duplicated 0, exit code 0",
    ci={"restarts": 1, "each": 3, "scale": 0.35, "rate": 12},
    nightly={"restarts": 10, "each": 3, "scale": 1.0, "rate": 12},
)
def rolling_restart(run: Run, restarts: int, each: int, scale: float, rate: float) -> None:
    sandbox, codes = ("--time-scale", f"{scale:g}", "--picture", "small"), []
    with fleet(run.folder, tenants(None), replicas=3, sandbox=sandbox, **WIDE) as running:
        key = token(running)
        with balanced(run.folder, running.replicas) as url, steady([url], key, rate) as load:
            time.sleep(1)
            for _ in range(restarts):
                for replica in running.alive[:each]:
                    codes.append(replica.stop(timeout=DELAY + 6 * scale + run.within(5)))
                    running.ready(running.relaunch(replica))
                    time.sleep(2)  # the balancer has to see it before the next one leaves
        settle_down(running, "acme")
        figures = check(running, "acme", history=load)
        run.reached = f"{len(codes)} restarts, exit codes {sorted(set(codes))}, {load.statuses()}; {figures}"
        assert set(codes) == {0}
        assert load.outcomes() == {"ok": len(load.calls)}
        assert max(sent_seeds(running).values()) == 1
        assert figures.ambiguous == 0


@row(
    "D-02",
    "a grace shorter than the job: what was sent stays charged, nothing is sent twice",
    ci={"kills": 1, "rate": 6},
    nightly={"kills": 20, "rate": 12},
)
def killed_while_it_drains(run: Run, kills: int, rate: float) -> None:
    slow = ("--time-scale", "0.5", "--picture", "small")
    with fleet(run.folder, tenants(None), replicas=2, sandbox=slow, **WIDE) as running:
        key = token(running)
        with steady(running.urls, key, rate) as load:
            for _ in range(kills):
                time.sleep(2)
                victim = running.alive[-1]
                victim.process.terminate()
                time.sleep(run.draw.uniform(0.1, DELAY))
                victim.kill()
                running.ready(running.relaunch(victim))
        settle_down(running, "acme", 30)
        recovers(running, key, load)
        figures = check(running, "acme", history=load)
        run.reached = f"{kills} kills, {load.outcomes()}; {figures}"
        assert load.outcomes()["ok"] > 0
        assert max(sent_seeds(running).values()) <= 1 + kills  # a caller of a killed replica may ask another again


@row(
    "D-03",
    "a second signal makes nothing faster: jobs are finished and settled, exit code 0",
    ci={"jobs": 12},
    nightly={"jobs": 100},
)
def told_twice(run: Run, jobs: int) -> None:
    slow = ("--time-scale", "0.4", "--picture", "small")
    with fleet(run.folder, tenants(None), sandbox=slow, **WIDE) as running:
        key, history, replica = token(running), History(), running.replicas[0]
        with ThreadPoolExecutor(1) as pool:
            sent = pool.submit(history.send, [replica.url], key, range(jobs))
            wait_until(lambda: running.stats()["in_progress"] == jobs, 20)
            replica.process.terminate()
            time.sleep(0.2)
            replica.process.terminate()
            replica.process.send_signal(signal.SIGINT)
            code = replica.process.wait(DELAY + 10 + run.within(5))
            sent.result()
        figures = check(running, "acme", history=history)
        run.reached = f"exit code {code}, {history.statuses()}; {figures}"
        assert code == 0
        assert history.outcomes() == {"ok": jobs}


BAD_FILES = (
    "", "version: 1", "version: 2\ntenants: {acme: {name: Acme}}\n", "tenants: [", "\x00",
    "version: 1\ntenants: {}\n---\n",
    "version: 1\ntenants:\n  acme: {nmae: Acme}\n", "version: 1\ntenants:\n  acme: {name: Acme, weight: 0}\n",
    "version: 1\ntenants:\n  acme: {name: Acme, timezone: Nowhere/Land}\n",
    "version: 1\ntenants:\n  acme: {name: Acme, limits: {budgets: [{usd: 5.00, per: day}]}}\n",
    "version: 1\ntenants:\n  acme: {name: Acme, limits: {budgets: [{usd: \"-1\", per: day}]}}\n",
    "version: 1\ntenants:\n  acme: {name: Acme, safety: {generate: {ceiling: 9}}}\n",
    "version: 1\ntenants:\n  acme: {name: Acme}\n  acme: {name: Again}\n", "- a\n- list\n", "&a [*a]\n",
    "version: 1\ntenants:\n  ACME!: {name: Acme}\n", "version: 1\ntenants: {acme: null}\n",
    "a: !!python/object:os.system x\n",
    "version: 1\ntenants:\n  acme: {name: Acme, variants: {generate: [ultra]}}\n", "%",
)  # fmt: skip


@row(
    "D-05",
    f"{len(BAD_FILES)} bad tenants files: 0 dropped requests, the old one stays in force, and the metric says so",
    ci={"rounds": 1},
    nightly={"rounds": 20},
)
def bad_files(run: Run, rounds: int) -> None:
    reload_ok = "kontext_gateway_config_last_reload_successful"
    with fleet(run.folder, tenants(None), replicas=2, sandbox=("--time-scale", "0.01"), **PATIENT) as running:
        key = token(running)
        with steady(running.urls, key, 20) as load:
            for text in BAD_FILES * rounds:
                running.tenants(text, bad=True)
                time.sleep(0.1)
                History().send(running.urls, key, [0, 1])  # each replica looks at it
                assert [one.total(reload_ok) for one in running.replicas] == [0, 0], text
            running.tenants(tenants(None))
            History().send(running.urls, key, [0, 1])
        assert [one.total(reload_ok) for one in running.replicas] == [1, 1]
        settle_down(running, "acme")
        figures = check(running, "acme", history=load)
        run.reached = f"{len(BAD_FILES) * rounds} files, {load.statuses()}; {figures}"
        assert load.outcomes() == {"ok": len(load.calls)}
