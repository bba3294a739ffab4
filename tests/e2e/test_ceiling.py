"""No request, however it is spelled, gets a job past its tenant's ceiling: judged by what the upstream received."""

from __future__ import annotations

import asyncio
import json
import os
import random
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import aiohttp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.domain import policy
from app.domain.catalog import load
from app.domain.job import Ask, Caller
from app.domain.tenant import KeyPolicy, Safety, SafetyRule, Tenant
from app.domain.upload import Upload
from app.domain.validate import validate
from app.errors import GatewayError
from tests.e2e.ceilings import ANY, DEFAULT, RANGE, SPAN, WRONG, Attempt, Policy, attempts, policies, tenants_file
from tests.e2e.exchange import make_keys
from tests.fleet import Fleet, fleet, get_json

COUNT = int(os.environ.get("KGW_CEILING_REQUESTS", "100000"))
SEED = int(os.environ.get("KGW_CEILING_SEED", random.SystemRandom().randrange(2**32)))
WORKERS = 32
PAGE = 10_000
CATALOG = load()
TYPES = {job.type: job for job in CATALOG.jobs}


@dataclass
class Run:
    """What the callers saw."""

    statuses: Counter[str] = field(default_factory=Counter)
    surprises: list[str] = field(default_factory=list)
    served: int = 0


@pytest.mark.timeout(1200)
def test_no_spelling_gets_a_job_past_its_tenants_ceiling(tmp_path: Path) -> None:
    tenants = policies()
    print(f"\nKGW_CEILING_SEED={SEED}")
    with fleet(
        tmp_path, tenants_file(tenants), replicas=2, sandbox=("--time-scale", "0", "--picture", "small"),
        GATEWAY_UPSTREAM_CONCURRENCY="10000", GATEWAY_REDIS_TIMEOUT="5s", GATEWAY_LOG_LEVEL="WARNING",
    ) as running:  # fmt: skip
        keys = make_keys(running, [tenant.id for tenant in tenants])
        began = time.monotonic()
        run = asyncio.run(_storm(running, keys, tenants))
        seconds = time.monotonic() - began
        received, stats = list(_received(running)), running.stats()
    print(
        f"{COUNT} requests in {seconds:.0f} s, {COUNT / seconds:.0f} a second; "
        f"{len(received) / COUNT:.0%} reached the upstream"
    )
    print(dict(run.statuses.most_common()))
    above, absent, without_knob, types = _judged(tenants, received)
    assert (above, absent, without_knob) == ([], [], [])
    assert stats["safety_tolerance_absent"] == 0
    for name, counts in stats["by_type"].items():
        knob = TYPES[name].role("safety")
        if knob:
            assert counts["safety_absent"] == 0
            assert counts["safety_max"] <= max(tenant.ceiling(TYPES[name].operation) for tenant in tenants)
    assert run.surprises == []
    assert len(received) == stats["received"] == run.served
    assert len(received) >= 0.4 * COUNT
    assert set(types) == {job.type for job in CATALOG.jobs if job.enabled}


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


async def _storm(running: Fleet, keys: dict[str, str], tenants: list[Policy]) -> Run:
    run, planned = Run(), attempts(tenants, SEED, COUNT)
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
        code = "ok" if answer.status == 200 else json.loads(body)["code"]
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


@settings(max_examples=500, deadline=None)
@given(st.data())
def test_whatever_the_policy_the_applied_tolerance_is_explicit_and_within_the_ceiling(data: st.DataObject) -> None:
    operation, variant = data.draw(st.sampled_from(sorted(CATALOG.enabled)))
    rules = {}
    for name, top in RANGE.items():
        ceiling = data.draw(st.none() | st.integers(0, top))
        default = data.draw(st.none() | st.integers(0, top if ceiling is None else ceiling))
        if data.draw(st.booleans()):
            rules[name] = SafetyRule(ceiling, default)
    without_knob = data.draw(st.frozensets(st.sampled_from(["dev", "pro"])))
    safety = Safety(MappingProxyType(rules), data.draw(st.sampled_from(["clamp", "reject"])), without_knob)
    tenant = Tenant(id="acme", name="Acme", safety=safety)
    fields: dict[str, Any] = {"prompt": "a lighthouse", "variant": variant}
    asked = data.draw(st.none() | st.integers(0, RANGE[operation]))
    if variant != "dev" and asked is not None:
        fields["safety_tolerance"] = asked
    uploads = {"image": Upload(b"picture")} if operation == "edit" else {}
    request = validate(Ask(operation, fields, uploads), CATALOG)
    rule = rules.get(operation, SafetyRule())
    ceiling = DEFAULT[operation] if rule.ceiling is None else rule.ceiling
    if variant == "dev":
        forbidden = rule.ceiling is not None and "dev" not in without_knob
    else:
        forbidden = safety.mode == "reject" and asked is not None and asked > ceiling
    caller = Caller(tenant, "key_1", "digest", KeyPolicy())
    if forbidden:
        with pytest.raises(GatewayError, match="ceiling") as refused:
            policy.apply(caller, request)
        assert refused.value.code == "safety_ceiling"
        return
    job = policy.apply(caller, request)
    if variant == "dev":
        assert "safety_tolerance" not in job.config
    else:
        sent = job.config["safety_tolerance"]
        preferred = DEFAULT[operation] if rule.default is None else rule.default
        assert type(sent) is int
        assert sent == min(preferred if asked is None else asked, ceiling)
        assert safety.mode == "clamp" or asked is None or asked <= ceiling


def _received(running: Fleet) -> Iterator[dict[str, Any]]:
    """Every job that the upstream received, page by page."""
    after = 0
    while page := get_json(f"{running.upstream}/sandbox/jobs?after={after}&limit={PAGE}")["jobs"]:
        yield from page
        after = page[-1]["n"]
