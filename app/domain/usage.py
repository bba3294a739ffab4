"""What was spent, in groups: how a job's group is written, what a report may ask for, and a report's two forms.

Pure. The quota side writes days of counters, one per measure and group; a `Report` is fed with them and adds them up. A
group is the whole of key, end user, tags, variant and operation, so that every grouping adds up to the same total.
"""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import date, timedelta
from typing import Any, Literal

from app.domain.job import Job
from app.domain.pricing import usd
from app.errors import InvalidRequest

BETWEEN, WITHIN = "\x1f", "\x1e"  # neither is printable, so no text of a caller holds one
PERS = ("day", "month", "total")
GROUPS = ("key", "user", "tags", "variant", "operation", "source")
SOURCES = ("upstream", "cache", "coalesced")
FILTERS: Mapping[str, tuple[str, ...] | None] = {
    "key": None, "user": None, "tag": None, "variant": None, "operation": ("generate", "edit"), "source": SOURCES,
}  # fmt: skip
MAX_DAYS = 400
MAX_ROWS = 20_000
MAX_TEXT = 128
MONEY = ("spent", "ambiguous", "refunded", "saved")

# Measure as it is counted -> the source it belongs to, and the figure it adds to.
_MEASURES = {
    "images": ("upstream", "images"),
    "made": ("upstream", "upstream"),
    "spent": ("upstream", "spent"),
    "ambiguous": ("upstream", "ambiguous"),
    "refunded": ("upstream", "refunded"),
    "cache": ("cache", "cache"),
    "saved-cache": ("cache", "saved"),
    "coalesced": ("coalesced", "coalesced"),
    "saved-coalesced": ("coalesced", "saved"),
}
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def group(job: Job) -> str:
    """The group that a job is counted in, as it stands behind the measure in a counter's name."""
    request = job.request
    tags = WITHIN.join(sorted(request.tags))
    return BETWEEN.join((job.caller.key_id, request.user or "", tags, job.variant, job.operation))


@dataclass(frozen=True, slots=True)
class Query:
    """What a report is asked for: local dates from `first`, included, to `until`, not included."""

    first: date
    until: date
    per: Literal["day", "month", "total"]
    groups: tuple[str, ...]
    filters: Mapping[str, str]


def parse_query(given: Iterable[tuple[str, str]], *, today: date) -> Query:
    """The query in URL parameters; without dates it is the month of `today`. Raises InvalidRequest, with the field."""
    asked: dict[str, str] = {}
    for name, value in given:
        shown = name[:64].encode("ascii", "backslashreplace").decode()
        if name not in ("from", "to", "per", "group_by", *FILTERS):
            raise InvalidRequest(f"`{shown}` is not a parameter of this report.", field=shown)
        if name in asked:
            raise InvalidRequest(f"`{name}` is given more than once.", field=name)
        asked[name] = value
    month = today.replace(day=1)
    if "to" in asked:
        until = _date(asked, "to")
        first = _date(asked, "from") if "from" in asked else min(month, (until - timedelta(1)).replace(day=1))
    else:
        first = _date(asked, "from") if "from" in asked else month
        until = (max(first.replace(day=1), month) + timedelta(31)).replace(day=1)
    if first >= until:
        raise InvalidRequest("`to` must be after `from`: it is the first day that is left out.", field="to")
    if (until - first).days > MAX_DAYS:
        text = f"`from` and `to` may be at most {MAX_DAYS} days apart."
        raise InvalidRequest(text, field="to" if "to" in asked else "from", maximum_days=MAX_DAYS)
    groups = (
        tuple(_choice("group_by", name, GROUPS) for name in asked["group_by"].split(",")) if "group_by" in asked else ()
    )
    if len(set(groups)) != len(groups):
        raise InvalidRequest("`group_by` names a group more than once.", field="group_by")
    filters = {name: _filter(name, value) for name, value in asked.items() if name in FILTERS}
    return Query(first, until, _choice("per", asked.get("per", "day"), PERS), groups, filters)


def _date(asked: Mapping[str, str], name: str) -> date:
    text = asked[name]
    try:
        if not re.fullmatch(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", text, re.ASCII) or not "1970" <= text[:4] <= "9000":
            raise ValueError
        return date.fromisoformat(text)
    except ValueError:
        raise InvalidRequest(f"`{name}` must be a date such as 2026-11-24.", field=name) from None


def _choice(name: str, value: str, choices: tuple[str, ...]) -> Any:
    if value not in choices:
        raise InvalidRequest(f"`{name}` must be one of {', '.join(choices)}.", field=name, choices=list(choices))
    return value


def _filter(name: str, value: str) -> str:
    choices = FILTERS[name]
    if choices is not None:
        return str(_choice(name, value, choices))
    if not 1 <= len(value) <= MAX_TEXT or not value.isprintable():
        raise InvalidRequest(f"`{name}` must have 1 to {MAX_TEXT} printable characters.", field=name)
    return value


@dataclass(slots=True)
class Report:
    """Rows of figures, adding up as counters are fed in; amounts in micro-dollars."""

    tenant: str
    timezone: str
    query: Query
    rows: dict[tuple[str, ...], Counter[str]] = field(default_factory=dict)
    total: Counter[str] = field(default_factory=Counter)

    def add(self, day: date, name: str, value: int) -> None:
        """Count one counter of a day in.

        Raises:
            InvalidRequest: more rows than one report may have.
        """
        measure, *parts = name.split(BETWEEN)
        if measure not in _MEASURES:
            return
        source, figure = _MEASURES[measure]
        at = dict(zip(GROUPS, (*parts, source), strict=True))
        for wanted, value_wanted in self.query.filters.items():
            if value_wanted not in (at["tags"].split(WITHIN) if wanted == "tag" else (at[wanted],)):
                return
        row = (self._period(day), *(at[name] for name in self.query.groups))
        if row not in self.rows and len(self.rows) >= MAX_ROWS:
            text = f"This report has more than {MAX_ROWS} rows; take a shorter range or fewer groups."
            raise InvalidRequest(text, field="group_by" if self.query.groups else "from", maximum_rows=MAX_ROWS)
        self.rows.setdefault(row, Counter())[figure] += value
        self.total[figure] += value

    def document(self) -> dict[str, Any]:
        """The report as JSON."""
        query = self.query
        rows = [
            {"period": period}
            | {name: _shown(name, at) for name, at in zip(query.groups, ats, strict=True)}
            | _figures(row)
            for (period, *ats), row in sorted(self.rows.items())
        ]
        return {
            "object": "kontext.usage", "tenant": self.tenant, "timezone": self.timezone,
            "from": str(query.first), "to": str(query.until), "per": query.per, "group_by": list(query.groups),
            "filters": dict(query.filters), "rows": rows, "total": _figures(self.total),
        }  # fmt: skip

    def csv(self) -> str:
        """The rows as CSV (RFC 4180) under one line of names; texts that a spreadsheet would run start with a quote."""
        out = io.StringIO()
        write = csv.writer(out).writerow
        delivered = [f"delivered_{source}" for source in SOURCES]
        amounts = [f"{name}_{unit}" for name in MONEY for unit in ("micro_usd", "usd")]
        write(["period", *self.query.groups, "images", *delivered, *amounts])
        for (period, *ats), row in sorted(self.rows.items()):
            texts = [at.replace(WITHIN, ",") for at in ats]
            money = [cell for name in MONEY for cell in (row[name], usd(row[name]))]
            safe = [f"'{text}" if text.startswith(_FORMULA) else text for text in texts]
            write([period, *safe, row["images"], *(row[source] for source in SOURCES), *money])
        return out.getvalue()

    def _period(self, day: date) -> str:
        return {"day": str(day), "month": str(day)[:7], "total": "total"}[self.query.per]


def _shown(name: str, value: str) -> Any:
    if name == "tags":
        return value.split(WITHIN) if value else []
    return value or None


def _figures(row: Counter[str]) -> dict[str, Any]:
    amounts = {name: {"micro_usd": row[name], "usd": usd(row[name])} for name in MONEY}
    return {"images": row["images"], "delivered": {source: row[source] for source in SOURCES}, **amounts}
