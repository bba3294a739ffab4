"""R-15: the gateway as the user that deploy/redis ships: it does all its work, and what it is not for is refused."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import redis
from typer.testing import CliRunner

from app.cli import cli
from app.commands import content
from tests.faults.checker import settle_down
from tests.faults.row import Run, row
from tests.faults.rows.queues import FAST, HOOKS, LEASE, hooked
from tests.faults.rows.reconciling import TERMS
from tests.faults.storm import PATIENT
from tests.fleet import ROOT, Fleet, Replica, fleet, wait_until
from tests.jobs.receiver import Receiver, receiving
from tests.pipeline.calls import call, edit, generate, new_key, picture
from tests.pipeline.queued import cancel, end, events, queued, slow
from tests.redis_server import LEDGER, VOLATILE, Engine, RedisServer

SHIPPED = ROOT / "deploy" / "redis" / "gateway-user.conf"
PASSWORD = "password-of-the-tests"
LIMITS = ", limits: {concurrency: 2}"
USUAL = 20  # scripts that run without a death or a long wait
REFUSED = (
    "CONFIG GET *", "CONFIG SET maxmemory-policy allkeys-lru", "CONFIG REWRITE", "FLUSHALL", "FLUSHDB", "KEYS *",
    "MODULE LIST", "SHUTDOWN NOSAVE", "DEBUG SLEEP 0", "SCRIPT FLUSH", "FUNCTION FLUSH", "EVAL return 0",
    "ACL LIST", "ACL SETUSER gateway +@all", "MONITOR", "REPLICAOF 127.0.0.1 1", "SAVE", "BGSAVE", "BGREWRITEAOF",
    "CLIENT LIST", "CLIENT KILL TYPE normal", "DUMP kg:{ledger}", "RENAME kg:{ledger} kg:x", "SWAPDB 0 1",
    "PUBLISH channel text", "SORT kg:{ledger}:tenants", "GET another", "SET another 1", "DEL another",
)  # fmt: skip


def protected(folder: Path, config: Mapping[str, str], engine: Engine) -> RedisServer:
    """A server that knows the shipped user, by a password of the tests."""
    folder.mkdir(parents=True)
    digest = hashlib.sha256(PASSWORD.encode()).hexdigest()
    (folder / "user.conf").write_text(SHIPPED.read_text().replace("sha256-of-its-password", digest))
    for_all = {"enable-debug-command": "local", "enable-module-command": "local"}  # so that it is the user who may not
    return RedisServer(folder, {**config, **for_all, "include": str(folder / "user.conf")}, engine=engine)


def as_the_user(server: RedisServer) -> str:
    """Its URL for the gateway."""
    return server.url.replace("//", f"//gateway:{PASSWORD}@")


@row(
    "R-15",
    f"0 commands refused to a gateway that does all its work as the shipped user, and 0 of {len(REFUSED)} others taken",
    ci={"deaths": 0, "engines": [("valkey", "redis")]},
    nightly={"deaths": 3, "engines": [("valkey", "redis"), ("redis", "valkey")]},
)
def least_privilege(run: Run, deaths: int, engines: list[tuple[Engine, Engine]]) -> None:
    scripts = {path.stem for path in (ROOT / "app").rglob("*.lua")}
    for number, (for_ledger, for_cache) in enumerate(engines):
        (folder := run.folder / str(number)).mkdir()
        ledger = protected(folder / "ledger", LEDGER, for_ledger)
        cache = protected(folder / "cache", VOLATILE, for_cache).start()
        user = {"REDIS_URL": as_the_user(ledger), "CACHE_REDIS_URL": as_the_user(cache), **PATIENT, **HOOKS}
        try:
            with (
                receiving() as receiver,
                fleet(folder, hooked(receiver, LIMITS), sandbox=FAST, server=ledger, **user) as running,
            ):
                ran = _everything(running, receiver, deaths)
                denied = [entry for one in (ledger, cache) for entry in _denied(one)]
                run.reached = f"{len(scripts & ran)} of {len(scripts)} scripts as the user, {len(denied)} refusals"
                assert denied == [], denied
                assert len(scripts & ran) >= USUAL
                taken = [text for one in (ledger, cache) for text in REFUSED if _takes(one, text)]
                run.reached += f"; {len(REFUSED)} other commands, {len(taken)} taken"
                assert taken == [], taken
        finally:
            cache.kill()


def _everything(running: Fleet, receiver: Receiver, deaths: int) -> set[str]:
    """All that a gateway and its commands ask of Redis; the scripts that its processes ran."""
    gone = new_key(running, "zeta")[1]
    for seed in (1, 1):
        assert generate(running.urls[0], gone, {"Idempotency-Key": "gone"}, seed=seed).status == 200
    _commands_about_keys(running)
    key_id, token = new_key(running, "acme")
    _pictures(running, running.urls[0], token)
    _jobs(running, running.urls[0], token, receiver)
    ran = {name for one in running.alive for name in _operations(one)}
    for number in range(deaths):
        slow(running, 3, 2)
        job = queued(running.urls[0], token, seed=900 + number)
        running.alive[0].kill()
        running.start()
        assert end(running.urls[0], token, job, LEASE + 30)["state"] in ("succeeded", "failed")
        ran |= {name for one in running.alive for name in _operations(one)}
    settle_down(running, "acme", seconds=LEASE + 10)
    _commands_about_money(running)
    with patch.object(content, "KEEP", 0):  # the seconds between its passes say nothing of the user
        told = json.loads(_command(running, "content", "delete", "--tenant", "zeta", "--json"))
    assert (told["deleted"]["pictures"], told["deleted"]["answers"]) == (1, 1)
    _command(running, "keys", "revoke", key_id, "--tenant", "acme")
    _command(running, "ledger", "release")
    wait_until(lambda: call(running.urls[0], "/v1/me", token).status == 401, 10)
    return ran


def _pictures(running: Fleet, url: str, token: str) -> None:
    """Synchronous calls: made, cached, named, edited, refused, failed, lost, read and deleted."""
    photo = picture()
    document = {"Accept": "application/json"}
    made = generate(url, token, document, seed=1, user="ada", tags=["spring"]).json
    for headers in ({}, {"Cache-Control": "no-store"}, {"Idempotency-Key": "a name"}, {"Idempotency-Key": "a name"}):
        assert generate(url, token, headers, seed=1, user="ada", tags=["spring"]).status == 200
    assert edit(url, token, {"image": photo}, seed=2).status == 200
    image = made["image"]["id"]
    body = json.dumps({"prompt": "more sky", "image": {"image_id": image}}).encode()
    kind = {"Content-Type": "application/json"}
    assert call(url, "/v1/edit", token, body=body, headers=kind).status == 200
    quote = json.dumps({"operation": "generate", "prompt": "a boat", "variant": "auto", "seed": 1}).encode()
    assert call(url, "/v1/quote", token, body=quote, headers=kind).status == 200
    lent = call(url, "/v1/client-tokens", token, body=b'{"usd": "0.20"}', headers=kind).json["token"]
    assert generate(url, lent, seed=3).status == 200
    for path in ("/v1/me", "/v1/usage", "/v1/jobs", "/v1/models", f"/v1/images/{image}/lineage", f"/v1/images/{image}"):
        assert call(url, path, token).status == 200, path
    assert call(url, f"/v1/images/{image}", token, method="DELETE").status == 204
    several = json.dumps({"prompt": "a boat", "model": "pro", "n": 3}).encode()
    assert call(url, "/v1/images/generations", token, body=several, headers=kind).status == 200
    for fault, status in (("busy", 200), ("failed", 502), ("cut_after_accept", 502)):
        options = {"retry_after": 0} if fault == "busy" else {}
        running.faults([{"kind": fault, "count": 1, "options": options}])
        assert generate(url, token, {"Idempotency-Key": fault}).status == status
    assert generate(url, token, variant="ultra").status == 422


def _jobs(running: Fleet, url: str, token: str, receiver: Receiver) -> None:
    """The queue: done, followed, cancelled, told of by webhook, and one that had to wait for the upstream."""
    receiver.statuses = [503]
    _command(running, "webhooks", "rotate", "--tenant", "acme")
    _command(running, "webhooks", "rotate", "--tenant", "acme")
    told = queued(url, token, seed=10, webhook_url=f"{receiver.url}/in")
    assert events(url, token, told)[-1] == ("status", "succeeded")
    wait_until(lambda: len(receiver.headers) >= 2, 20)
    _command(running, "webhooks", "test", "--tenant", "acme", "--url", f"{receiver.url}/in")
    _command(running, "webhooks", "redeliver", "--tenant", "acme", receiver.headers[0]["webhook-id"])
    _command(running, "webhooks", "list", "--tenant", "acme")
    photo = base64.b64encode(picture()).decode()
    body = json.dumps({"prompt": "more sky", "image": {"b64": photo}}).encode()
    headers = {"Content-Type": "application/json", "Prefer": "wait=20", "Idempotency-Key": "waited"}
    assert call(url, "/v1/edit", token, body=body, headers=headers).status == 200
    running.faults([{"kind": "busy", "options": {"retry_after": 1}}])
    waits = queued(url, token, seed=11)
    cancelled = queued(url, token, seed=12)
    assert cancel(url, token, cancelled).status in (200, 409)
    running.faults([])
    assert end(url, token, waits)["state"] == "succeeded"


def _commands_about_keys(running: Fleet) -> None:
    made = json.loads(_command(running, "keys", "create", "--tenant", "acme", "--name", "test", "--json"))
    _command(running, "keys", "rotate", made["key_id"], "--tenant", "acme", "--overlap", "1h")
    _command(running, "keys", "list", "--tenant", "acme")


def _commands_about_money(running: Fleet) -> None:
    _command(running, "usage", "--tenant", "acme", "--group-by", "user,tags")
    assert "ambiguous charges" in _command(running, "ledger", "ambiguous")
    found = _command(running, "ledger", "reconcile", "--bill", str(running.folder / "bill.jsonl"), "--apply", *TERMS)
    assert json.loads(found)["ended"]["now"] >= 1


def _command(running: Fleet, *arguments: str) -> str:
    """As `Fleet.command`, in this process: its output."""
    done = CliRunner().invoke(cli, list(arguments), env=running.environment)
    assert done.exit_code == 0, (arguments, done.output)
    return done.stdout


def _operations(replica: Replica) -> set[str]:
    """What it asked of Redis, by the script or the command."""
    name = "kontext_gateway_redis_operation_duration_seconds_count"
    return {
        dict(labels)["operation"] for (found, labels), count in replica.metrics().items() if found == name and count
    }


@contextmanager
def _client(server: RedisServer) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(as_the_user(server), driver_info=None) as client:
        yield client


def _denied(server: RedisServer) -> list[Any]:
    """What the server refused to the user so far."""
    with server.client() as client:
        return [
            (entry["reason"], entry["context"], entry["object"])
            for entry in client.acl_log()
            if entry["username"] == "gateway"
        ]


def _takes(server: RedisServer, text: str) -> bool:
    """Whether the server does this for the user."""
    try:
        with _client(server) as client:
            client.execute_command(*text.split())
    except redis.exceptions.NoPermissionError:
        return False
    return True
