"""What a tenant spent, over the wire: who it was, in which groups, as JSON and as CSV, and nothing of anybody else."""

from __future__ import annotations

import csv
import io
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from tests.fleet import Fleet, fleet, wait_until
from tests.pipeline.calls import call, generate, new_key, rows

REPORT = "/v1/usage?per=total"


def usage(url: str, token: str, query: str = "") -> dict[str, Any]:
    answer = call(url, REPORT + query, token)
    assert answer.status == 200, answer.body
    found: dict[str, Any] = answer.json
    return found


def test_spend_is_told_by_user_tags_variant_and_source_and_adds_up_to_the_rows(
    running: Fleet, urls: tuple[str, str]
) -> None:
    first_id, first = new_key(running, "report")
    second_id, second = new_key(running, "report")
    for url, token, fields in [
        (urls[0], first, {"seed": 1, "user": "user-one", "tags": ["web", "a,b"]}),
        (urls[1], first, {"seed": 2, "user": "user-one", "tags": ["a,b", "web"], "variant": "max"}),
        (urls[0], second, {"seed": 3, "user": "usér-two"}),
        (urls[1], second, {"seed": 1, "user": "usér-two", "tags": ["web"]}),  # from the cache
    ]:
        assert generate(url, token, **fields).status == 200
    running.faults([{"kind": "failed", "count": 1}])
    assert generate(urls[0], second, seed=4).status == 502
    running.faults([{"kind": "cut_after_accept", "count": 1}])
    assert generate(urls[0], second, seed=5).status == 502
    running.faults([])
    wait_until(lambda: usage(urls[0], first)["total"]["delivered"]["cache"] == 1, 5)
    found = usage(urls[1], first)
    spent = sum(int(row["delta"]) for row in rows(running, "report"))
    assert found["total"] == {
        "images": 5, "delivered": {"upstream": 3, "cache": 1, "coalesced": 0},
        "spent": {"micro_usd": spent, "usd": "0.200000"}, "ambiguous": {"micro_usd": 40_000, "usd": "0.040000"},
        "refunded": {"micro_usd": 40_000, "usd": "0.040000"}, "saved": {"micro_usd": 40_000, "usd": "0.040000"},
    }  # fmt: skip
    assert (found["tenant"], found["timezone"], len(found["rows"])) == ("report", "Pacific/Auckland", 1)

    def by(group: str, query: str = "") -> dict[Any, int]:
        made = usage(urls[0], second, f"&group_by={group}{query}")
        assert sum(row["spent"]["micro_usd"] for row in made["rows"]) == made["total"]["spent"]["micro_usd"]
        return {str(row[group]): row["spent"]["micro_usd"] for row in made["rows"]}

    assert by("user") == {"user-one": 120_000, "usér-two": 40_000, "None": 40_000}
    assert by("tags") == {"['a,b', 'web']": 120_000, "[]": 80_000, "['web']": 0}
    assert by("key") == {first_id: 120_000, second_id: 80_000}
    assert by("variant") == {"pro": 120_000, "max": 80_000}
    assert by("source") == {"upstream": 200_000, "cache": 0}
    assert by("operation", "&user=user-one&tag=web") == {"generate": 120_000}
    answer = call(urls[0], REPORT + "&group_by=user", first, headers={"Accept": "text/csv"})
    assert answer.headers["content-type"] == "text/csv; charset=utf-8"
    read = {row["user"]: int(row["spent_micro_usd"]) for row in csv.DictReader(io.StringIO(answer.body.decode()))}
    assert read == {"user-one": 120_000, "usér-two": 40_000, "": 40_000}
    client: Any = running.redis
    names = list(client.scan_iter("*report*", count=1_000))
    client.close()
    assert not any(b"user-one" in name or "usér-two".encode() in name for name in names)


def test_a_day_is_the_tenants_own(running: Fleet, urls: tuple[str, str]) -> None:
    _, token = new_key(running, "report")
    assert generate(urls[0], token).status == 200
    today = datetime.now(UTC).astimezone(ZoneInfo("Pacific/Auckland")).date()
    found = call(urls[0], "/v1/usage", token).json
    assert {row["period"] for row in found["rows"]} <= {str(today), str(today - timedelta(1))}
    only = call(urls[0], f"/v1/usage?from={today}&to={today + timedelta(1)}", token).json
    before = call(urls[0], f"/v1/usage?from={today - timedelta(9)}&to={today}", token).json
    assert only["total"]["images"] > 0
    assert only["total"]["images"] + before["total"]["images"] == found["total"]["images"]


def test_nothing_of_another_tenant_is_told(running: Fleet, urls: tuple[str, str]) -> None:
    mine, token = new_key(running, "report")
    assert generate(urls[0], token, user="user-one").status == 200
    _, other = new_key(running, "report-other")
    for query in ("", f"&key={mine}", "&user=user-one"):
        assert usage(urls[0], other, query)["rows"] == []


@pytest.mark.parametrize(
    ("query", "field"),
    [("&tenant=plain", "tenant"), ("&from=yesterday", "from"), ("&to=2020-01-01&from=2020-01-01", "to"),
     ("&from=2024-01-01&to=2026-01-01", "to"), ("&group_by=prompt", "group_by"), ("&per=day", "per")],
)  # fmt: skip
def test_a_wrong_query_is_refused_by_name(running: Fleet, urls: tuple[str, str], query: str, field: str) -> None:
    _, token = new_key(running, "report")
    answer = call(urls[0], REPORT + query, token)
    assert (answer.status, answer.json["field"]) == (422, field)


def test_an_orderly_stop_loses_no_free_delivery(tmp_path: Path) -> None:
    with fleet(tmp_path, "version: 1\ntenants:\n  acme: {name: Acme}\n") as running:
        _, token = new_key(running, "acme")
        replica = running.replicas[0]
        assert [generate(replica.url, token, seed=1).source for _ in range(3)] == ["upstream", "cache", "cache"]
        assert replica.stop() == 0
        total = json.loads(running.command("usage", "--tenant", "acme"))["total"]
        assert total["delivered"] == {"upstream": 1, "cache": 2, "coalesced": 0}
        assert (total["spent"]["micro_usd"], total["saved"]["micro_usd"]) == (40_000, 80_000)
