"""`keys` and `ledger`: a key is shown once, listed without its secret, rotated, revoked; a ledger is made once."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from typer.testing import CliRunner

from app.domain.tokens import digest, well_formed
from tests.cli.running import COMPLETE, TENANTS, commands, run
from tests.redis_server import RedisServer


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer(tmp_path_factory.mktemp("valkey")) as found:
        yield found


@pytest.fixture
def client(server: RedisServer) -> Iterator[redis.Redis]:
    found = server.client()
    found.flushall()
    yield found
    found.close()


@pytest.fixture
def runner(client: redis.Redis, server: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CliRunner:
    (tmp_path / "tenants.yaml").write_text(TENANTS)
    return commands(monkeypatch, tmp_path, COMPLETE | {"REDIS_URL": server.url})


def created(runner: CliRunner, *options: str, tenant: str = "acme") -> dict[str, str]:
    done = run(runner, "keys", "create", "--tenant", tenant, "--name", "web", "--json", *options)
    assert done.exit_code == 0, done.stderr
    made: dict[str, str] = json.loads(done.stdout)
    return made


def listed(runner: CliRunner, *options: str) -> list[dict[str, object]]:
    done = run(runner, "keys", "list", "--json", *options)
    assert done.exit_code == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_a_new_key_is_shown_once_and_stored_as_a_hash(runner: CliRunner, client: redis.Redis) -> None:
    made = created(runner, "--expires", "90d")
    assert well_formed(made["token"])
    assert abs(int(made["expires"]) - time.time() - 90 * 86_400) < 60
    assert (made["tenant"], made["name"]) == ("acme", "web")
    hashed = digest(made["token"], COMPLETE["GATEWAY_KEY_PEPPER"].encode())
    assert client.get(f"kg:token:{hashed}") == f"acme/{made['key_id']}".encode()
    everything = b"".join(client.dump(name) or b"" for name in client.keys("*"))
    assert made["token"].encode()[13:41] not in everything


def test_without_json_the_key_stands_on_a_line_of_its_own(runner: CliRunner) -> None:
    done = run(runner, "keys", "create", "--tenant", "acme", "--name", "web")
    first, token = done.stdout.splitlines()
    assert well_formed(token)
    assert first.endswith("for acme; this is the only time it is shown:")


def test_a_list_names_the_keys_and_never_their_secret(runner: CliRunner) -> None:
    one, two, other = created(runner), created(runner, "--expires", "1s"), created(runner, tenant="globex")
    run(runner, "keys", "revoke", one["key_id"], "--tenant", "acme")
    time.sleep(1.1)
    rows = listed(runner)
    assert {row["key_id"]: (row["tenant"], row["state"]) for row in rows} == {
        one["key_id"]: ("acme", "revoked"),
        two["key_id"]: ("acme", "expired"),
        other["key_id"]: ("globex", "active"),
    }
    assert [row["key_id"] for row in listed(runner, "--tenant", "globex")] == [other["key_id"]]
    text = run(runner, "keys", "list").stdout + json.dumps(rows)
    assert not any(made["token"][13:] in text for made in (one, two, other))
    assert rows[0]["shown"] in [f"{made['token'][:13]}…" for made in (one, two, other)]
    assert re.search(r"\texpired\tuntil 20\d\d-\d\d-\d\dT\d\d:\d\d:\d\dZ\t-\t", text)


def test_a_rotated_key_keeps_its_id_and_its_old_token_for_the_overlap(runner: CliRunner, client: redis.Redis) -> None:
    made = created(runner)
    done = run(runner, "keys", "rotate", made["key_id"], "--tenant", "acme", "--overlap", "1h", "--json")
    rotated = json.loads(done.stdout)
    assert (rotated["key_id"], rotated["tenant"]) == (made["key_id"], "acme")
    record = client.hgetall(f"kg:{{t:acme}}:key:{made['key_id']}")
    pepper = COMPLETE["GATEWAY_KEY_PEPPER"].encode()
    ends = {token: int(record[f"d:{digest(token, pepper)}".encode()]) for token in (made["token"], rotated["token"])}
    assert ends[rotated["token"]] == 0
    assert abs(ends[made["token"]] / 1000 - time.time() - 3_600) < 60
    assert len(listed(runner)) == 1


def test_limits_of_a_key_are_kept_with_it(runner: CliRunner, client: redis.Redis) -> None:
    money = ("--budget", "5.00/day", "--budget", "50/month")
    counts = ("--images", "20/day", "--rate", "10/1m", "--concurrency", "2")
    made = created(runner, *money, *counts, "--variants", "pro, max", "--operations", "generate")
    policy = json.loads(client.hget(f"kg:{{t:acme}}:key:{made['key_id']}", "policy") or "{}")
    assert policy == {
        "limits": {
            "requests": {"count": 10, "seconds": 60, "burst": 10},
            "images": [{"max": 20, "per": "day"}],
            "concurrency": 2,
            "budgets": [{"micro_usd": 5_000_000, "per": "day"}, {"micro_usd": 50_000_000, "per": "month"}],
        },
        "variants": ["pro", "max"],
        "operations": ["generate"],
    }
    assert [row["policy"] for row in listed(runner)] == [policy]
    assert "\tactive\t-\tits own limits\t" in run(runner, "keys", "list").stdout


MISTAKES: list[tuple[list[str], str]] = [
    (["--tenant", "acmee", "--name", "web"], "--tenant: there is no tenant 'acmee'"),
    (["--tenant", "acme", "--name", ""], "--name: must have 1 to 64 printable characters"),
    (["--tenant", "acme", "--name", "a\nb"], "--name: must have 1 to 64 printable characters"),
    (["--tenant", "acme", "--name", "x", "--expires", "soon"], "--expires: must be a duration"),
    (["--tenant", "acme", "--name", "x", "--expires", "500d"], "--expires: must be a duration"),
    (["--tenant", "acme", "--name", "x", "--budget", "5"], "--budget: must be one of minute, hour, day"),
    (["--tenant", "acme", "--name", "x", "--budget", "0/day"], "--budget: must be dollars"),
    (["--tenant", "acme", "--name", "x", "--images", "some/day"], "--images: must be a whole number"),
    (["--tenant", "acme", "--name", "x", "--rate", "10"], "--rate: must be a rate such as 120/1m"),
    (["--tenant", "acme", "--name", "x", "--concurrency", "0"], "--concurrency: must be a whole number from 1"),
    (["--tenant", "acme", "--name", "x", "--variants", "pro,ultra"], "--variants: 'ultra' is not one of dev, max, pro"),
    (["--tenant", "acme", "--name", "x", "--operations", "draw"], "--operations: 'draw' is not one of edit, generate"),
]


@pytest.mark.parametrize(("arguments", "told"), MISTAKES)
def test_a_mistake_is_told_and_makes_no_key(
    runner: CliRunner, client: redis.Redis, arguments: list[str], told: str
) -> None:
    done = run(runner, "keys", "create", *arguments)
    assert (done.exit_code, done.stdout) == (1, "")
    assert told in done.stderr
    assert client.dbsize() == 0


@pytest.mark.parametrize("command", [["rotate", "key_none"], ["revoke", "key_none"]])
def test_a_key_that_is_not_there_is_told(runner: CliRunner, client: redis.Redis, command: list[str]) -> None:
    done = run(runner, "keys", *command, "--tenant", "acme")
    assert (done.exit_code, done.stderr) == (1, "there is no such key: key_none\n")
    assert client.dbsize() == 0


def test_another_tenants_key_cannot_be_revoked_by_its_id(runner: CliRunner) -> None:
    made = created(runner)
    assert run(runner, "keys", "revoke", made["key_id"], "--tenant", "globex").exit_code == 1
    assert listed(runner)[0]["state"] == "active"


def test_a_wrong_overlap_rotates_nothing(runner: CliRunner) -> None:
    made = created(runner)
    done = run(runner, "keys", "rotate", made["key_id"], "--tenant", "acme", "--overlap", "long")
    assert done.exit_code == 1
    assert listed(runner)[0]["shown"] == f"{made['token'][:13]}…"


def test_a_ledger_is_made_once_and_released_only_where_there_is_one(runner: CliRunner, client: redis.Redis) -> None:
    done = run(runner, "ledger", "release")
    assert (done.exit_code, done.stderr) == (1, "there is no ledger; run: kontext-gateway ledger init\n")
    first = run(runner, "ledger", "init")
    assert first.exit_code == 0
    assert first.stdout.startswith("new ledger led_")
    before = client.hgetall("kg:{ledger}")
    again = run(runner, "ledger", "init")
    assert (again.exit_code, again.stderr) == (1, "there is a ledger already; nothing was changed\n")
    kept = run(runner, "ledger", "init", "--if-missing")
    assert (kept.exit_code, kept.stdout) == (0, "there is a ledger already; nothing was changed\n")
    assert client.hgetall("kg:{ledger}") == before
    released = run(runner, "ledger", "release")
    assert released.stdout.startswith("released as led_")
    after: Any = client.hgetall("kg:{ledger}")
    assert after[b"id"] != before[b"id"]
    assert after[b"id"].decode() == released.stdout.split()[-1]


def test_without_a_redis_a_command_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tenants.yaml").write_text(TENANTS)
    runner = commands(monkeypatch, tmp_path, COMPLETE)
    for arguments in (["keys", "list"], ["ledger", "init"], ["ledger", "release"]):
        assert run(runner, *arguments).stderr == "the ledger's Redis does not answer\n"
    runner = commands(monkeypatch, tmp_path, {"REDIS_URL": ""})
    assert "REDIS_URL is not set, and no sandbox is running" in run(runner, "ledger", "init").stderr
    runner = commands(monkeypatch, tmp_path, COMPLETE | {"GATEWAY_KEY_PEPPER": ""})
    assert run(runner, "keys", "list").stderr == "GATEWAY_KEY_PEPPER: required to work on keys\n"
