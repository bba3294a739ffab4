"""The checker: what must hold of a fleet at the end of a run, and while it lasts, by its ledger's raw records, by the
upstream's own bill, and by what its clients were told.

`check` asks all of it of a fleet at rest; `always` asks what needs neither rest nor bill nor clients, after every run.

    I1  at every instant, per window: spent + reserved <= cap
    I2  reserved = settled + refunded + ambiguous + outstanding, per reservation, per window and over all rows
    I3  settled <= billed upstream <= settled + ambiguous (exactly the sum of both where nothing was killed)
    I4  no job is billed twice
    I5  at rest nothing is open: no reservation, no place
    usage    a day's roll-up is the rows of the jobs reserved on it, group by group, and its day window's spent
    I6  under a key's name there is one job at most, one answer to the byte, one request, and nobody else's picture
    I7  a fingerprint is at most one job in flight: said by the runs that know their deaths
    I8  a picture that a tenant did not pay for now was paid for by that tenant before
    I9  every job carried a safety tolerance where its type has one
    I10 no secret, no key and no prompt in logs, metrics or names of Redis keys
    I11 nothing was sent while the ledger was unknown
    I12 after the faults everything is answered with a picture again
    metrics  the cost counters of all replicas say what their rows say; a reconciliation is of no replica

`model`, what the scripts should do, is said by the machine that plays them.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import redis
import yaml

from tests.faults.books import MICRO, OPEN, Books, Broken, Violation, over
from tests.faults.canaries import hits
from tests.faults.clients import KEPT, PROMPT, History
from tests.fleet import PEPPER, TOKEN, Fleet, Metrics, get_json, total, wait_until

__all__ = ["Books", "Broken", "Violation", "over"]

UNCAPPED = 1 << 63
LEASE, GRACE = 10, 5  # seconds until a process that is silent counts as dead, and until all it held has ended


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


def check(
    fleet: Fleet,
    *tenants: str,
    exact: bool = True,
    caps: Mapping[str, int] | None = None,
    history: History | None = None,
) -> Figures:
    """Everything that must hold once a fleet has come to rest.

    Args:
        exact: what was charged is what was billed. False where it may be charged as ambiguous and not be on the bill: a
            process was killed between the acknowledgement and the first byte, or the upstream only said 500.
        caps: level -> cap in micro-dollars, for I1.
        history: every request of the run; what its clients were told is then held against the books and the bill.

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
    if history is not None:
        found += _told(history, found_books, {row["seed"] for row in bill["rows"]})
        found += _named(history, found_books)
    found += _without_tolerance(fleet)
    metrics = {replica.log.name: replica.metrics() for replica in fleet.alive}
    found += _leaks(fleet, metrics)
    metric = _cost_metric(fleet, metrics)
    by_replicas = (row for one in found_books.values() for row in one.rows if row["by"] != "reconcile")  # no replica's
    delta = sum(int(row["delta"]) for row in by_replicas)
    if metric is not None and metric != delta:
        found.append(Violation("metrics", f"the cost counters say {metric}, the rows {delta}"))
    if found:
        raise Broken(found)
    refunds = sum(hold["state"] == "REFUNDED" for one in found_books.values() for hold in one.holds.values())
    return Figures(billed, int(bill["jobs"]), settled, ambiguous, refunds, metric)


def always(fleet: Fleet) -> None:
    """What holds at any instant and of whatever a row was after: I1 of the caps in the tenants file, I2 and the usage
    of every tenant, I9, and I10. Raises Broken."""
    with fleet.redis as client:
        tenants = sorted(name.decode() for name in client.smembers("kg:{ledger}:tenants"))
    files = [yaml.safe_load(text)["tenants"] for text in dict.fromkeys(fleet.policies)]
    found = []
    for tenant in tenants:
        caps, read = _caps(files, tenant), books(fleet, tenant)
        found += read.violations()
        found += [broken for name, window in read.windows.items() for broken in over(name, window, caps)]
    found += _without_tolerance(fleet)
    found += _leaks(fleet, {replica.log.name: replica.metrics() for replica in fleet.alive})
    if found:
        raise Broken(found)


def _caps(files: Iterable[Mapping[str, Any]], tenant: str) -> dict[str, int]:
    """Level -> the highest daily cap that its tenants files ever had, in micro-dollars; a level that once had none, or
    has one over another time too, counts as uncapped."""
    highest: dict[str, int] = {}
    for tenants in files:
        limits = tenants.get(tenant, {}).get("limits", {})
        budgets = {"tenant": limits.get("budgets", ()), "user": limits.get("per_user", {}).get("budgets", ())}
        for level, caps in budgets.items():
            daily = [int(Decimal(cap["usd"]) * MICRO) for cap in caps if cap["per"] == "day"]
            highest[level] = max(highest.get(level, 0), daily[0] if len(daily) == len(caps) == 1 else UNCAPPED)
    return highest


def _without_tolerance(fleet: Fleet) -> list[Violation]:
    absent = int(fleet.stats()["safety_tolerance_absent"])
    return [Violation("I9", f"{absent} jobs carried no safety tolerance")] if absent else []


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
    claimed += [
        (row["bill_line"], int(row["delta"]) + int(row["reserved"]) + int(row["drift"]))
        for row in rows
        if "bill_line" in row
    ]
    twice = [name for name, n in Counter(name for name, _ in claimed).items() if n > 1]
    wrong = [name for name, amount in claimed if billed.get(name) != amount]
    return [Violation("I3", f"upstream job {name} is settled twice") for name in twice] + [
        Violation("I3", f"upstream job {name} is settled and not billed so") for name in wrong
    ]


def _told(history: History, found: Mapping[str, Books], billed: set[object]) -> Iterable[Violation]:
    """What the clients were told, in the light of the books: nobody is told `no` and charged, or given what nobody
    paid."""
    may_be_billed = {call.seed for call in history.calls if call.outcome != "fail"}
    for seed in {call.seed for call in history.calls} & billed - may_be_billed:
        yield Violation("I3", f"seed {seed} is on the bill, and its client was told that nothing was charged")
    for tenant, books in found.items():
        calls = [call for call in history.calls if call.tenant == tenant]
        paid = Counter(row["job"] for row in books.rows if row["state"] == "SETTLED")
        for call in calls:
            if call.answer is None or call.outcome != "ok":
                continue
            if call.answer.source == "upstream" and paid[call.answer.job] != 1:
                yield Violation("I3", f"seed {call.seed} was delivered and settled {paid[call.answer.job]} times")
            elif not paid[call.answer.job]:
                yield Violation("I8", f"seed {call.seed} came from a job that {tenant} never paid for")
        unknown = sum(call.outcome == "unknown" for call in calls)
        if unknown < len(books.ambiguous):
            yield Violation("I3", f"{len(books.ambiguous)} jobs of {tenant} are ambiguous, {unknown} clients know")


def _named(history: History, found: Mapping[str, Books]) -> Iterable[Violation]:
    """I6. What was refused before anything was sent, or is still running, is no answer of a name."""
    answers: dict[str, set[tuple[str, str]]] = {}
    jobs: dict[str, set[str]] = {}
    for call in history.calls:
        if call.name and call.answer is not None and (call.answer.status, call.answer.code) in KEPT:
            answers.setdefault(call.name, set()).add((call.wish, call.answer.digest))
            if call.answer.source == "upstream":
                jobs.setdefault(call.answer.job, set()).add(call.name)
    for several in (told for told in answers.values() if len(told) > 1):
        wishes = len({wish for wish, _ in several})
        yield Violation("I6", f"{wishes} requests under one name were given {len(several)} answers")
    for job, names in jobs.items():
        if len(names) > 1:
            yield Violation("I6", f"{job} was bought under {len(names)} names")
    charged = Counter(
        (tenant, hold["name"])
        for tenant, books in found.items()
        for hold in books.holds.values()
        if "name" in hold and hold["state"] in ("SETTLED", "AMBIGUOUS")
    )
    for (tenant, _), n in charged.items():
        if n > 1:
            yield Violation("I6", f"one name of {tenant} was charged for {n} jobs")


def _leaks(fleet: Fleet, metrics: Mapping[str, Metrics]) -> Iterable[Violation]:
    """I10: what must not be told, in any encoding, looked for after every run in logs, metrics and names of keys; the
    row O-01 looks everywhere."""
    with fleet.redis as client:
        places = [("a name of a Redis key", b"\n".join(client.scan_iter(count=1000)))]
    places += [(replica.log.name, replica.log.read_bytes()) for replica in fleet.replicas]
    places += [(f"metrics of {name}", repr(told).encode()) for name, told in metrics.items()]
    secrets = {"token": TOKEN, "pepper": PEPPER, "prompt": PROMPT, "key": "kgw_live_"}
    for text in hits(places, {name: secret.encode() for name, secret in secrets.items()}):
        yield Violation("I10", text)


def none_lost(fleet: Fleet, tenant: str = "acme") -> int:
    """How many pictures a tenant has paid for, all of which are stored. Raises Broken."""
    rows = [row for row in books(fleet, tenant).rows if row["state"] == "SETTLED" and row.get("image")]
    with fleet.redis as client:
        gone = [row["job"] for row in rows if not client.exists(f"kg:{{t:{tenant}}}:result:{row['image'][4:44]}")]
    if gone:
        raise Broken([Violation("I3", f"the picture of {job} was paid and lost") for job in gone])
    return len(rows)


def received(fleet: Fleet) -> int:
    """Jobs that the upstream was sent so far; for I11, before and after."""
    return int(fleet.stats()["received"])


def sent_seeds(fleet: Fleet) -> Counter[int]:
    """How often each seed was sent."""
    jobs = get_json(fleet.upstream + "/sandbox/jobs?limit=200000")["jobs"]
    return Counter(job["config"]["seed"] for job in jobs)


def none_sent(fleet: Fleet, before: int) -> None:
    """I11. Raises Broken."""
    if (now := received(fleet)) != before:
        raise Broken([Violation("I11", f"{now - before} jobs were sent while the ledger was unknown")])


def recovers(fleet: Fleet, token: str, history: History, *, requests: int = 20, seconds: float = 10) -> float:
    """I12: seconds from now until every one of so many requests is answered with a picture. Raises Broken."""
    began, seed = time.monotonic(), 900_000 + len(history.calls)
    while True:
        took, asked = time.monotonic() - began, History()
        asked.send(fleet.urls, token, range(seed, seed + requests))
        history.calls += asked.calls
        if asked.outcomes() == {"ok": requests}:
            return took
        if took > seconds:
            raise Broken([Violation("I12", f"{took:.0f} s after the faults: {asked.statuses()}")])
        seed += requests
        time.sleep(0.05)


def _cost_metric(fleet: Fleet, metrics: Mapping[str, Metrics]) -> int | None:
    """Charged minus given back over all replicas; None when one of them is dead and its counters are lost."""
    if any(replica.process.poll() is not None for replica in fleet.replicas):
        return None
    cost, refunded = "kontext_gateway_cost_dollars_total", "kontext_gateway_refunded_dollars_total"
    return sum(round((total(told, cost) - total(told, refunded)) * MICRO) for told in metrics.values())


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
    """Watches I1 and I2 while a run lasts, in a thread, on its own connection: every dollar window as fast as it can,
    and all books at one instant once a second."""

    def __init__(self, url: str, tenant: str, caps: Mapping[str, int]) -> None:
        self._client = redis.Redis.from_url(url)
        self._tenant = tenant
        self._caps = caps
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.samples = self.instants = 0
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
        looked = 0.0
        while not self._stop.is_set():
            if time.monotonic() - looked > 1 and len(self.violations) < 10:
                self.violations += Books.read(self._client, self._tenant).violations()
                self.instants += 1
                looked = time.monotonic()
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
