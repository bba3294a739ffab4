"""A tenant's books: every raw record that a ledger holds about its money, and what must hold of them at any instant.

It reads Redis by itself and knows the key schema only by its published form, so that no mistake hides in it.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import redis

Invariant = Literal[
    "I1", "I2", "I3", "I4", "I5", "I6", "I7", "I8", "I9", "I10", "I11", "I12", "usage", "metrics", "model"
]
MICRO = 1_000_000
OPEN = ("RESERVED", "DISPATCHING")
_SNAPSHOT = """
local cursor, found = '0', {}
repeat
  local page = redis.call('SCAN', cursor, 'MATCH', ARGV[1] .. '*', 'COUNT', 1000)
  cursor = page[1]
  for _, name in ipairs(page[2]) do
    local kind = string.match(string.sub(name, #ARGV[1] + 1), '^%l+')
    if kind == 'win' or kind == 'res' or kind == 'use' then found[name] = redis.call('HGETALL', name)
    elseif kind == 'conc' then found[name] = redis.call('SMEMBERS', name)
    elseif kind == 'rows' then found[name] = redis.call('XRANGE', name, '-', '+')
    elseif kind == 'open' or kind == 'ambiguous' then found[name] = redis.call('ZRANGE', name, 0, -1) end
  end
until cursor == '0'
local reply = {}
for name, value in pairs(found) do reply[#reply + 1] = {name, value} end
return reply
"""


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
        """All of them at one instant, in one script."""
        at, books = f"kg:{{t:{tenant}}}:", cls()
        found: Any = client.eval(_SNAPSHOT, 0, at)
        for name, value in ((raw.decode().removeprefix(at), value) for raw, value in found):
            kind, _, rest = name.partition(":")
            match kind:
                case "win":
                    window = _record(value)
                    books.windows[f"{at}{name}"] = (int(window.get("spent", 0)), int(window.get("reserved", 0)))
                case "use":
                    books.usage[f"{at}{name}"] = _record(value)
                case "res":
                    if (hold := _record(value))["state"] != "VOID":  # ended before it was made: it holds nothing
                        books.holds[rest] = hold
                case "conc":
                    books.places[rest] = _names(value)
                case "rows":
                    books.rows = [_record(row) for _, row in value]
                case "open":
                    books.outstanding = _names(value)
                case "ambiguous":
                    books.ambiguous = _names(value)
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
        told: dict[str, list[dict[str, str]]] = {}
        for row in self.rows:
            told.setdefault(row["id"], []).append(row)
        for name in told.keys() - self.holds.keys():
            yield f"a row of {name}, which is no reservation"
        for name, hold in self.holds.items():
            state, amount, rows = hold["state"], int(hold["amount"]), told.get(name, [])
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
        first = {row["id"]: row["from"] for row in reversed(self.rows)}
        unsent = {row["id"] for row in self.rows if "unsent" in row}
        for name, hold in self.holds.items():
            for window, add, kind in json.loads(hold["windows"]):
                if hold["state"] in OPEN:
                    reserved[window] += int(add)
                elif kind == "usd":
                    spent[window] += int(hold["paid"])
                elif first.get(name) == "DISPATCHING" and name not in unsent:
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
                "images": (row["from"] == "DISPATCHING") - ("unsent" in row),
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


def _record(flat: Any) -> dict[str, str]:
    words = [word.decode() for word in flat]
    return dict(zip(words[::2], words[1::2], strict=True))


def over(name: str, window: tuple[int, int], caps: Mapping[str, int]) -> list[Violation]:
    """I1 of one dollar window whose level has a cap."""
    level, _, kind, *_ = name.partition(":win:")[2].split(":")
    cap = caps.get(level) if kind == "usd" else None
    if cap is None or sum(window) <= cap:
        return []
    return [Violation("I1", f"{name}: spent {window[0]} + reserved {window[1]} > {cap}")]
