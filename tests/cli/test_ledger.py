"""`ledger ambiguous` and `ledger reconcile` on a real ledger: what they show and write, and what they leave alone."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from typer.testing import CliRunner, Result

from app.store import keys
from tests.cli.running import COMPLETE, TENANTS, commands, run
from tests.processes import wait_until
from tests.redis_server import RedisServer
from tests.scripts.desk import KEY, TENANT, Desk, Limit

PRO = "inference.flux-kontext.pro.txt2img.v2"
PRICE = 40_000
LIMITS = [Limit("tenant", "usd", 10 * PRICE, PRICE), Limit("tenant", "img", 10, 1)]
AT_ONCE = ("--older-than", "0s", "--tolerance", "0s", "--from", "2020-01-01", "--to", "now")


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[redis.Redis]:
    with RedisServer(tmp_path_factory.mktemp("valkey")) as server, server.client() as found:
        yield found


@pytest.fixture
def desk(client: redis.Redis) -> Desk:
    made = Desk(client).open()
    client.sadd(keys.TENANTS, TENANT, "globex")
    return made


@pytest.fixture
def runner(client: redis.Redis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CliRunner:
    (tmp_path / "tenants.yaml").write_text(TENANTS)
    port = client.connection_pool.connection_kwargs["port"]
    return commands(monkeypatch, tmp_path, COMPLETE | {"REDIS_URL": f"redis://127.0.0.1:{port}/0"})


def lose(desk: Desk, name: str, span: tuple[int, int] | None = None, *, reason: str = "lost") -> int:
    """A job that was sent and never answered; when it was sent, in Unix ms."""
    at = span or (desk.now - 10, desk.now + 1_000)
    held = keys.reservation(TENANT, name)
    assert desk.reserve(name, "own_1", LIMITS, at, places=[("all", 8)], amount=PRICE)[0] == "ok"
    facts = {"job": f"job_{name}", "key": KEY, "type": PRO, "variant": "pro", "operation": "generate", "price": PRICE}
    desk.client.hset(held, mapping=facts | {"seed": "7", "user": "ada", "tags": ""})
    desk.dispatch(name, "own_1", 0)
    assert desk.finish(name, "AMBIGUOUS", "DISPATCHING")[0] == "done"
    desk.client.hset(held, "reason", reason)
    return int(desk.client.hget(held, "dispatched") or 0)


def bill(folder: Path, *lines: tuple[str, int, int]) -> str:
    """A bill of (id, Unix ms, micro-dollars)."""
    path = folder / "bill.csv"
    rows = [f"{id},{at / 1000:.3f},{PRO},{price}" for id, at, price in lines]
    path.write_text("\n".join(["id,at,type,micro_usd", *rows]) + "\n")
    return str(path)


def reconcile(runner: CliRunner, path: str, *options: str) -> tuple[Result, Any]:
    done = run(runner, "ledger", "reconcile", "--bill", path, "--json", *options)
    return done, json.loads(done.stdout) if done.stdout else None


def rows(desk: Desk) -> list[dict[str, str]]:
    """The ledger's rows that a reconciliation wrote."""
    found = [row for _, row in desk.client.xrange(keys.rows(TENANT))]
    texts = [{name.decode(): value.decode() for name, value in row.items()} for row in found]
    return [row for row in texts if row["by"] == "reconcile"]


def test_the_windows_of_the_reservation_move_also_after_their_end(
    runner: CliRunner, desk: Desk, tmp_path: Path
) -> None:
    """Dollars of what was not billed come back to the day that is over; images stay counted, as they were sent."""
    span = (desk.now - 10, desk.now + 2)
    sent = lose(desk, "res_1", span)
    lose(desk, "res_2", span)
    wait_until(lambda: desk.now >= span[1], 10)
    # Both are of one moment, so the tolerance is what tells the numbers: one line for two.
    path = bill(tmp_path, ("line-1", sent, PRICE))
    done, found = reconcile(runner, path, *AT_ONCE, "--apply", "--by-count", "--tolerance", "1s", "--to", "2100-01-01")
    assert (done.exit_code, found["ended"]) == (0, {"now": 2, "before": 0})
    usd, images = (desk.client.hgetall(limit.key(span[0])) for limit in LIMITS)
    assert (int(usd[b"spent"]), int(usd[b"reserved"]), int(images[b"spent"])) == (PRICE, 0, 2)
    day = desk.client.hgetall(keys.usage(TENANT, span[0]))
    figures = {name: int(day[f"{name}\x1fown_1".encode()]) for name in ("spent", "ambiguous", "refunded", "images")}
    assert figures == {"spent": PRICE, "ambiguous": 0, "refunded": PRICE, "images": 2}


def test_an_excess_is_the_operators_and_the_row_says_who_and_by_which_line(
    runner: CliRunner, desk: Desk, tmp_path: Path
) -> None:
    """The row also keeps why the job was given up; `left` and `reaped` are for its caller an answer that never came."""
    path = bill(tmp_path, ("line-1", lose(desk, "res_1", reason="reaped"), PRICE + 15_000))
    done, found = reconcile(runner, path, *AT_ONCE, "--apply")
    assert (done.exit_code, found["sums"]["drift"]["micro_usd"], found["sums"]["to_settle"]["usd"]) == (
        0,
        15_000,
        "0.040000",
    )
    (row,) = rows(desk)
    told = {name: row[name] for name in ("state", "from", "delta", "bill_line", "drift", "reason", "verdict", "job")}
    assert told == {
        "state": "SETTLED", "from": "AMBIGUOUS", "delta": "0", "bill_line": "line-1", "drift": "15000",
        "reason": "lost", "verdict": "by type and time", "job": "job_res_1",
    }  # fmt: skip


def test_nothing_is_written_without_apply_and_nothing_twice_with_it(
    runner: CliRunner, desk: Desk, tmp_path: Path
) -> None:
    """Also where a run was interrupted between two charges: the line that is used up is known by its row."""
    first = lose(desk, "res_1")
    second = lose(desk, "res_2")
    path = bill(tmp_path, ("line-1", first, PRICE), ("line-2", second, PRICE))
    before = desk.everything()
    assert reconcile(runner, path, *AT_ONCE, "--tolerance", "1s", "--to", "2100-01-01")[0].exit_code == 0
    assert desk.everything() == before
    assert reconcile(runner, path, *AT_ONCE, "--tolerance", "1s", "--apply")[1]["ended"]["now"] == 2
    after = desk.everything()
    done, again = reconcile(runner, path, *AT_ONCE, "--tolerance", "1s", "--apply")
    assert (done.exit_code, again["entries"], again["ended"]["now"]) == (0, [], 0)
    assert again["sums"]["bill_explained_by_rows"]["micro_usd"] == again["sums"]["bill"]["micro_usd"] == 2 * PRICE
    assert desk.everything() == after


def test_by_default_a_young_charge_is_left_alone(runner: CliRunner, desk: Desk, tmp_path: Path) -> None:
    path = bill(tmp_path, ("line-1", lose(desk, "res_1"), PRICE))
    done, found = reconcile(runner, path, "--apply")
    assert [one["told"] for one in found["entries"]] == ["too young"]
    assert (done.exit_code, rows(desk)) == (0, [])


def test_a_line_that_nothing_explains_is_exit_code_one(runner: CliRunner, desk: Desk, tmp_path: Path) -> None:
    sent = lose(desk, "res_1")
    path = bill(tmp_path, ("line-1", sent, PRICE), ("line-2", sent - 9_000, PRICE))
    done, found = reconcile(runner, path, *AT_ONCE)
    assert [(one["id"], one["why"]) for one in found["unexplained"]] == [
        ("line-2", "no charge of the ledger can be its")
    ]
    assert (done.exit_code, found["complete"]) == (1, False)


@pytest.mark.parametrize("ends", [True, False])
def test_a_job_charged_without_an_id_or_under_way_may_be_the_one_on_the_bill(
    runner: CliRunner, desk: Desk, tmp_path: Path, ends: bool
) -> None:
    """One line for that job and a lost one cannot be told; with a second line both are explained."""
    assert desk.reserve("res_2", "own_1", LIMITS, (desk.now - 10, desk.now + 1_000), amount=PRICE)[0] == "ok"
    desk.client.hset(keys.reservation(TENANT, "res_2"), "type", PRO)
    desk.dispatch("res_2", "own_1", 0)
    sent = lose(desk, "res_1")
    if ends:
        more = json.dumps({"type": PRO, "reason": "error"})
        desk.run(
            "finish", desk.finish_keys("res_2"), ["res_2", "SETTLED", PRICE, "", "DISPATCHING", "owner", more, 60_000]
        )
    _, found = reconcile(runner, bill(tmp_path, ("line-1", sent, PRICE)), *AT_ONCE, "--by-count")
    assert [one["told"] for one in found["entries"]] == ["cannot be told"]
    done, found = reconcile(runner, bill(tmp_path, ("line-1", sent, PRICE), ("line-2", sent, PRICE)), *AT_ONCE)
    assert (done.exit_code, [one["told"] for one in found["entries"]]) == (0, ["billed"])


def test_another_tenants_charges_are_neither_shown_nor_ended(runner: CliRunner, desk: Desk, tmp_path: Path) -> None:
    """They still explain their lines."""
    path = bill(tmp_path, ("line-1", lose(desk, "res_1"), PRICE))
    done, found = reconcile(runner, path, *AT_ONCE, "--apply", "--tenant", "globex")
    assert (done.exit_code, found["entries"], found["unexplained"], rows(desk)) == (0, [], [], [])
    assert run(runner, "ledger", "ambiguous", "--tenant", "globex").stdout == "0 ambiguous charges, $0.000000\n"


def test_the_list_tells_all_that_is_known_of_a_charge(runner: CliRunner, desk: Desk) -> None:
    """The same as text, JSON and CSV."""
    lose(desk, "res_1")
    (one,) = json.loads(run(runner, "ledger", "ambiguous", "--json").stdout)["entries"]
    assert one.pop("dispatched") <= one.pop("ambiguous_since")
    assert one == {
        "tenant": TENANT, "key_id": KEY, "job_id": "job_res_1", "reservation": "res_1", "variant": "pro",
        "job_type": PRO, "micro_usd": PRICE, "reason": "lost", "upstream_id": "",
    }  # fmt: skip
    (row,) = csv.DictReader(io.StringIO(run(runner, "ledger", "ambiguous", "--csv").stdout))
    assert {name: row[name] for name in one} == {name: str(value) for name, value in one.items()}
    line, total = run(runner, "ledger", "ambiguous").stdout.splitlines()
    assert line.split("\t")[2:] == [TENANT, KEY, "job_res_1", "res_1", "pro", PRO, str(PRICE), "lost", "-"]
    assert total == "1 ambiguous charges, $0.040000"


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--older-than", "soon"], "--older-than: must be a duration such as 90s, 15m, 12h or 7d, up to 366d\n"),
        (["--tolerance", "-1s"], "--tolerance: must be a duration"),
        (["--to", "later"], "--to: must be a time such as 2026-11-24T12:00:00Z, a date or Unix seconds\n"),
        (["--column", "price=x"], "--column: must be NAME=COLUMN, where NAME is one of id, at, type, micro_usd, usd\n"),
        (["--column", "id=Job"], "bill.csv, line 1: has no column `Job`; say --column id=COLUMN\n"),
        (["--bill", "absent.csv"], "absent.csv: No such file or directory\n"),
        (["--tenant", "nobody"], "--tenant: the ledger holds nothing of a tenant 'nobody'\n"),
    ],
)
def test_a_mistake_is_told_with_its_option(
    runner: CliRunner, desk: Desk, tmp_path: Path, options: list[str], told: str
) -> None:
    bill(tmp_path)
    done = run(runner, "ledger", "reconcile", "--bill", "bill.csv", *options)
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr.startswith(told)
