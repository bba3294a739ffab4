"""What a gateway refuses to start on, what it waits for, and what it makes of a price that is not the book's."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import redis

from tests.fleet import APP, PEPPER, ROOT, TOKEN, fleet, free_port, get_json, wait_until
from tests.pipeline.calls import Policies, generate, new_key, rows
from tests.redis_server import LEDGER, RedisServer


@contextmanager
def valkey(folder: Path, port: int | None = None, **config: str) -> Iterator[str]:
    """A Valkey with its URL; persistent unless the configuration says otherwise."""
    server = RedisServer(folder, LEDGER | config)
    server.port = port or server.port
    with server:
        yield server.url


def environment(folder: Path, redis_url: str, **more: str) -> dict[str, str]:
    (folder / "tenants.yaml").write_text(Policies({"acme": ""}).text)
    return {
        "PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "PRODIA_TOKEN": TOKEN, "PRODIA_BASE_URL": "http://127.0.0.1:9/v2",
        "REDIS_URL": redis_url, "GATEWAY_KEY_PEPPER": PEPPER, "GATEWAY_TENANTS_FILE": str(folder / "tenants.yaml"),
        "GATEWAY_DATA_DIR": str(folder / "data"), "GATEWAY_LISTEN": f"127.0.0.1:{free_port()}",
        "GATEWAY_OPS_LISTEN": f"127.0.0.1:{free_port()}", "GATEWAY_DRAIN_DELAY": "0", **more,
    }  # fmt: skip


def run(folder: Path, env: dict[str, str], *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*APP, *command], env=env, cwd=folder, capture_output=True, text=True, timeout=30, check=False
    )


@contextmanager
def serving(folder: Path, env: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    with (folder / "gateway.log").open("wb") as log:
        process = subprocess.Popen([*APP, "serve"], env=env, cwd=folder, stdout=log, stderr=log)
        try:
            yield process
        finally:
            process.kill()
            process.wait()


def test_an_empty_redis_is_refused_and_the_way_out_is_named(tmp_path: Path) -> None:
    with valkey(tmp_path / "valkey") as url:
        env = environment(tmp_path, url)
        refused = run(tmp_path, env, "serve")
        assert refused.returncode == 1
        assert refused.stderr.splitlines() == [
            "REDIS_URL holds no ledger. For a new one run: kontext-gateway ledger init"
        ]
        assert run(tmp_path, env, "ledger", "init").returncode == 0
        with serving(tmp_path, env) as process:
            wait_until(lambda: ready(env) == "ready", 15, (tmp_path / "gateway.log").read_text)
            process.terminate()
            assert process.wait(10) == 0


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"appendonly": "no"}, "does not persist: set appendonly yes"),
        ({"maxmemory-policy": "allkeys-lru"}, "may evict keys"),
    ],
)
def test_a_ledger_that_can_forget_is_refused_unless_it_is_accepted(
    tmp_path: Path, config: dict[str, str], told: str
) -> None:
    with valkey(tmp_path / "valkey", None, **config) as url:
        env = environment(tmp_path, url)
        assert run(tmp_path, env, "ledger", "init").returncode == 0
        refused = run(tmp_path, env, "serve")
        assert refused.returncode == 1
        assert told in refused.stderr
        assert "Traceback" not in refused.stderr
        accepted = env | {"GATEWAY_ACCEPT_VOLATILE_LEDGER": "true"}
        with serving(tmp_path, accepted):
            wait_until(lambda: ready(accepted) == "ready", 15, (tmp_path / "gateway.log").read_text)


def ready(env: dict[str, str]) -> str:
    """What the readiness probe says: ready, or why not; nothing while there is no answer."""
    import urllib.error

    try:
        return str(get_json(f"http://{env['GATEWAY_OPS_LISTEN']}/readyz")["status"])
    except urllib.error.HTTPError as error:
        import json

        with error:
            return str(json.loads(error.read())["reason"])
    except OSError:
        return ""


def test_a_redis_that_is_away_at_the_start_is_waited_for(tmp_path: Path) -> None:
    port = free_port()
    with valkey(tmp_path / "valkey", port) as url:
        env = environment(tmp_path, url)
        assert run(tmp_path, env, "ledger", "init").returncode == 0
        token = run(tmp_path, env, "keys", "create", "--tenant", "acme", "--name", "test").stdout.split()[-1]
    gateway = f"http://{env['GATEWAY_LISTEN']}"
    with serving(tmp_path, env):
        wait_until(lambda: ready(env) == "ledger_unavailable", 15)
        probe = run(tmp_path, env, "health")
        assert (probe.returncode, probe.stderr.strip()) == (1, "not ready: ledger_unavailable")
        answer = generate(gateway, token)
        assert answer.refusal == (503, "ledger_unavailable", "no")
        assert answer.headers["retry-after"] == "1"
        with valkey(tmp_path / "valkey", port):
            wait_until(lambda: ready(env) == "ready", 15)
            assert generate(gateway, token).code == "upstream_unavailable"
            probe = run(tmp_path, env, "health")
            assert (probe.returncode, probe.stdout.strip()) == (0, "ready")
        wait_until(lambda: ready(env) == "ledger_unavailable", 15)
    assert run(tmp_path, env, "health").stderr.strip() == "no answer"


def test_a_redis_that_comes_up_as_one_that_can_forget_is_not_used(tmp_path: Path) -> None:
    """It was away at the start, where it would have been refused."""
    port = free_port()
    with valkey(tmp_path / "valkey", port) as url:
        env = environment(tmp_path, url)
        assert run(tmp_path, env, "ledger", "init").returncode == 0
        token = run(tmp_path, env, "keys", "create", "--tenant", "acme", "--name", "test").stdout.split()[-1]
    with serving(tmp_path, env):
        wait_until(lambda: ready(env) == "ledger_unavailable", 15)
        with valkey(tmp_path / "valkey", port, **{"maxmemory-policy": "allkeys-lru"}) as url:
            wait_until(lambda: "ledger_volatile" in (tmp_path / "gateway.log").read_text(), 30)
            for _ in range(20):
                assert ready(env) == "ledger_unavailable"
                time.sleep(0.1)
            assert generate(f"http://{env['GATEWAY_LISTEN']}", token).refusal == (503, "ledger_unavailable", "no")
            with redis.Redis.from_url(url) as client:
                client.config_set("maxmemory-policy", "noeviction")
            wait_until(lambda: ready(env) == "ready", 15)


def test_a_redis_that_comes_up_empty_is_not_taken_for_a_ledger(tmp_path: Path) -> None:
    port = free_port()
    env = environment(tmp_path, f"redis://127.0.0.1:{port}/0")
    with serving(tmp_path, env):
        wait_until(lambda: ready(env) == "ledger_unavailable", 15)
        with valkey(tmp_path / "valkey", port):
            wait_until(lambda: ready(env) == "no_ledger", 15)
            for _ in range(20):
                assert ready(env) == "no_ledger"
                time.sleep(0.1)
            assert run(tmp_path, env, "ledger", "init").returncode == 0
            wait_until(lambda: ready(env) == "ready", 15)


def test_what_is_missing_is_named_and_nothing_starts(tmp_path: Path) -> None:
    refused = run(tmp_path, {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)}, "serve")
    assert refused.returncode == 1
    assert refused.stderr.strip() == (
        "settings: PRODIA_TOKEN, REDIS_URL, GATEWAY_KEY_PEPPER, GATEWAY_TENANTS_FILE: required without --sandbox"
    )
    assert list(tmp_path.iterdir()) == []


def test_settings_come_from_a_dot_env_file_and_the_environment_outranks_it(tmp_path: Path) -> None:
    env = environment(tmp_path, "redis://127.0.0.1:9/0")
    names = [name for name in env if name not in ("PATH", "PYTHONPATH")]
    (tmp_path / ".env").write_text("".join(f"{name}={env[name]}\n" for name in names) + "UNRELATED=1\n")
    bare = {"PATH": env["PATH"], "PYTHONPATH": env["PYTHONPATH"]}
    assert run(tmp_path, bare, "check").returncode == 0
    outranked = run(tmp_path, bare | {"GATEWAY_LISTEN": "nowhere"}, "check")
    assert (outranked.returncode, outranked.stderr.strip()) == (1, "settings: GATEWAY_LISTEN must be host:port")
    assert run(tmp_path, bare | {"GATEWAY_LISTEN": ""}, "check").returncode == 0


def test_a_tenants_file_with_a_mistake_is_refused_at_the_start(tmp_path: Path) -> None:
    env = environment(tmp_path, "redis://127.0.0.1:9/0")
    (tmp_path / "tenants.yaml").write_text("version: 1\ntenants:\n  acme: {nam: x}\n")
    refused = run(tmp_path, env, "serve")
    assert refused.returncode == 1
    assert refused.stderr.startswith(f"{tmp_path}/tenants.yaml:3: tenants.acme.nam: is not a known field")


def test_a_price_above_the_book_is_the_operators_and_never_the_tenants(tmp_path: Path) -> None:
    block = 'limits: {budgets: [{usd: "0.08", per: month}]}'
    with fleet(
        tmp_path, Policies({"acme": block}).text, sandbox=("--time-scale", "0.01", "--picture", "small")
    ) as running:
        _, token = new_key(running, "acme")
        (replica,) = running.replicas
        running.faults([{"kind": "overcharge", "options": {"dollars": 0.1}}])
        answers = [generate(replica.url, token) for _ in range(3)]
        assert [answer.code for answer in answers] == ["ok", "ok", "budget_exhausted"]
        assert {answer.headers["gateway-cost-usd"] for answer in answers[:2]} == {"0.040000"}
        assert running.bill()["micro_usd"] == 200_000
        assert replica.total("kontext_gateway_cost_dollars_total") == pytest.approx(0.08)
        assert replica.total("kontext_gateway_price_drift_dollars_total", variant="pro") == pytest.approx(0.12)
        assert replica.total("kontext_gateway_upstream_cost_dollars_total", variant="pro") == pytest.approx(0.2)
        assert [(int(row["delta"]), int(row["drift"])) for row in rows(running, "acme")] == [(40_000, 60_000)] * 2


def test_a_price_below_the_book_is_passed_on(tmp_path: Path) -> None:
    with fleet(
        tmp_path, Policies({"acme": ""}).text, sandbox=("--time-scale", "0.01", "--picture", "small")
    ) as running:
        _, token = new_key(running, "acme")
        running.faults([{"kind": "overcharge", "options": {"dollars": 0.03}}])
        answer = generate(running.replicas[0].url, token, {"Accept": "application/json"})
        assert answer.json["cost"]["micro_usd"] == 30_000
        assert [int(row["delta"]) for row in rows(running, "acme")] == [30_000] == [running.bill()["micro_usd"]]
