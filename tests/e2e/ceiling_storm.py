"""The ceiling under every spelling there is: what the callers saw, and what the upstream received. For the row A-05."""

from __future__ import annotations

import asyncio
import re
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from app.domain.catalog import load
from tests.e2e.ceilings import ANY, SPAN, WRONG, Attempt, Policy, attempts, native, policies, tenants_file
from tests.e2e.exchange import make_keys
from tests.e2e.job_ceilings import job
from tests.e2e.openai_ceilings import pictures
from tests.faults.checker import Broken, Violation
from tests.fleet import Fleet, fleet, get_json

WORKERS = 32
PAGE = 10_000
CATALOG = load()
TYPES = {kind.type: kind for kind in CATALOG.jobs}
CODE = re.compile(rb'"code":"(\w+)"')  # of a problem, or of the one in a job document


@dataclass
class Run:
    """What the callers saw."""

    statuses: Counter[str] = field(default_factory=Counter)
    surprises: list[str] = field(default_factory=list)
    served: int = 0


def storm(folder: Path, count: int, seed: int) -> str:
    """So many requests; how it went, in words. Raises Broken (I9) where a job was sent above its tenant's ceiling or
    without a tolerance, and AssertionError where anything else was not as foretold."""
    tenants = policies()
    with fleet(
        folder, tenants_file(tenants), replicas=2, sandbox=("--time-scale", "0", "--picture", "small"),
        GATEWAY_UPSTREAM_CONCURRENCY="10000", GATEWAY_REDIS_TIMEOUT="5s", GATEWAY_LOG_LEVEL="WARNING",
    ) as running:  # fmt: skip
        keys = make_keys(running, [tenant.id for tenant in tenants])
        began = time.monotonic()
        run = asyncio.run(_storm(running, keys, tenants, attempts(tenants, seed, count, (native, job, pictures))))
        seconds = time.monotonic() - began
        received, stats = list(_received(running)), running.stats()
    planned = [row for row in received if row["config"]["seed"] // SPAN < len(tenants)]  # others read it elsewhere
    above, absent, without_knob, types = _judged(tenants, planned)
    wrong = {"above the ceiling": above, "without a tolerance": absent, "without the knob": without_knob}
    if any(wrong.values()) or stats["safety_tolerance_absent"]:
        raise Broken([Violation("I9", f"{len(jobs)} jobs {how}: {jobs[:2]}") for how, jobs in wrong.items() if jobs])
    for name, counts in stats["by_type"].items():
        knob = TYPES[name].role("safety")
        if knob:
            assert counts["safety_absent"] == 0
            assert counts["safety_max"] <= max(tenant.ceiling(TYPES[name].operation) for tenant in tenants)
    assert run.surprises == []
    assert len(planned) == len(received)
    assert len(received) == stats["received"] == run.served
    assert len(received) >= 0.4 * count
    assert set(types) == {job.type for job in CATALOG.jobs if job.enabled}
    return f"{count} requests, {count / seconds:.0f} a second, {len(received)} sent, 0 above; {dict(run.statuses)}"


def _judged(
    tenants: list[Policy], received: list[dict[str, Any]]
) -> tuple[list[Any], list[Any], list[Any], Counter[str]]:
    """Jobs above their tenant's ceiling, without an explicit value, and without the knob where that is not allowed."""
    above, absent, without_knob = [], [], []
    types: Counter[str] = Counter()
    for row in received:
        tenant, job, config = tenants[row["config"]["seed"] // SPAN], TYPES[row["type"]], row["config"]
        types[job.type] += 1
        if job.role("safety") is None:
            if "safety_tolerance" in config or not tenant.dev_allowed:
                without_knob.append((tenant, row))
        elif type(config.get("safety_tolerance")) is not int:
            absent.append((tenant, row))
        elif not 0 <= config["safety_tolerance"] <= tenant.ceiling(job.operation):
            above.append((tenant, row))
    return above, absent, without_knob, types


async def _storm(running: Fleet, keys: dict[str, str], tenants: list[Policy], planned: Iterator[Attempt]) -> Run:
    run = Run()
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=25), timeout=aiohttp.ClientTimeout(total=60),
        auto_decompress=False, cookie_jar=aiohttp.DummyCookieJar(),
    ) as session:  # fmt: skip
        await asyncio.gather(
            *(
                _caller(session, running.replicas[n % len(running.replicas)].url, keys, planned, run)
                for n in range(WORKERS)
            )
        )
    return run


async def _caller(
    session: aiohttp.ClientSession, url: str, keys: dict[str, str], planned: Iterator[Attempt], run: Run
) -> None:
    for attempt in planned:
        headers = {"Authorization": f"Bearer {keys[attempt.tenant.id]}", "Content-Type": attempt.content_type}
        async with session.post(
            url + attempt.target, data=attempt.body, headers=headers | dict(attempt.headers)
        ) as answer:
            body = await answer.read()
        found = CODE.findall(body)
        code = "ok" if answer.status == 200 else found[-1].decode() if found else "unreadable"
        run.statuses[f"{answer.status} {code}"] += 1
        run.served += answer.status == 200
        told = answer.headers.get("Gateway-Safety", "")
        if not _foretold(attempt.expected, answer.status, code, told) and len(run.surprises) < 20:
            run.surprises.append(
                f"{answer.status} {code} {told!r} for {attempt.expected!r} of {attempt.tenant}: {attempt.body[:300]!r}"
            )


def _foretold(expected: int | str | None, status: int, code: str, told: str) -> bool:
    if expected == ANY:
        return status in (200, 400, 403, 422)
    if expected == WRONG:
        return (status, code) in ((400, "invalid_request"), (422, "invalid_request"), (403, "safety_ceiling"))
    return status == 200 and f"applied={expected}," in told + ","


def _received(running: Fleet) -> Iterator[dict[str, Any]]:
    """Every job that the upstream received, page by page."""
    after = 0
    while page := get_json(f"{running.upstream}/sandbox/jobs?after={after}&limit={PAGE}")["jobs"]:
        yield from page
        after = page[-1]["n"]
