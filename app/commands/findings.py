"""How ambiguous charges and a reconciliation are shown: as text, and as JSON. Pure.

Called by `ledger.py`. Amounts are in micro-dollars, with dollars beside them where people read them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from app.domain.bill import Line
from app.domain.pricing import usd
from app.domain.reconciliation import Entry, Findings, Verdict, totals

COLUMNS = (
    "dispatched", "ambiguous_since", "tenant", "key_id", "job_id", "reservation", "variant", "job_type", "micro_usd",
    "reason", "upstream_id",
)  # fmt: skip


def entry(one: Entry) -> dict[str, Any]:
    """One charge by `COLUMNS`."""
    values = (
        _time(one.dispatched), _time(one.since), one.tenant, one.key, one.job, one.reservation, one.variant, one.type,
        one.amount, one.reason, one.upstream_id,
    )  # fmt: skip
    return dict(zip(COLUMNS, values, strict=True))


def complete(found: Findings) -> bool:
    """Whether every charge that is old enough and every line is explained."""
    return not found.unexplained and not any(verdict.told == "cannot be told" for verdict in found.verdicts)


def dollars(micro: int) -> dict[str, Any]:
    """An amount in both units."""
    return {"micro_usd": micro, "usd": usd(micro)}


def as_json(found: Findings, ended: Mapping[str, int], *, applied: bool) -> str:
    """The whole report as one document."""
    document = {
        "object": "kontext.reconciliation", "complete": complete(found), "applied": applied,
        "entries": [_verdict(verdict) for verdict in found.verdicts],
        "unexplained": [_line(line) | {"why": why} for line, why in found.unexplained],
        "sums": {name: dollars(micro) for name, micro in _sums(found).items()},
        "ended": dict(zip(("now", "before"), _ended(ended), strict=True)),
    }  # fmt: skip
    return json.dumps(document, indent=1)


def as_text(found: Findings, ended: Mapping[str, int], *, applied: bool) -> str:
    """A line per charge and per line that nothing explains, then the sums."""
    text = [
        "\t".join(
            (v.told, _time(v.entry.dispatched), v.entry.tenant, v.entry.job, v.entry.variant, f"${usd(v.entry.amount)}",
             v.why, *([f"{_named(v.line)}, ${usd(v.line.micro_usd)}"] if v.line else ()))
        )
        for v in found.verdicts
    ]  # fmt: skip
    text += [
        "\t".join(("unexplained", _time(line.at_ms), line.type, f"${usd(line.micro_usd)}", why, _named(line)))
        for line, why in found.unexplained
    ]
    text += [f"{name.replace('_', ' ')}: ${usd(micro)}" for name, micro in _sums(found).items()]
    if applied:
        now, before = _ended(ended)
        text.append(f"{now} charges ended" + (f"; {before} had ended meanwhile" if before else ""))
    elif any(verdict.told in ("billed", "not billed") for verdict in found.verdicts):
        text.append("nothing was changed; --apply settles what was billed and refunds what was not")
    return "\n".join(text)


def _sums(found: Findings) -> dict[str, int]:
    told = {name: figures["micro_usd"] for name, figures in totals(found.verdicts).items()}
    lines = [verdict.line.micro_usd for verdict in found.verdicts if verdict.line]
    return {
        "bill": found.billed,
        "bill_explained_by_rows": found.explained,
        "bill_explained_by_ambiguous": sum(lines),
        "bill_that_cannot_be_told": found.undecided,
        "bill_unexplained": sum(line.micro_usd for line, _ in found.unexplained),
        "ambiguous_billed": told["billed"],
        "ambiguous_not_billed": told["not billed"],
        "ambiguous_that_cannot_be_told": told["cannot be told"],
        "ambiguous_too_young": told["too young"],
        "to_settle": sum(verdict.paid for verdict in found.verdicts),
        "drift": sum(verdict.drift for verdict in found.verdicts),
    }


def _ended(words: Mapping[str, int]) -> tuple[int, int]:
    """How many charges this run ended, and how many somebody else had ended by then."""
    done = words.get("done", 0)
    return done, sum(words.values()) - done


def _verdict(verdict: Verdict) -> dict[str, Any]:
    shown = entry(verdict.entry) | {"told": verdict.told, "why": verdict.why}
    if verdict.line is not None:
        shown |= {"line": _line(verdict.line), "paid_micro_usd": verdict.paid, "drift_micro_usd": verdict.drift}
    return shown


def _line(line: Line) -> dict[str, Any]:
    return {"n": line.n, "id": line.id, "at": _time(line.at_ms), "job_type": line.type, "micro_usd": line.micro_usd}


def _named(line: Line) -> str:
    return f"line {line.n}: {line.id}"


def _time(ms: int) -> str:
    at = datetime.fromtimestamp(ms / 1000, UTC)
    return at.isoformat(timespec="milliseconds").replace("+00:00", "Z")
