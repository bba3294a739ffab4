"""The budget storm: a thousand callers, an upstream that misbehaves, a cap of 125 pictures. The mutants face it too."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from tests.faults.checker import Broken, Figures, Sampler, Violation, check, settle_down
from tests.faults.clients import Answer, Call, History, midday
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
    return "version: 1\ntenants:\n" + tenant_line("acme", level)


def tenant_line(name: str, level: Level | None) -> str:
    """One tenant of such a file."""
    tenant = f'[{{usd: "{"5.00" if level == "tenant" else "1000.00"}", per: day}}]'
    per_user = f', per_user: {{budgets: [{{usd: "{"5.00" if level == "user" else "1000.00"}", per: day}}]}}'
    limits = f"{{budgets: {tenant}{per_user if level else ''}}}"
    return f"  {name}: {{name: Acme, timezone: {midday()}, limits: {limits}}}\n"


def token(fleet: Fleet, level: Level | None = None, tenant: str = "acme") -> str:
    """A key of that tenant."""
    return fleet.token(tenant, "5.00/day" if level == "key" else "1000.00/day")


@dataclass(frozen=True)
class Outcome:
    """What a storm came to."""

    storm: History
    topped_up: History
    refused: Answer
    calls: tuple[Call, ...]
    sampler: Sampler
    figures: Figures


def storm(
    fleet: Fleet,
    level: Level,
    *,
    requests: int = 1_000,
    faults: Sequence[dict[str, object]] = FAULTS,
    dear: Callable[[int], bool] = lambda seed: False,
    tenant: str = "acme",
    first: int = 0,
    before: Sequence[Call] = (),
) -> Outcome:
    """Run it: everyone at once; then ask for exactly what is left; then for one more.

    Args:
        dear: which seeds ask for the picture of twice the price.
        first: the lowest seed, of 30,000.
        before: everything that was asked of this fleet until now; the checker holds all of it against the bill.

    Raises:
        Broken: with the invariants that do not hold.
    """
    key, caps = token(fleet, level, tenant), {str(level): CAP}
    fleet.faults(list(faults))

    def asking(seeds: range) -> History:
        made = History()
        each = {seed: {"variant": "max" if dear(seed - first) else "pro"} for seed in seeds}
        made.send(fleet.urls, key, seeds, tenant=tenant, user="ada", each=each.__getitem__)
        return made

    with Sampler(fleet.redis_url, tenant, WIDE | caps) as sampler:
        storming = asking(range(first, first + requests))
        settle_down(fleet, tenant)
        fleet.faults([])
        left = max(0, CAP - spent(fleet, level, tenant)) // PRICE
        topped_up, refused = History(), History()
        if left:
            topped_up.send(fleet.urls, key, range(first + 10_000, first + 10_000 + left), tenant=tenant, user="ada")
        refused.send(fleet.urls, key, [first + 20_000], tenant=tenant, user="ada")
        settle_down(fleet, tenant)
    calls = (*storming.calls, *topped_up.calls, *refused.calls)
    everything = History([*before, *calls])
    figures, found = None, list(sampler.violations)
    try:
        figures = check(fleet, *sorted({call.tenant for call in everything.calls}), caps=caps, history=everything)
    except Broken as broken:
        found += broken.violations
    if len(storming.answers) != requests:
        found.append(Violation("I2", "not every caller was answered"))
    if found or figures is None:
        raise Broken(found)
    return Outcome(storming, topped_up, refused.answers[0], calls, sampler, figures)


def spent(fleet: Fleet, level: Level, tenant: str = "acme") -> int:
    """What the level's window says is spent, in micro-dollars."""
    with fleet.redis as client:
        windows = list(client.scan_iter(f"kg:{{t:{tenant}}}:win:{level}:*:usd:*"))
        return sum(int(client.hget(name, "spent") or 0) for name in windows)
