"""Usage is what the upstream billed and what is flagged ambiguous, whoever asks for it and however it is grouped."""

from __future__ import annotations

import asyncio
import csv
import io
import json
import random
import urllib.request
from collections import Counter
from contextlib import suppress
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import aiohttp

from app.domain.usage import GROUPS
from tests.faults.checker import books, check, settle_down
from tests.faults.clients import ask, statuses, together
from tests.faults.storm import FAULTS, PRICE, tenants, token
from tests.fleet import fleet, wait_until

REQUESTS, LEAVERS = 240, 20


def report(url: str, key: str, query: str = "", accept: str = "application/json") -> str:
    headers = {"Authorization": f"Bearer {key}", "Accept": accept}
    with urllib.request.urlopen(
        urllib.request.Request(f"{url}/v1/usage?{query}", headers=headers), timeout=30
    ) as answer:
        found: str = answer.read().decode()
        return found


def test_usage_equals_the_bill_after_a_load_with_failures_retries_and_cut_connections(tmp_path: Path) -> None:
    draw = random.Random(4)
    with fleet(
        tmp_path, tenants("key"), replicas=3, GATEWAY_UPSTREAM_CONCURRENCY="16", GATEWAY_REDIS_TIMEOUT="2s"
    ) as running:
        keys, urls = [token(running, None) for _ in range(2)], [replica.url for replica in running.replicas]
        running.faults([*FAULTS, {"kind": "overcharge", "probability": 0.05}])

        def one(i: int, seed: int) -> Any:
            return partial(
                ask, url=urls[i % 3], token=keys[i % 2], seed=seed,
                user=f"user-{i % 4}", tags=[["web"], ["web", "spring"], []][i % 3],
            )  # fmt: skip

        async def leave(session: aiohttp.ClientSession, seed: int, after: float) -> None:
            with suppress(TimeoutError):
                await asyncio.wait_for(ask(session, urls[seed % 3], keys[0], seed=seed, user="left"), after)

        leaving = [partial(leave, seed=10_000 + i, after=draw.uniform(0.5, 5)) for i in range(LEAVERS)]
        load = [one(i, 100 + i) for i in range(REQUESTS)]
        answers = [found for found in together([*load, *leaving]) if found is not None]
        settle_down(running, "acme")
        running.faults([fault for fault in FAULTS if fault["kind"] != "cut_after_accept"])
        few = [one(i, i % 10) for i in range(60)]  # six ask for each of ten pictures, at once and again
        answers += together(few)
        running.faults([])
        answers += together(few)
        settle_down(running, "acme")
        figures = check(running, "acme")
        drift = sum(int(row.get("drift", 0)) for row in books(running).rows)
        free = Counter(answer.source for answer in answers if answer.source in ("cache", "coalesced"))

        def total(query: str = "", key: str = keys[0]) -> dict[str, Any]:
            found: dict[str, Any] = json.loads(report(urls[0], key, query))["total"]
            return found

        wait_until(lambda: all(total()["delivered"][source] == count for source, count in free.items()), 10, total)
        found = total()
        print(f"\nusage: {statuses(answers)}; {dict(free)} free; {figures}; {found}")
        assert drift > 0
        assert free["cache"] > 0
        assert free["coalesced"] > 0
        assert found["spent"]["micro_usd"] == figures.bill - drift == figures.settled + figures.ambiguous
        assert found["ambiguous"]["micro_usd"] == figures.ambiguous > 0
        assert found["refunded"]["micro_usd"] == figures.refunds * PRICE > 0
        assert found["delivered"] == {"upstream": figures.settled // PRICE, **free}
        assert found["saved"]["micro_usd"] == sum(free.values()) * PRICE
        assert found["images"] == sum(row["from"] == "DISPATCHING" for row in books(running).rows)

        for groups in (combination for n in range(1, 7) for combination in combinations(GROUPS, n)):
            query = f"group_by={','.join(groups)}&per=total"
            whole = json.loads(report(urls[1], keys[1], query))
            assert whole["total"] == found, groups
            for name in ("spent", "ambiguous", "refunded", "saved"):
                assert sum(row[name]["micro_usd"] for row in whole["rows"]) == found[name]["micro_usd"], groups
        by_user = {row["user"] for row in json.loads(report(urls[0], keys[0], "group_by=user"))["rows"]}
        assert by_user == {f"user-{i}" for i in range(4)} | {"left"}
        spent_by_source = [
            total(f"source={source}")["spent"]["micro_usd"] for source in ("upstream", "cache", "coalesced")
        ]
        assert spent_by_source == [found["spent"]["micro_usd"], 0, 0]

        command = ("usage", "--tenant", "acme", "--group-by", "key,tags", "--per", "month")
        query = "group_by=key,tags&per=month"
        assert json.loads(running.command(*command)) == json.loads(report(urls[2], keys[0], query))
        printed = running.command(*command, "--csv")
        assert printed.splitlines() == report(urls[2], keys[0], query, "text/csv").splitlines()
        rows = list(csv.DictReader(io.StringIO(printed)))
        assert sum(int(row["spent_micro_usd"]) for row in rows) == figures.bill - drift

        running.replicas[0].kill()
        assert json.loads(report(urls[1], keys[0]))["total"] == found
