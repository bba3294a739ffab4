"""The invariants of money, held against a ledger's raw records and against the upstream's own bill.

    I1  at every instant, per window: spent + reserved <= cap
    I2  reserved = settled + refunded + ambiguous + outstanding, per reservation, per window and over all rows
    I3  settled <= billed upstream <= settled + ambiguous (exactly the sum of both where nothing was killed)
    I4  no job is billed twice
    I5  at rest nothing is open: no reservation, no place
    usage    a day's roll-up is the rows of the jobs reserved on it, group by group, and its day window's spent
    metrics  the cost counters of all replicas say what the rows say

It reads Redis by itself and knows the key schema only by its published form, so that no mistake hides in it.
I7, one job per flight, and `model`, what the scripts should do, are said by the runs that know them.
"""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import redis

from tests.fleet import Fleet, wait_until

Invariant = Literal["I1", "I2", "I3", "I4", "I5", "I7", "usage", "metrics", "model"]
MICRO = 1_000_000
OPEN = ("RESERVED", "DISPATCHING")


@dataclass(frozen=True)
class Violation:
    """One broken invariant and where it shows."""

    invariant: Invariant
    text: str


class Broken(AssertionError):
    """At least one invariant does not hold."""

    def __init__(self, violations: Iterable[Violation]) -> None:
        self.violations = tuple(violations)
        super().__init__("\n".join(f"{broken.invariant}: {broken.text}" for broken in self.violations))

    @property
    def invariants(self) -> set[str]:
        """The names of what is broken."""
        return {broken.invariant for broken in self.violations}


@dataclass
class Books:
    """Everything a ledger holds about one tenant's money, as text and whole numbers. Amounts in micro-dollars."""

    windows: dict[str, tuple[int, int]] = field(default_factory=dict)
    usage: dict[str, dict[str, str]] = field(default_factory=dict)
    holds: dict[str, dict[str, str]] = field(default_factory=dict)
    rows: list[dict[str, str]] = field(default_factory=list)
    outstanding: set[str] = field(default_factory=set)
    ambiguous: set[str] = field(default_factory=set)
    places: dict[str, set[str]] = field(default_factory=dict)

    @classmethod
    def read(cls, client: redis.Redis, tenant: str) -> Books:
        """Read them one key after the other: exact only while nothing moves."""
        at, books = f"kg:{{t:{tenant}}}:", cls()
        for name in (raw.decode() for raw in client.scan_iter(f"{at}*", count=1000)):
            kind, _, rest = name.removeprefix(at).partition(":")
            if kind == "win":
                spent, reserved = client.hmget(name, "spent", "reserved")
                books.windows[name] = (int(spent or 0), int(reserved or 0))
            elif kind == "use":
                books.usage[name] = _text(client.hgetall(name))
            elif kind == "res":
                books.holds[rest] = _text(client.hgetall(name))
            elif kind == "conc":
                books.places[rest] = _names(client.smembers(name))
        found: Any = client.xrange(f"{at}rows")
        books.rows = [_text(row) for _, row in found]
        books.outstanding = _names(client.zrange(f"{at}open", 0, -1))
        books.ambiguous = _names(client.zrange(f"{at}ambiguous", 0, -1))
        return books

    def sum(self, state: str) -> int:
        """What reservations in a final state were charged."""
        return sum(int(hold.get("paid", 0)) for hold in self.holds.values() if hold["state"] == state)

    @property
    def delta(self) -> int:
        """What all rows add up to."""
        return sum(int(row["delta"]) for row in self.rows)

    def violations(self) -> list[Violation]:
        """I2 of every reservation, window and row, and usage. Holds at any instant, not only at rest."""
        balance = [Violation("I2", text) for text in (*self._holds(), *self._windows(), *self._sets())]
        return balance + [Violation("usage", text) for text in self._usage()]

    def _holds(self) -> Iterable[str]:
        for name in {row["id"] for row in self.rows} - self.holds.keys():
            yield f"a row of {name}, which is no reservation"
        for name, hold in self.holds.items():
            state, amount, rows = hold["state"], int(hold["amount"]), [row for row in self.rows if row["id"] == name]
            path = [row["state"] for row in rows]
            legal = {
                (),
                ("SETTLED",),
                ("REFUNDED",),
                ("AMBIGUOUS",),
                ("AMBIGUOUS", "SETTLED"),
                ("AMBIGUOUS", "REFUNDED"),
            }
            if tuple(path) not in legal or (path[-1] if path else "") != ("" if state in OPEN else state):
                yield f"{name} is {state} and its rows say {path}"
            charged = sum(int(row["delta"]) for row in rows)
            expected = {"AMBIGUOUS": amount, "REFUNDED": 0}.get(state, int(hold.get("paid", 0)))
            if not 0 <= charged <= amount or charged != expected:
                yield f"{name} is {state} over {amount} and its rows add up to {charged}"

    def _windows(self) -> Iterable[str]:
        spent: Counter[str] = Counter()
        reserved: Counter[str] = Counter()
        first = {row["id"]: row["from"] for row in reversed(self.rows) if "unsent" not in row}
        for name, hold in self.holds.items():
            for window, add, kind in json.loads(hold["windows"]):
                if hold["state"] in OPEN:
                    reserved[window] += int(add)
                elif kind == "usd":
                    spent[window] += int(hold["paid"])
                elif first.get(name) == "DISPATCHING":
                    spent[window] += int(add)
        for window in {*self.windows, *spent, *reserved}:
            says, due = self.windows.get(window, (0, 0)), (spent[window], reserved[window])
            if says != due:
                yield f"{window} says (spent, reserved) = {says}; its reservations say {due}"

    def _usage(self) -> Iterable[str]:
        due: dict[str, Counter[str]] = {}
        for row in self.rows:
            if (hold := self.holds.get(row["id"])) is None:
                continue
            amount, was = int(row["reserved"]), int(row["reserved"]) if row["from"] == "AMBIGUOUS" else 0
            day = due.setdefault(hold["usage"], Counter())
            for figure, by in {
                "images": row["from"] == "DISPATCHING" and "unsent" not in row,
                "made": row["state"] == "SETTLED" and "image" in row,
                "spent": int(row["delta"]),
                "ambiguous": (amount if row["state"] == "AMBIGUOUS" else 0) - was,
                "refunded": amount if row["state"] == "REFUNDED" else 0,
            }.items():
                day[f"{figure}\x1f{hold['group']}"] += by
        for name in {*self.usage, *due}:
            says = {at: int(value) for at, value in self.usage.get(name, {}).items() if _paid(at) and int(value)}
            wanted = {at: value for at, value in due.get(name, Counter()).items() if value}
            if says != wanted:
                yield f"{name} says {says}; its rows say {wanted}"
            window = self.windows.get(name.replace(":use:", ":win:tenant:all:usd:day:"))
            spent = sum(int(value) for at, value in self.usage.get(name, {}).items() if at.startswith("spent\x1f"))
            if window is not None and window[0] != spent:
                yield f"{name} has {spent} spent, the window of that day {window[0]}"

    def _sets(self) -> Iterable[str]:
        states = {name: hold["state"] for name, hold in self.holds.items()}
        if self.outstanding != {name for name, state in states.items() if state in OPEN}:
            yield "the set of outstanding reservations is not that of the reservations"
        if self.ambiguous != {name for name, state in states.items() if state == "AMBIGUOUS"}:
            yield "the set of ambiguous reservations is not that of the reservations"
        taken = {name: json.loads(hold["places"]) for name, hold in self.holds.items() if hold["state"] in OPEN}
        for place, members in self.places.items():
            if members != {
                name for name, places in taken.items() if any(at.endswith(f"conc:{place}") for at in places)
            }:
                yield f"the places of {place} are not taken by those who hold them"


def _paid(counter: str) -> bool:
    """Whether a counter of a day is about jobs; the others count what was delivered for nothing."""
    return counter.partition("\x1f")[0] in ("images", "made", "spent", "ambiguous", "refunded")


def _names(members: Any) -> set[str]:
    return {member.decode() for member in members}


def _text(record: Any) -> dict[str, str]:
    return {name.decode(): value.decode() for name, value in record.items()}


def books(fleet: Fleet, tenant: str = "acme") -> Books:
    """The books of a fleet's tenant as they are now."""
    client = fleet.redis
    read = Books.read(client, tenant)
    client.close()
    return read


def in_progress(fleet: Fleet) -> int:
    """Jobs that the upstream works on."""
    return int(fleet.stats()["in_progress"])


@dataclass(frozen=True)
class Figures:
    """What a run came to, in micro-dollars and counts."""

    bill: int
    jobs: int
    settled: int
    ambiguous: int
    refunds: int
    cost_metric: int | None

    def __str__(self) -> str:
        metric = "-" if self.cost_metric is None else f"{self.cost_metric:,}"
        return (
            f"bill {self.bill:,} ({self.jobs} jobs) = settled {self.settled:,} + ambiguous {self.ambiguous:,} "
            f"micro-dollars; {self.refunds} refunds; cost metric {metric}"
        )


def check(fleet: Fleet, *tenants: str, exact: bool = True, caps: Mapping[str, int] | None = None) -> Figures:
    """Everything that must hold once a fleet has come to rest.

    Args:
        exact: what was charged is what was billed. False where it may be charged as ambiguous and not be on the bill: a
            process was killed between the acknowledgement and the first byte, or the upstream only said 500.
        caps: level -> cap in micro-dollars, for I1.

    Raises:
        Broken: with every violation found.
    """
    found_books = {tenant: books(fleet, tenant) for tenant in tenants}
    bill, found = fleet.bill(), []
    for tenant, one in found_books.items():
        found += one.violations()
        found += _at_rest(tenant, one)
        found += [broken for name, window in one.windows.items() for broken in over(name, window, caps or {})]
    settled, ambiguous = (sum(one.sum(state) for one in found_books.values()) for state in ("SETTLED", "AMBIGUOUS"))
    billed = int(bill["micro_usd"])
    paid_by_us = sum(int(row.get("drift", 0)) for one in found_books.values() for row in one.rows)
    owed = billed - paid_by_us
    if not settled <= owed <= settled + ambiguous or (exact and owed != settled + ambiguous):
        found.append(Violation("I3", f"billed {owed}, settled {settled}, ambiguous {ambiguous}"))
    found += _same_jobs(bill, [row for one in found_books.values() for row in one.rows])
    twice = Counter((row["type"], row["prompt_sha256"], row["seed"]) for row in bill["rows"])
    found += [Violation("I4", f"seed {job[2]} was billed {n} times") for job, n in twice.items() if n > 1]
    metric = _cost_metric(fleet)
    delta = sum(one.delta for one in found_books.values())
    if metric is not None and metric != delta:
        found.append(Violation("metrics", f"the cost counters say {metric}, the rows {delta}"))
    if found:
        raise Broken(found)
    refunds = sum(hold["state"] == "REFUNDED" for one in found_books.values() for hold in one.holds.values())
    return Figures(billed, int(bill["jobs"]), settled, ambiguous, refunds, metric)


def _at_rest(tenant: str, books: Books) -> list[Violation]:
    found = [
        Violation("I5", f"{name} is still {hold['state']}")
        for name, hold in books.holds.items()
        if hold["state"] in OPEN
    ]
    found += [
        Violation("I5", f"places of {place} are still taken") for place, members in books.places.items() if members
    ]
    if books.outstanding:
        found.append(Violation("I5", f"{len(books.outstanding)} reservations of {tenant} are still outstanding"))
    return found


def _same_jobs(bill: Any, rows: list[dict[str, str]]) -> list[Violation]:
    """Each settled row that names an upstream job is on the bill once, for the same money."""
    billed = {row["id"]: int(row["micro_usd"]) for row in bill["rows"]}
    claimed = [
        (row["upstream_id"], int(row["delta"]) + int(row.get("drift", 0)))
        for row in rows
        if row["state"] == "SETTLED" and row["from"] == "DISPATCHING" and row.get("upstream_id")
    ]
    twice = [name for name, n in Counter(name for name, _ in claimed).items() if n > 1]
    wrong = [name for name, amount in claimed if billed.get(name) != amount]
    return [Violation("I3", f"upstream job {name} is settled twice") for name in twice] + [
        Violation("I3", f"upstream job {name} is settled and not billed so") for name in wrong
    ]


def _cost_metric(fleet: Fleet) -> int | None:
    """Charged minus given back over all replicas; None when one of them is dead and its counters are lost."""
    if any(replica.process.poll() is not None for replica in fleet.replicas):
        return None
    cost, refunded = "kontext_gateway_cost_dollars_total", "kontext_gateway_refunded_dollars_total"
    return sum(round((replica.total(cost) - replica.total(refunded)) * MICRO) for replica in fleet.replicas)


def over(name: str, window: tuple[int, int], caps: Mapping[str, int]) -> list[Violation]:
    """I1 of one dollar window whose level has a cap."""
    level, _, kind, *_ = name.partition(":win:")[2].split(":")
    cap = caps.get(level) if kind == "usd" else None
    if cap is None or sum(window) <= cap:
        return []
    return [Violation("I1", f"{name}: spent {window[0]} + reserved {window[1]} > {cap}")]


def settle_down(fleet: Fleet, tenant: str, seconds: float = 20) -> None:
    """Wait until the upstream and the tenant's ledger are at rest; if they do not come to it, the checker says so."""
    client = fleet.redis
    try:
        wait_until(lambda: not client.zcard(f"kg:{{t:{tenant}}}:open") and not fleet.stats()["in_progress"], seconds)
    except AssertionError:
        return
    finally:
        client.close()


class Sampler:
    """Watches I1 while a run lasts: reads every dollar window as fast as it can, in a thread, on its own connection."""

    def __init__(self, url: str, tenant: str, caps: Mapping[str, int]) -> None:
        self._client = redis.Redis.from_url(url)
        self._tenant = tenant
        self._caps = caps
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.samples = 0
        self.highest: dict[str, int] = {}
        self.violations: list[Violation] = []

    def __enter__(self) -> Sampler:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(10)
        self._client.close()

    def _run(self) -> None:
        names: list[str] = []
        while not self._stop.is_set():
            if self.samples % 200 == 0 or len(names) < len(self._caps):
                names = [
                    raw.decode() for raw in self._client.scan_iter(f"kg:{{t:{self._tenant}}}:win:*:usd:*", count=1000)
                ]
            for name in names:
                spent, reserved = self._client.hmget(name, "spent", "reserved")
                window = (int(spent or 0), int(reserved or 0))
                level = name.partition(":win:")[2].partition(":")[0]
                self.highest[level] = max(self.highest.get(level, 0), sum(window))
                if len(self.violations) < 10:
                    self.violations += over(name, window, self._caps)
                self.samples += 1
            if not names:
                self._stop.wait(0.005)
