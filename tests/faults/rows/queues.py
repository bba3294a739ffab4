"""Q-01 to Q-08: jobs in the queue, while workers die, entries double, and callers change their minds."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import redis

from app.domain.ids import as_uuid
from tests.faults.checker import LEASE, check, received, sent_seeds, settle_down
from tests.faults.queueing import OVER, empty, look_at, put_all, states
from tests.faults.row import Run, row
from tests.faults.storm import PATIENT, tenants, token
from tests.fleet import fleet, wait_until
from tests.jobs.receiver import Receiver, receiving
from tests.pipeline.calls import call, generate
from tests.pipeline.queued import ASYNC, cancel

FAST = ("--time-scale", "0.05", "--picture", "small")
HOOKS = {"GATEWAY_WEBHOOK_LOOPBACK": "true", "GATEWAY_WEBHOOK_PAUSES": ",".join(["0.3s"] * 12)}


def hooked(receiver: Receiver, limits: str = "") -> str:
    """A tenants file whose tenants may tell this receiver."""
    block = f"webhooks: {{allow: ['{receiver.url}/']}}{limits}"
    return f"version: 1\ntenants:\n  acme: {{name: A, {block}}}\n  zeta: {{name: Z, {block}}}\n"


@row(
    "Q-01",
    "a worker that dies at any moment: what was sent is not sent again and charged as unknown, the rest is taken over",
    ci={"kills": 4},
    nightly={"kills": 100},
)
def the_worker_dies(run: Run, kills: int) -> None:
    with fleet(run.folder, tenants(None), sandbox=FAST, **PATIENT) as running:
        key = token(running)
        for number in range(kills):
            running.faults([{"kind": "slow", "count": 1, "options": {"after_seconds": 1.0}}])
            job = put_all(running, key, [number])[number]
            time.sleep(run.draw.uniform(0, 1.5))
            running.alive[0].kill()
            running.faults([])
            running.start()
            empty(running, "acme", LEASE + run.within(10))
            told = look_at(running, key, [job])[job]
            jobs = sent_seeds(running)[number]
            run.reached = f"{number + 1} kills, the last job {told['state']}, charged {told['charged']}, sent {jobs}x"
            assert jobs <= 1
            assert (told["state"], told["charged"]) in (("succeeded", "yes"), ("failed", "unknown"))
        figures = check(running, "acme", exact=False)
        run.reached += f"; {figures}"
        assert max(sent_seeds(running).values()) == 1


@row(
    "Q-02",
    "cancelling against starting and ending: one state for good, before dispatch all money back, after it none",
    ci={"races": 40},
    nightly={"races": 10_000},
)
def cancelled_in_a_race(run: Run, races: int) -> None:
    with fleet(run.folder, tenants(None), replicas=2, sandbox=("--time-scale", "0.01"), **PATIENT) as running:
        key, done = token(running), 0
        told: dict[str, int] = {}
        while done < races:
            seeds = range(done, min(races, done + 40))
            delays = {seed: run.draw.uniform(0, 0.08) for seed in seeds}

            def race(seed: int, delays: dict[int, float] = delays) -> tuple[int, str, int]:
                url = running.urls[seed % 2]
                job = generate(url, key, ASYNC, seed=seed).json["id"]
                time.sleep(delays[seed])
                return seed, job, cancel(running.urls[1 - seed % 2], key, job).status

            with ThreadPoolExecutor(8) as pool:
                ended = list(pool.map(race, seeds))
            empty(running, "acme", 60)
            documents = look_at(running, key, [job for _, job, _ in ended])
            sent = sent_seeds(running)
            for seed, job, status in ended:
                state = documents[job]["state"]
                assert (status == 200) == (state == "cancelled"), (seed, status, state)
                assert sent[seed] == (0 if state == "cancelled" else 1), (seed, status, state)
            for state, count in states(documents).items():
                told[state] = told.get(state, 0) + count
            done = seeds.stop
        later = look_at(running, key, list(documents))
        assert {job: one["state"] for job, one in later.items()} == {
            job: one["state"] for job, one in documents.items()
        }
        run.reached = f"{races} races: {told}; {check(running, 'acme')}"
        assert set(told) == {"cancelled, charged no", "succeeded, charged yes"}


@row(
    "Q-03",
    "every entry handed out twice, to several workers: each job accepted once",
    ci={"jobs": 30},
    nightly={"jobs": 1_000},
)
def handed_out_twice(run: Run, jobs: int) -> None:
    with fleet(run.folder, tenants(None), replicas=3, sandbox=FAST, **PATIENT) as running:
        key = token(running)
        with running.redis as client:
            made = put_all(running, key, range(jobs))
            for job in made.values():
                client.xadd("kg:{t:acme}:queue", {"job": job})
                client.xadd("kg:{t:acme}:queue", {"job": job})
            pending = client.xpending_range("kg:{t:acme}:queue", "workers", "-", "+", 1000)
            for entry in pending:  # and those in work to somebody else
                client.xclaim("kg:{t:acme}:queue", "workers", "inc_nobody", 0, [entry["message_id"]])
            empty(running, "acme", 60)
        documents = look_at(running, key, list(made.values()))
        run.reached = f"{jobs} jobs, {states(documents)}, sent at most {max(sent_seeds(running).values())} times"
        assert states(documents) == {"succeeded, charged yes": jobs}
        assert set(sent_seeds(running).values()) == {1}
        run.reached += f"; {check(running, 'acme')}"


@row(
    "Q-04",
    "a job that ends its workers is given up after a few, its money back, and the others are done",
    ci={"deaths": 1},
    nightly={"deaths": 6},
)
def a_job_that_kills(run: Run, deaths: int) -> None:
    narrow = PATIENT | {"GATEWAY_UPSTREAM_CONCURRENCY": "1"}
    with fleet(run.folder, tenants(None), sandbox=FAST, **narrow) as running, running.redis as client:
        key, job = token(running), ""
        for number in range(deaths):
            running.faults([{"kind": "slow", "count": 1, "options": {"after_seconds": 25}}])
            put_all(running, key, [100 + number])  # has the only slot, so that the bad one is begun and not sent
            wait_until(lambda: running.stats()["in_progress"] == 1, 20)
            if number == 0:
                job = put_all(running, key, [1])[1]
            name = f"kg:{{t:acme}}:job:{job}"
            wait_until(partial(_begun, client, name, number), 40)
            running.alive[0].kill()
            if deaths == 1:
                client.hset(name, "starts", "5")  # as if it had ended so many
            running.start()
        running.faults([])
        others = put_all(running, key, range(10, 15))
        empty(running, "acme", 2 * LEASE + 30)
        told = look_at(running, key, [job, *others.values()])
        rest = {other: told[other] for other in others.values()}
        run.reached = f"{deaths} deaths, then {told[job]['error']['code']}; others {states(rest)}"
        assert (told[job]["state"], told[job]["charged"]) == ("failed", "no")
        assert told[job]["error"]["code"] == "job_abandoned"
        assert sent_seeds(running)[1] == 0
        assert states(rest) == {"succeeded, charged yes": len(rest)}
        check(running, "acme", exact=False)


def _begun(client: redis.Redis, name: str, before: int) -> bool:
    return int(client.hget(name, "starts") or 0) > before  # type: ignore[arg-type]


@row(
    "Q-05",
    "reading, following and cancelling another's job: 404, whoever asks",
    ci={"jobs": 5},
    nightly={"jobs": 100},
)
def another_s_job(run: Run, jobs: int) -> None:
    two = "version: 1\ntenants:\n  acme: {name: A, limits: {concurrency: 1}}\n  zeta: {name: Z}\n"
    with fleet(run.folder, two, replicas=2, sandbox=FAST, **PATIENT) as running:
        key = token(running)
        strangers = [token(running), token(running, tenant="zeta")]
        made = put_all(running, key, range(jobs))
        asked = 0
        for job in made.values():
            for stranger in strangers:
                for path, method in (("", "GET"), ("/events", "GET"), ("", "DELETE")):
                    answer = call(running.urls[asked % 2], f"/v1/jobs/{job}{path}", stranger, method=method)
                    assert answer.refusal == (404, "not_found", "no")
                    assert job.encode() not in answer.body
                    asked += 1
                for what in ("job.state.current", "job.json", "output", "output/output.jpg"):
                    answer = call(running.urls[asked % 2], f"/v2/job/async/{as_uuid(job)}/{what}", stranger)
                    assert (answer.status, answer.json["gateway"]["code"]) == (404, "not_found")
                    assert job.encode() not in answer.body
                    asked += 1
        empty(running, "acme", 60)
        run.reached = f"{asked} calls, all 404; {states(look_at(running, key, list(made.values())))}"
        assert len({job[14:] for job in made.values()}) == jobs  # 80 random bits beside the time
        check(running, "acme", "zeta")


@row(
    "Q-06",
    "a full queue refuses with 429 before anything is held, and leaves nothing behind",
    ci={"jobs": 20, "asked": 80},
    nightly={"jobs": 200, "asked": 2_000},
)
def a_full_queue(run: Run, jobs: int, asked: int) -> None:
    bounds = PATIENT | {"GATEWAY_QUEUE_JOBS": str(jobs), "GATEWAY_QUEUE_SEATS": "0"}
    with fleet(run.folder, tenants(None), sandbox=FAST, **bounds) as running, running.redis as client:
        key = token(running)
        with ThreadPoolExecutor(16) as pool:
            answers = list(pool.map(lambda seed: generate(running.urls[0], key, ASYNC, seed=seed), range(asked)))
        taken = [answer.json["id"] for answer in answers if answer.status == 202]
        refused = {answer.refusal for answer in answers if answer.status != 202}
        assert (len(taken), refused) == (jobs, {(429, "queue_full", "no")})
        assert client.zcard("kg:{t:acme}:open") == jobs
        assert [cancel(running.urls[0], key, job).status for job in taken] == [200] * jobs
        run.reached = f"{len(taken)} of {asked} queued, the rest 429; {check(running, 'acme')}"
        assert client.zcard("kg:{t:acme}:waiting") == client.xlen("kg:{t:acme}:queue") == 0
        assert int(client.get("kg:{t:acme}:queued-bytes") or 0) == received(running) == 0


@row(
    "Q-07",
    "a receiver that hangs up on half of all webhooks and gateways that die: each is delivered or dead, under one id",
    ci={"jobs": 20, "kills": 1},
    nightly={"jobs": 500, "kills": 20},
)
def hung_up_on(run: Run, jobs: int, kills: int) -> None:
    with receiving(drop=0.5) as receiver:
        receiver.draw.seed(run.seed)
        with fleet(run.folder, hooked(receiver), replicas=2, sandbox=FAST, **PATIENT, **HOOKS) as running:
            receiver.secrets = [running.command("webhooks", "rotate", "--tenant", "acme").strip()]
            key = token(running)
            made = put_all(running, key, range(jobs), webhook_url=f"{receiver.url}/in")
            for _ in range(kills):
                time.sleep(run.draw.uniform(0.2, 1.5))
                victim = running.alive[-1]
                victim.kill()
                running.ready(running.relaunch(victim))
            empty(running, "acme", LEASE + 60)
            with running.redis as client:
                wait_until(lambda: client.zcard("kg:{t:acme}:hooks:due") == 0, LEASE + 60)
                dead = {name.decode() for name in client.zrange("kg:{t:acme}:hooks:dead", 0, -1)}
            wanted = {f"msg_{job.removeprefix('job_')}" for job in made.values()}
            figures = check(running, "acme", exact=False)
            came = [len(receiver.got.get(name, [])) for name in wanted]
            run.reached = f"{jobs} webhooks, {len(dead)} dead, at most {max(came)} times; {figures}"
            assert set(receiver.got) | dead == wanted
            assert receiver.forged == []
            assert all(len({str(told) for told in several}) == 1 for several in receiver.got.values())


@row(
    "Q-08",
    "1,000 queued jobs over 3 replicas with rolling restarts and kill -9: none lost, none sent twice, all told of",
    ci={"jobs": 60, "rounds": 1},
    nightly={"jobs": 1_000, "rounds": 8},
)
def a_queue_outlives_its_workers(run: Run, jobs: int, rounds: int) -> None:
    with receiving(drop=0.2) as receiver:
        receiver.draw.seed(run.seed)
        slow = ("--time-scale", "0.2", "--picture", "small")
        few = PATIENT | HOOKS | {"GATEWAY_UPSTREAM_CONCURRENCY": "12", "GATEWAY_QUEUE_SEATS": "8"}
        with fleet(run.folder, hooked(receiver), replicas=3, sandbox=slow, **few) as running:
            receiver.secrets = [running.command("webhooks", "rotate", "--tenant", "acme").strip()]
            key, codes = token(running), []
            with ThreadPoolExecutor(1) as pool:
                putting = pool.submit(put_all, running, key, range(jobs), webhook_url=f"{receiver.url}/in")
                for _ in range(rounds):
                    for replica in running.alive[:2]:
                        time.sleep(run.draw.uniform(0.2, 1))
                        codes.append(replica.stop(timeout=30))
                        running.ready(running.relaunch(replica))
                    time.sleep(run.draw.uniform(0.2, 1))
                    victim = running.alive[0]
                    victim.kill()
                    running.ready(running.relaunch(victim))
                made = putting.result()
            empty(running, "acme", LEASE + 60 + jobs * 0.2)
            settle_down(running, "acme")
            documents = look_at(running, key, list(made.values()))
            with running.redis as client:
                wait_until(lambda: client.zcard("kg:{t:acme}:hooks:due") == 0, LEASE + 60)
            figures = check(running, "acme", exact=False)
            told = states(documents)
            run.reached = f"{jobs} jobs, {rounds} kills, {len(codes)} restarts: {told}; {figures}"
            assert set(codes) == {0}
            assert set(told) <= {"succeeded, charged yes", "failed, charged unknown"}
            assert all(document["state"] in OVER for document in documents.values())
            assert len(set(made.values())) == jobs
            assert max(sent_seeds(running).values()) == 1
            assert set(receiver.got) == {f"msg_{job.removeprefix('job_')}" for job in made.values()}
            assert receiver.forged == []
