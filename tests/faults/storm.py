"""The budget storm: a thousand callers, an upstream that misbehaves, a cap of 125 pictures. The mutants face it too."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from tests.faults.checker import Broken, Figures, Sampler, Violation, check, settle_down
from tests.faults.clients import Answer, History, midday
from tests.fleet import Fleet

Level = Literal["tenant", "key", "user"]
PRICE = 40_000
CAP = 125 * PRICE
WIDE = dict.fromkeys(("tenant", "key", "user"), 1000000000)

# For runs whose Redis is not what fails: a busy machine is not to be taken for an absent ledger.
PATIENT = {"GATEWAY_REDIS_TIMEOUT": "2s", "GATEWAY_REDIS_CONNECT_TIMEOUT": "2s"}

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


def token(fleet: Fleet, level: Level | None = None, tenant: str = "acme") -> str:
    """A key of that tenant."""
    return fleet.token(tenant, "5.00/day" if level == "key" else "1000.00/day")


@dataclass(frozen=True)
class Outcome:
    """What a storm came to."""

    storm: History
    topped_up: History
    refused: Answer
    sampler: Sampler
    figures: Figures


def storm(
    fleet: Fleet,
    level: Level,
    *,
    requests: int = 1_000,
    faults: Sequence[dict[str, object]] = FAULTS,
    dear: Callable[[int], bool] = lambda seed: False,
) -> Outcome:
    """Run it: everyone at once; then ask for exactly what is left; then for one more.

    Args:
        dear: which seeds ask for the picture of twice the price.

    Raises:
        Broken: with the invariants that do not hold.
    """
    key, caps = token(fleet, level), {str(level): CAP}
    fleet.faults(list(faults))
    everything = History()

    def asking(seeds: range) -> History:
        made = History()
        made.send(fleet.urls, key, seeds, user="ada", each=lambda seed: {"variant": "max" if dear(seed) else "pro"})
        everything.calls += made.calls
        return made

    with Sampler(fleet.redis_url, "acme", WIDE | caps) as sampler:
        first = asking(range(requests))
        settle_down(fleet, "acme")
        fleet.faults([])
        left = max(0, CAP - spent(fleet, level)) // PRICE
        topped_up = History()
        if left:
            topped_up.send(fleet.urls, key, range(10_000, 10_000 + left), user="ada")
        refused = History()
        refused.send(fleet.urls, key, [20_000], user="ada")
        everything.calls += topped_up.calls + refused.calls
        settle_down(fleet, "acme")
    figures, found = None, list(sampler.violations)
    try:
        figures = check(fleet, "acme", caps=caps, history=everything)
    except Broken as broken:
        found += broken.violations
    if len(first.answers) != requests:
        found.append(Violation("I2", "not every caller was answered"))
    if found or figures is None:
        raise Broken(found)
    return Outcome(first, topped_up, refused.answers[0], sampler, figures)


def spent(fleet: Fleet, level: Level) -> int:
    """What the level's window says is spent, in micro-dollars."""
    with fleet.redis as client:
        windows = list(client.scan_iter(f"kg:{{t:acme}}:win:{level}:*:usd:*"))
        return sum(int(client.hget(name, "spent") or 0) for name in windows)
