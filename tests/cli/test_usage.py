"""`usage` prints what a tenant spent, from the ledger alone, and says plainly what it cannot print."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
import redis
from typer.testing import CliRunner

from app.domain.windows import window
from tests.cli.running import COMPLETE, commands, run
from tests.redis_server import RedisServer

TENANTS = "version: 1\ntenants:\n  acme: {name: Acme, timezone: Asia/Tokyo}\n"
NOVEMBER = ("--from", "2026-11-01", "--to", "2026-12-01")


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[redis.Redis]:
    with RedisServer(tmp_path_factory.mktemp("valkey")) as server, server.client() as found:
        for tenant, day, spent in (
            ("acme", "2026-11-30", 40_000),
            ("acme", "2026-12-01", 80_000),
            ("left", "2026-11-02", 1),
        ):
            start, _ = window("day", "Asia/Tokyo", datetime.fromisoformat(day).replace(tzinfo=UTC).timestamp())
            counters = {"date": day, "spent\x1fkey_1\x1fada\x1f\x1fpro\x1fedit": spent}
            found.hset(f"kg:{{t:{tenant}}}:use:{start}", mapping=counters)
            found.zadd(f"kg:{{t:{tenant}}}:days", {str(start): start})
        yield found


@pytest.fixture
def runner(client: redis.Redis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CliRunner:
    (tmp_path / "tenants.yaml").write_text(TENANTS)
    port = client.connection_pool.connection_kwargs["port"]
    return commands(monkeypatch, tmp_path, COMPLETE | {"REDIS_URL": f"redis://127.0.0.1:{port}/0"})


def test_it_prints_the_report_as_json_and_as_csv(runner: CliRunner) -> None:
    done = run(runner, "usage", "--tenant", "acme", "--per", "total", "--group-by", "user", *NOVEMBER)
    assert done.exit_code == 0, done.stderr
    shown = json.loads(done.stdout)
    assert (shown["tenant"], shown["timezone"], shown["to"]) == ("acme", "Asia/Tokyo", "2026-12-01")
    assert [(row["user"], row["spent"]["usd"]) for row in shown["rows"]] == [("ada", "0.040000")]
    done = run(runner, "usage", "--tenant", "acme", "--group-by", "user", *NOVEMBER, "--csv")
    names, row = done.stdout.splitlines()
    assert names.startswith("period,user,images,delivered_upstream,")
    assert row.startswith("2026-11-30,ada,0,0,0,0,40000,0.040000,")


def test_a_tenant_that_left_the_file_is_still_reported(runner: CliRunner) -> None:
    done = run(runner, "usage", "--tenant", "left", *NOVEMBER)
    assert json.loads(done.stdout)["total"]["spent"]["micro_usd"] == 1


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--tenant", "nobody"], "--tenant: there is no tenant 'nobody' in the tenants file, and no usage of it\n"),
        (["--tenant", "acme", "--from", "soon"], "--from: from must be a date such as 2026-11-24.\n"),
        (["--tenant", "acme", "--group-by", "keys"], "--group-by: group_by must be one of key, user, tags, "),
        (["--tenant", "acme", "--per", "week"], "--per: per must be one of day, month, total.\n"),
    ],
)
def test_a_mistake_is_told_with_its_option(runner: CliRunner, options: list[str], told: str) -> None:
    done = run(runner, "usage", *options)
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr.startswith(told)
