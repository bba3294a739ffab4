"""A-01, A-05, A-10, S-08: nobody gets in or gets at what is another's, no spelling passes a ceiling, no text is run."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.domain import tokens
from app.domain.tenant import KeyPolicy
from app.tenants import Keyring
from tests.e2e.ceiling_storm import storm
from tests.e2e.exchange import FILE, FORM, exchange, form, make_keys, on_keyring, send
from tests.e2e.routes import OPEN, declared, listeners
from tests.faults.checker import Broken, Violation, check, in_progress, sent_seeds, settle_down
from tests.faults.clients import History
from tests.faults.load import Load, percentile, steady
from tests.faults.row import Run, row
from tests.faults.storm import PATIENT, tenants, token
from tests.fleet import Fleet, fleet, get_json, wait_until
from tests.images.pictures import picture

INSTANT = ("--time-scale", "0", "--picture", "small")
JSON = ("Content-Type", "application/json")
PAIR = {"acme": {"name": "Acme"}, "zeta": {"name": "Zeta"}}
HOSTS = ("localhost", "evil.example", "127.0.0.1:1", "a b", "x" * 300, "kg:*")
BODY = b'{"prompt": "a lighthouse", "seed": 1}'


@dataclass(frozen=True)
class Door:
    """A fleet, a key of each kind of caller, and one finished picture of `acme` with its job."""

    running: Fleet
    keys: dict[str, str | None]
    objects: dict[str, str]

    def path(self, template: str) -> str:
        """A route's path, about what belongs to `acme`."""
        return re.sub(r"\{(\w+)[^}]*\}", lambda name: self.objects["job" if "job" in name[1] else "image"], template)


def _door(running: Fleet) -> Door:
    async def make(keyring: Keyring) -> dict[str, str | None]:
        made = {name: (await keyring.create(name, "test", policy=KeyPolicy()))[1] for name in PAIR}
        key_id, revoked = await keyring.create("acme", "old", policy=KeyPolicy())
        await keyring.revoke("acme", key_id)
        secret = made["acme"][len(tokens.PREFIX) : -6]
        near = secret[:-1] + ("a" if secret[-1] != "a" else "b")  # well-formed, and all but one character of a key
        return {
            "none": None, "bad": "nobody", "near": tokens.PREFIX + near + tokens._checksum(near), "revoked": revoked,
            **made,
        }  # fmt: skip

    keys = on_keyring(running, make)
    for name in PAIR:
        mint = [("Authorization", f"Bearer {keys[name]}"), JSON]
        keys[f"{name} token"] = send(running.urls[0], "POST", "/v1/client-tokens", mint, b"{}").document["token"]
    headers = [("Authorization", f"Bearer {keys['acme']}"), JSON, ("Accept", "application/json")]
    told = send(running.urls[0], "POST", "/v1/generate", headers, BODY).document
    return Door(running, keys, {"image": told["image"]["id"], "job": told["id"]})


@row(
    "A-01",
    "0 unexpected 2xx over every route, method, key, Host and foreign object; every route declares a role",
    ci={"hosts": 2},
    nightly={"hosts": len(HOSTS)},
)
def every_route_by_everybody(run: Run, hosts: int) -> None:
    apps, told = listeners(run.folder, PAIR), Counter[str]()
    text = json.dumps({"version": 1, "tenants": PAIR}) + "\n"
    with fleet(run.folder, text, sandbox=INSTANT, **PATIENT) as running:
        replica = running.replicas[0]
        for name, base in (("public", replica.url), ("ops", replica.ops)):
            door = _door(running)
            routes = declared(apps[name])
            assert [one for one in routes if one.role is None] == []
            for route in routes:
                expected = (name, route.method, route.path, route.role)
                for who, key in sorted(door.keys.items(), reverse=True):  # others before the owner, who may delete it
                    for host in (base.removeprefix("http://"), *run.draw.sample(HOSTS, hosts)):
                        status = _knock(base, route.method, door.path(route.path), key, host)
                        told[f"{who} {status // 100}xx"] += 1
                        if route.role == "open":
                            assert (route.method, route.path) in OPEN
                            continue
                        if who in ("none", "bad", "near", "revoked"):
                            assert status in (400, 401, 421), (*expected, who, host, status)
                        elif who.endswith("token") and route.role == "key":
                            assert status in (400, 403, 421), (*expected, who, host, status)
                        elif who.startswith("zeta") and "{" in route.path:
                            assert status in (400, 404, 421), f"IDOR: {(*expected, who, host, status)}"
        door = _door(running)
        edit = json.dumps({"prompt": "more sky", "image": {"image_id": door.objects["image"]}}).encode()
        for who, status in (("zeta", 404), ("acme", 200)):
            headers = [("Authorization", f"Bearer {door.keys[who]}"), JSON]
            assert send(replica.url, "POST", "/v1/edit", headers, edit).status == status
    run.reached = f"{told.total()} calls: {dict(sorted(told.items()))}"
    assert told["acme 2xx"] > 0


def _knock(base: str, method: str, path: str, key: str | None, host: str) -> int:
    body = BODY if method == "POST" else b""
    lines = [f"{method} {path} HTTP/1.1", f"Host: {host}", "Content-Type: application/json", "X-Original-URL: /healthz"]
    lines += [f"Authorization: Bearer {key}"] * (key is not None)
    lines += [f"Content-Length: {len(body)}", "Connection: close", "", ""]
    return exchange(base, "\r\n".join(lines).encode("latin-1"), body, method=method).status


@row(
    "A-05",
    "0 jobs above a ceiling or without a tolerance, in every spelling, and when the ceiling falls while a job waits",
    ci={"requests": 6_000},
    nightly={"requests": 100_000},
)
def every_spelling(run: Run, requests: int) -> None:
    (folder := run.folder / "falls").mkdir()
    _the_ceiling_falls(run, folder)
    (folder := run.folder / "spellings").mkdir()
    run.reached = storm(folder, requests, run.seed)


def _the_ceiling_falls(run: Run, folder: Path) -> None:
    """One job is sent, the others wait for the one slot when the policy gets stricter."""
    strict = tenants(None).replace("limits:", "safety: {generate: {ceiling: 1}}, limits:")
    with fleet(folder, tenants(None), sandbox=INSTANT, GATEWAY_UPSTREAM_CONCURRENCY="1", **PATIENT) as running:
        key, history = token(running), History()
        running.faults([{"kind": "slow", "count": 1, "options": {"after_seconds": 1.5}}])
        with ThreadPoolExecutor(1) as pool:
            asking = pool.submit(history.send, running.urls, key, range(8), safety_tolerance=4)
            wait_until(lambda: in_progress(running) == 1, 10)
            running.tenants(strict)
            asking.result()
        settle_down(running, "acme")
        if (sent := sent_seeds(running).total()) > 1:
            raise Broken([Violation("I9", f"{sent - 1} jobs were sent above a ceiling that had fallen")])
        assert history.statuses() == {"200 ok": 1, "403 safety_ceiling": 7}


GOOD = 10  # calls a second


@row(
    "A-10",
    "0 good calls fail beside 500 guessed keys a second from 50 addresses, and no guess gets in",
    ci={"rate": 150, "seconds": 3},
    nightly={"rate": 500, "seconds": 60},
)
def keys_are_guessed(run: Run, rate: int, seconds: int) -> None:
    with fleet(run.folder, tenants(None), sandbox=INSTANT, **PATIENT) as running:
        key = token(running)
        with steady(running.urls, key, GOOD) as alone:
            time.sleep(seconds)
        asked = [running.urls[0], key, str(rate), str(seconds), str(run.seed)]
        with (
            steady(running.urls, key, GOOD, Load(next_seed=100_000)) as beside,
            subprocess.Popen(
                [sys.executable, "-m", "tests.faults.stuffing", *asked], stdout=subprocess.PIPE
            ) as guessing,
        ):
            told = json.loads(guessing.communicate(timeout=10 * seconds + 60)[0])
        quiet, slower = (1000 * percentile(load.calls, 0.99) for load in (alone, beside))
        run.reached = f"{sum(told.values())} guesses {told}, {beside.outcomes()} beside, "
        run.reached += f"p99 {slower:.0f} ms and alone {quiet:.0f} ms"
        assert told == {"401": rate * seconds}
        assert alone.outcomes().keys() == beside.outcomes().keys() == {"ok"}
        check(running, "acme", history=History(alone.calls + beside.calls))


CANARY = "kgw-canary-6e1f"
PAYLOADS = (
    "{{7919*7907}} ${7919*7907} #{7919*7907} <%= 7919*7907 %>", "{0.__class__.__mro__} %s%n%x {prompt!r:>99999}",
    "$(touch /tmp/{canary}) `touch /tmp/{canary}` ; touch /tmp/{canary} |touch /tmp/{canary}",
    "__import__('os').system('touch /tmp/{canary}')", "'; DROP TABLE tenants; --", "' OR '1'='1",
    "!!python/object/apply:os.system ['touch /tmp/{canary}']", "<script>alert(7919*7907)</script>",
    "redis.call('FLUSHALL') return 1", "*1\\r\\n$8\\r\\nFLUSHALL\\r\\n", "../../../../etc/passwd", "file:///etc/passwd",
    "&xxe; <!DOCTYPE x [<!ENTITY xxe SYSTEM 'file:///etc/passwd'>]>", "\\u0000\\u202e", "=1+1|cmd",
)  # fmt: skip


@row("S-08", "0 side effects of payloads in any field, and each prompt arrives as it was written", ci={}, nightly={})
def nothing_is_run(run: Run) -> None:
    text = json.dumps({"version": 1, "tenants": PAIR}) + "\n"
    witness = Path("/tmp") / f"{CANARY}-{run.seed}"
    with fleet(run.folder, text, sandbox=INSTANT, **PATIENT) as running, running.redis as client:
        key, told = make_keys(running, PAIR)["acme"], Counter[int]()
        carrier, photo = ("Authorization", f"Bearer {key}"), picture("jpeg", 256, 256)
        before = client.info("commandstats").get("cmdstat_flushall", {}).get("calls", 0)
        sent: dict[int, str] = {}
        for number, payload in enumerate(PAYLOADS):
            evil = payload.replace("{canary}", witness.name)
            for place, fields in enumerate(_everywhere(evil)):
                seed = 100 * number + place
                body = json.dumps({"prompt": "a lighthouse", "seed": seed, **fields}).encode()
                plain = evil.encode("ascii", "replace").decode()
                more = [("User-Agent", plain), ("Idempotency-Key", f"{seed} {plain}"), ("Referer", plain)]
                answer = send(running.urls[0], "POST", "/v1/generate", [carrier, JSON, *more], body)
                told[answer.status] += 1
                assert b"62615533" not in answer.body or answer.status == 200
                if answer.status == 200 and "prompt" in fields:
                    sent[seed] = evil
            name = evil.replace('"', "").replace("\r", "").replace("\n", "")
            file = FILE.replace("photo.jpg", name)
            edit = form(("prompt", evil.encode()), ("image", photo, file))
            told[send(running.urls[0], "POST", "/v1/edit", [carrier, ("Content-Type", FORM)], edit).status] += 1
        jobs = get_json(running.upstream + "/sandbox/jobs?limit=100000")["jobs"]
        arrived = {job["config"]["seed"]: job["config"] for job in jobs}
        run.reached = f"{told.total()} requests: {dict(told)}, {len(sent)} prompts as they were written, 0 side effects"
        assert set(told) <= {200, 400, 422}
        assert len(sent) >= len(PAYLOADS) - 1
        assert all(_as_written(arrived[seed], evil) for seed, evil in sent.items())
        assert not witness.exists()
        assert client.info("commandstats").get("cmdstat_flushall", {}).get("calls", 0) == before


def _everywhere(evil: str) -> list[dict[str, Any]]:
    return [
        {"prompt": evil}, {"user": evil[:60]}, {"tags": [evil[:30]]}, {"variant": evil}, {"aspect_ratio": evil},
        {"output_format": evil}, {"safety_tolerance": evil}, {"response_format": evil}, {evil[:40]: 1},
    ]  # fmt: skip


def _as_written(config: dict[str, Any], evil: str) -> bool:
    return bool(config["prompt"]["sha256"] == hashlib.sha256(evil.encode()).hexdigest())
