"""What the sandbox received, kept so that a run of 100,000 jobs can be judged by a few numbers.

The job endpoint opens one `Entry` per request and closes it when its answer has been handed over. Prompts are never
kept: only their digest and length. Everything is in memory and bounded; the counters are exact for the whole run.
"""

import hashlib
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import orjson

from .jobtypes import JOB_TYPES
from .request import JobRequest

LONG = 256
"""A config value whose JSON is longer than this many bytes is logged by its digest and length."""


@dataclass(slots=True)
class Entry:
    """One received request, open until its answer is out."""

    n: int
    at: float
    request: JobRequest
    authorised: bool
    id: str | None = None
    outcome: str = "open"
    status: int | None = None
    fault: str | None = None
    micro_usd: int = 0
    in_progress: bool = False

    def row(self) -> bytes:
        request = self.request
        config = request.config if isinstance(request.config, dict) else None
        row = {
            "n": self.n,
            "at": self.at,
            "id": self.id,
            "type": request.type[:LONG] if isinstance(request.type, str) else None,
            "config": None if config is None else {key[:LONG]: digested(key, value) for key, value in config.items()},
            "config_keys": None if config is None else [key[:LONG] for key in config],
            "inputs": [
                {"name": part.name[:LONG], "filename": part.filename and part.filename[:LONG]}
                | {"content_type": part.content_type and part.content_type[:LONG]}
                | asdict(part.inspection)
                for part in request.uploads
            ],
            "accept": request.accept[:LONG],
            "price_requested": request.wants_price,
            "authorised": self.authorised,
            "unreadable": request.unreadable,
            "outcome": self.outcome,
            "status": self.status,
            "fault": self.fault,
            "micro_usd": self.micro_usd,
        }
        return orjson.dumps(row)


def digested(key: str, value: Any) -> Any:
    """A config value fit for the log: never the prompt, never anything long."""
    raw = value.encode() if isinstance(value, str) else orjson.dumps(value)
    if key != "prompt" and len(raw) <= LONG:
        return value
    length = len(value) if isinstance(value, str) else len(raw)
    return {"sha256": hashlib.sha256(raw).hexdigest(), "length": length}


@dataclass(slots=True)
class TypeCounts:
    """Counters of one job type. `safety_absent` and `safety_max` speak of requests as received."""

    received: int = 0
    completed: int = 0
    billed_micro_usd: int = 0
    safety_absent: int = 0
    safety_max: int | None = None


@dataclass(slots=True)
class Counts:
    """Counters since the start or the last reset; `in_progress` is the present."""

    received: int = 0
    in_progress: int = 0
    peak_in_progress: int = 0
    completed: int = 0
    billed: int = 0
    billed_micro_usd: int = 0
    unauthorised: int = 0
    safety_tolerance_absent: int = 0
    by_outcome: Counter[str] = field(default_factory=Counter)
    by_fault: Counter[str] = field(default_factory=Counter)
    by_type: dict[str, TypeCounts] = field(default_factory=dict)


class Log:
    """The last `keep` requests and the counters of all."""

    def __init__(self, keep: int) -> None:
        self._keep = keep
        self._next = 1
        self._first = 1
        self._entries: dict[int, Entry | bytes] = {}
        self.counts = Counts()

    def open(self, request: JobRequest, *, authorised: bool) -> Entry:
        entry = Entry(self._next, round(time.time(), 3), request, authorised)
        self._entries[entry.n] = entry
        self._next += 1
        while self._next - self._first > self._keep:
            self._entries.pop(self._first, None)
            self._first += 1
        self.counts.received += 1
        self.counts.unauthorised += not authorised
        if request.type in JOB_TYPES:
            self._count_safety(request)
        return entry

    def _count_safety(self, request: JobRequest) -> None:
        counts = self.of_type(str(request.type))
        counts.received += 1
        if not JOB_TYPES[str(request.type)].has_safety:
            return
        config = request.config if isinstance(request.config, Mapping) else {}
        tolerance = config.get("safety_tolerance")
        if tolerance is None:
            counts.safety_absent += 1
            self.counts.safety_tolerance_absent += 1
        elif isinstance(tolerance, int) and not isinstance(tolerance, bool):
            counts.safety_max = tolerance if counts.safety_max is None else max(counts.safety_max, tolerance)

    def of_type(self, name: str) -> TypeCounts:
        return self.counts.by_type.setdefault(name, TypeCounts())

    def accept(self, entry: Entry) -> None:
        """The job begins: from here to `close` it is in progress."""
        entry.in_progress = True
        self.counts.in_progress += 1
        self.counts.peak_in_progress = max(self.counts.peak_in_progress, self.counts.in_progress)

    def bill(self, entry: Entry, micro_usd: int) -> None:
        entry.micro_usd = micro_usd
        self.counts.billed += 1
        self.counts.billed_micro_usd += micro_usd
        self.of_type(str(entry.request.type)).billed_micro_usd += micro_usd

    def close(self, entry: Entry) -> None:
        """The answer is out, or its caller gone; the entry becomes its final, compact row."""
        if entry.in_progress:
            self.counts.in_progress -= 1
        self.counts.by_outcome[entry.outcome] += 1
        if entry.fault is not None:
            self.counts.by_fault[entry.fault] += 1
        if entry.outcome == "completed":
            self.counts.completed += 1
            self.of_type(str(entry.request.type)).completed += 1
        if entry.n in self._entries:
            self._entries[entry.n] = entry.row()

    def rows(self, after: int = 0, limit: int | None = None) -> list[Entry | bytes]:
        """Entries with a number above `after`, oldest first, at most `limit`."""
        first = max(self._first, after + 1)
        last = self._next if limit is None else min(self._next, first + limit)
        return [self._entries[n] for n in range(first, last) if n in self._entries]

    def reset(self) -> None:
        """Forgets rows and counters. Jobs in progress stay counted as such; numbers go on."""
        in_progress = self.counts.in_progress
        self.counts = Counts(in_progress=in_progress, peak_in_progress=in_progress)
        self._entries.clear()
        self._first = self._next
