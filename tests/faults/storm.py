"""The budget storm: a thousand callers, an upstream that misbehaves, a cap of 125 pictures. The mutants face it too."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

from tests.faults.checker import Broken, Figures, Sampler, Violation, check, settle_down
from tests.faults.clients import Answer, ask, midday, together
from tests.fleet import Fleet

Level = Literal["tenant", "key", "user"]
PRICE = 40_000
CAP = 125 * PRICE
WIDE = dict.fromkeys(("tenant", "key", "user"), 1000000000)

# A tenth of the jobs each: refused as failed, no capacity (at once or in a second), and billed without an answer.
FAULTS = (
    {"kind": "failed", "probability": 0.1},
    {"kind": "busy", "probability": 0.05, "options": {"retry_after": 0}},
    {"kind": "busy", "probability": 0.05, "options": {"retry_after": 1}},
    {"kind": "cut_after_accept", "probability": 0.1},
)


def tenants(level: Level | None) -> str:
    """A tenants file whose tenant has the exact cap at one level, far more at the others; None: no cap, no users."""
    tenant = f'[{{usd: "{"5.00" if level == "tenant" else "1000.00"}", per: day}}]'
    per_user = f', per_user: {{budgets: [{{usd: "{"5.00" if level == "user" else "1000.00"}", per: day}}]}}'
    limits = f"{{budgets: {tenant}{per_user if level else ''}}}"
    return f"version: 1\ntenants:\n  acme: {{name: Acme, timezone: {midday()}, limits: {limits}}}\n"


def token(fleet: Fleet, level: Level | None) -> str:
    """A key of that tenant."""
    return fleet.key("acme", "--budget", "5.00/day" if level == "key" else "1000.00/day")


@dataclass(frozen=True)
class Outcome:
    """What a storm came to."""

    answers: list[Answer]
    topped_up: list[Answer]
    refused: Answer
    sampler: Sampler
    figures: Figures


def storm(
    fleet: Fleet, level: Level, *, requests: int = 1_000, faults: Sequence[dict[str, object]] = FAULTS
) -> Outcome:
    """Run it: everyone at once; then ask for exactly what is left; then for one more.

    Raises:
        Broken: with the invariants that do not hold.
    """
    key, caps = token(fleet, level), {str(level): CAP}
    fleet.faults(list(faults))
    urls = [replica.url for replica in fleet.replicas]

    def asking(seeds: range) -> list[Answer]:
        return together([partial(ask, url=urls[seed % len(urls)], token=key, seed=seed, user="ada") for seed in seeds])

    with Sampler(fleet.redis_url, "acme", WIDE | caps) as sampler:
        answers = asking(range(requests))
        settle_down(fleet, "acme")
        fleet.faults([])
        left = max(0, CAP - spent(fleet, level)) // PRICE
        topped_up = asking(range(10_000, 10_000 + left)) if left else []
        refused = asking(range(20_000, 20_001))[0]
        settle_down(fleet, "acme")
    figures, found = None, list(sampler.violations)
    try:
        figures = check(fleet, "acme", caps=caps)
    except Broken as broken:
        found += broken.violations
    if found or figures is None:
        raise Broken(found)
    if len(answers) != requests:
        raise Broken([Violation("I2", "not every caller was answered")])
    return Outcome(answers, topped_up, refused, sampler, figures)


def spent(fleet: Fleet, level: Level) -> int:
    """What the level's window says is spent, in micro-dollars."""
    client = fleet.redis
    windows = list(client.scan_iter(f"kg:{{t:acme}}:win:{level}:*:usd:*"))
    total = sum(int(client.hget(name, "spent") or 0) for name in windows)
    client.close()
    return total
