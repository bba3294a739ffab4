"""What an upstream's bill says of charges whose outcome is unknown, and what of it no charge explains. Pure.

Called by the `ledger reconcile` command; nothing is written here. A line is one job's at most. An id decides where both
sides know it. Otherwise a line can be of any job of its type that was sent before and given up after it, within the
tolerance: jobs and lines that can be of each other form a group, and only the numbers of a group tell. Where they do
not tell, nothing is guessed. Times in Unix milliseconds, amounts in micro-dollars.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left, bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from app.domain import pricing
from app.domain.bill import Line

ANOTHER_ZONE = 10 * 60_000  # ms; no two time zones are nearer to each other
Told = Literal["billed", "not billed", "cannot be told", "too young"]
TOLD: tuple[Told, ...] = ("billed", "not billed", "cannot be told", "too young")


@dataclass(frozen=True, slots=True)
class Entry:
    """One ambiguous charge: its job was sent at `dispatched` and given up at `since`."""

    tenant: str
    reservation: str
    job: str
    key: str
    type: str
    variant: str
    dispatched: int
    since: int
    amount: int
    reason: str
    upstream_id: str


@dataclass(frozen=True, slots=True)
class Claim:
    """Another job that a line can be of, whose upstream id is not known: charged already, or still `open`."""

    type: str
    dispatched: int
    since: int
    open: bool


@dataclass(frozen=True, slots=True)
class Booked:
    """What the ledger says of a job on the bill: final state, the whole price it took note of, type, and when it was
    answered, if ever."""

    state: str
    billed: int
    type: str
    at: int | None


@dataclass(frozen=True, slots=True)
class Terms:
    """How a bill is read.

    Args:
        tolerance: how far clocks may differ, and how late after it was given up a job may be billed.
        older_than: entries that were given up after this moment are left alone.
        covers: first and last moment for which the bill holds every job.
        by_count: settle as many as there are lines where the numbers tell how many, and not which.
    """

    tolerance: int
    older_than: int
    covers: tuple[int, int]
    by_count: bool = False


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is known of one entry; with `billed`, by which line, what its tenant pays and the operator's drift."""

    entry: Entry
    told: Told
    why: str
    line: Line | None = None
    paid: int = 0
    drift: int = 0


@dataclass(slots=True)
class Findings:
    """Everything that the bill says; `unexplained` pairs a line with the reason."""

    verdicts: list[Verdict] = field(default_factory=list)
    unexplained: list[tuple[Line, str]] = field(default_factory=list)
    billed: int = 0
    explained: int = 0
    undecided: int = 0

    def settled(self, line: Line, entry: Entry, why: str) -> Verdict:
        """An entry is billed by this line."""
        price = pricing.actual(entry.amount, line.micro_usd)
        verdict = Verdict(entry, "billed", why, line, price.paid, price.drift)
        self.verdicts.append(verdict)
        return verdict

    def tell(self, entries: Iterable[Entry], told: Told, why: str) -> None:
        """Entries without a line."""
        self.verdicts += [Verdict(entry, told, why) for entry in entries]


def reconcile(
    entries: Sequence[Entry], lines: Sequence[Line], booked: Mapping[str, Booked], claims: Iterable[Claim], terms: Terms
) -> Findings:
    """Hold a bill against every tenant's ambiguous entries.

    Args:
        booked: by id, what the ledger's rows say of jobs that are on the bill.
        claims: jobs without a known id that are not ambiguous.
    """
    found = Findings(billed=sum(line.micro_usd for line in lines))
    young = [entry for entry in entries if entry.since > terms.older_than]
    found.tell(young, "too young", "its job may still be billed")
    free = list(_not_booked(lines, booked, found))
    by_id = {line.id: line for line in free}
    known = {entry.upstream_id for entry in entries} - {""}
    speaks = any(line.id in known or line.id in booked for line in lines)  # whether its ids are those of the upstream
    others = [*claims, *(Claim(e.type, e.dispatched, e.since, True) for e in young if e.upstream_id not in by_id)]
    strange = _strange(lines, booked, {entry.type for entry in entries} | {job.type for job in others})
    waiting = []
    for entry in (entry for entry in entries if entry.since <= terms.older_than):
        if line := by_id.get(entry.upstream_id):
            found.settled(line, entry, "by its id")
        elif entry.upstream_id and speaks and not strange:
            _absent(entry, terms, found)
        else:
            waiting.append(entry)
    unmatched = [line for line in free if line.id not in known]
    if strange:
        found.tell(waiting, "cannot be told", strange)
        found.unexplained += [(line, strange) for line in unmatched]
    else:
        for group in _groups([*waiting, *others], unmatched, terms.tolerance):
            _judge(group, terms, found)
    found.verdicts.sort(key=lambda verdict: (verdict.entry.dispatched, verdict.entry.reservation))
    found.unexplained.sort(key=lambda pair: pair[0].n)
    return found


def _strange(lines: Sequence[Line], booked: Mapping[str, Booked], types: set[str]) -> str | None:
    """Why types and times of a bill cannot be trusted to be the ledger's: judged by the lines whose jobs it knows."""
    both = [(line, booked[line.id]) for line in lines if line.id in booked]
    if any(line.type != book.type for line, book in both) or (
        lines and not both and types.isdisjoint(line.type for line in lines)
    ):
        return "the bill names job types otherwise than the ledger"
    apart = [abs(line.at_ms - book.at) for line, book in both if book.at is not None]
    if apart and min(apart) > ANOTHER_ZONE:
        return "the bill's times are not the ledger's"
    return None


def _not_booked(lines: Iterable[Line], booked: Mapping[str, Booked], found: Findings) -> Iterator[Line]:
    """The lines that the ledger does not know by id; of the others, whether it says the same."""
    seen: set[str] = set()
    for line in lines:
        book = booked.get(line.id)
        if line.id in seen:
            found.unexplained.append((line, "this id is on the bill already"))
        elif book is None:
            yield line
        elif book.state == "SETTLED" and book.billed == line.micro_usd:
            found.explained += line.micro_usd
        elif book.state == "SETTLED":
            found.unexplained.append((line, f"the ledger has it at ${pricing.usd(book.billed)}"))
        else:
            found.unexplained.append((line, "the ledger has it as refunded"))
        seen.add(line.id)


def _absent(entry: Entry, terms: Terms, found: Findings) -> None:
    low, high = entry.dispatched - terms.tolerance, entry.since + terms.tolerance
    if terms.covers[0] <= low and high <= terms.covers[1]:
        found.tell([entry], "not billed", "no line can be its")
    else:
        found.tell([entry], "cannot be told", "no line can be its, and the bill does not say that it reaches so far")


@dataclass(slots=True)
class _Group:
    """Jobs and lines of one type that can be of each other; `wide` is the tolerance."""

    jobs: list[Entry | Claim]
    lines: list[Line]
    wide: int

    @property
    def entries(self) -> list[Entry]:
        return [job for job in self.jobs if isinstance(job, Entry)]

    def pairs(self) -> list[tuple[Line, Entry | Claim]]:
        """As many lines as possible with a job each: for each line, in order of time, the job that ends first."""
        jobs, waiting, pairs = sorted(self.jobs, key=lambda job: job.dispatched), list[tuple[int, int]](), []
        at = 0
        for line in sorted(self.lines, key=lambda line: line.at_ms):
            while at < len(jobs) and jobs[at].dispatched - self.wide <= line.at_ms:
                heapq.heappush(waiting, (jobs[at].since + self.wide, at))
                at += 1
            while waiting and waiting[0][0] < line.at_ms:
                heapq.heappop(waiting)
            if waiting:
                pairs.append((line, jobs[heapq.heappop(waiting)[1]]))
        return pairs

    def one_price(self) -> bool:
        """Whether every entry pays the same whichever of the lines is its."""
        prices = {line.micro_usd for line in self.lines}
        return all(len({min(price, entry.amount) for price in prices}) <= 1 for entry in self.entries)


def _groups(jobs: Iterable[Entry | Claim], lines: Iterable[Line], wide: int) -> Iterator[_Group]:
    """Jobs and lines by type, and by windows that share a line."""
    of_type: dict[str, _Group] = defaultdict(lambda: _Group([], [], wide))
    for job in jobs:
        of_type[job.type].jobs.append(job)
    for line in lines:
        of_type[line.type].lines.append(line)
    for whole in of_type.values():
        points = sorted(whole.lines, key=lambda line: line.at_ms)
        times = [line.at_ms for line in points]
        spans = [
            (bisect_left(times, job.dispatched - wide), bisect_right(times, job.since + wide), job)
            for job in whole.jobs
        ]
        group, done = _Group([], [], wide), 0  # lines before `done` are in a group
        for first, last, job in sorted(spans, key=lambda span: span[:2]):
            if first == last:
                yield _Group([job], [], wide)
                continue
            if first >= done:
                yield group
                yield _Group([], points[done:first], wide)
                group, done = _Group([], [], wide), first
            group.jobs.append(job)
            group.lines += points[done:last]
            done = max(done, last)
        yield group
        yield _Group([], points[done:], wide)


def _judge(group: _Group, terms: Terms, found: Findings) -> None:
    entries, lines, pairs = group.entries, group.lines, group.pairs()
    if not lines:
        for entry in entries:
            _absent(entry, terms, found)
    elif not group.jobs:
        found.unexplained += [(line, "no charge of the ledger can be its") for line in lines]
    elif not entries or (len(pairs) == len(group.jobs) == len(lines) and group.one_price()):
        _paired(pairs, "by type and time", lines, found)
    elif terms.by_count and (why := _uncountable(group, terms)) is None:
        _paired(pairs, "by count", lines, found)
        taken = {job.reservation for _, job in pairs if isinstance(job, Entry)}
        found.tell([entry for entry in entries if entry.reservation not in taken], "not billed", "by count")
    else:
        doubt = f"; {why}" if terms.by_count and why else ""
        counts = f"{len(lines)} lines for {len(group.jobs)} jobs of this type and time"
        found.tell(entries, "cannot be told", counts + doubt)
        found.undecided += sum(line.micro_usd for line in lines)


def _paired(pairs: Sequence[tuple[Line, Entry | Claim]], why: str, lines: Sequence[Line], found: Findings) -> None:
    """Settle the entries of these pairs; a line without a job is not explained."""
    for line, job in pairs:
        if isinstance(job, Entry):
            found.settled(line, job, why)
        else:
            found.explained += line.micro_usd
    used = {line.n for line, _ in pairs}
    found.unexplained += [(line, "more lines than charges") for line in lines if line.n not in used]


def _uncountable(group: _Group, terms: Terms) -> str | None:
    """Why the sums of a group are not certain either."""
    entries, lines = group.entries, group.lines
    low = min(entry.dispatched for entry in entries) - terms.tolerance
    high = max(entry.since for entry in entries) + terms.tolerance
    if len({entry.tenant for entry in entries}) > 1:
        return "they are of several tenants"
    if len(entries) < len(group.jobs):
        return "others of them are charged or under way"
    if not (terms.covers[0] <= low and high <= terms.covers[1]):
        return "the bill does not say that it reaches so far"
    if len({entry.amount for entry in entries}) > 1 or (len(lines) > len(entries) and not group.one_price()):
        return "their prices differ"
    return None


def totals(verdicts: Iterable[Verdict]) -> dict[Told, Counter[str]]:
    """Number and amount of the entries by what was told."""
    sums: dict[Told, Counter[str]] = {told: Counter(entries=0, micro_usd=0) for told in TOLD}
    for verdict in verdicts:
        sums[verdict.told].update(entries=1, micro_usd=verdict.entry.amount)
    return sums
