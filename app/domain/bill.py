"""A bill of the upstream as it was exported: CSV with a line of names, or JSON objects one a line. Pure.

Called by the `ledger reconcile` command; what a bill says of the ledger is `reconciliation.py`. Prodia documents no
format of an export, so every column can be renamed. A mistake is a ValueError with file, line and column.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any

from app.domain.pricing import parse_billed, parse_micro

# What a line must tell, and the column it is in unless it is renamed. Of the two prices one is enough.
COLUMNS = {"id": "id", "at": "at", "type": "type", "micro_usd": "micro_usd", "usd": "usd"}
_MAX_SHOWN = 64


@dataclass(frozen=True, slots=True)
class Line:
    """One billed job: its number in the file, the bill's own id, when, the job type and the price in micro-dollars."""

    n: int
    id: str
    at_ms: int
    type: str
    micro_usd: int


def parse_columns(given: Iterable[str]) -> dict[str, str]:
    """`id=Job ID` and the like over the default names. Raises ValueError."""
    columns = dict(COLUMNS)
    for text in given:
        name, sign, column = text.partition("=")
        if name not in COLUMNS or not (sign and column):
            raise ValueError(f"must be NAME=COLUMN, where NAME is one of {', '.join(COLUMNS)}")
        columns[name] = column
    return columns


def parse_time(text: str) -> int:
    """Unix milliseconds of a date, of an RFC 3339 time (UTC where it names no zone) or of Unix seconds.

    Raises:
        ValueError: none of these.
    """
    try:
        if re.fullmatch(r"[0-9]{9,10}(\.[0-9]{1,9})?", text, re.ASCII):
            return round(float(text) * 1000)
        if re.fullmatch(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", text, re.ASCII):
            at = datetime.combine(date.fromisoformat(text), datetime.min.time(), UTC)
        else:
            at = datetime.fromisoformat(text)
        return round((at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp() * 1000)
    except (ValueError, OverflowError):
        raise ValueError("must be a time such as 2026-11-24T12:00:00Z, a date or Unix seconds") from None


def parse(raw: bytes, *, file: str, columns: Mapping[str, str]) -> list[Line]:
    """The lines of a bill, in the file's order; by the file's name or else by its first character CSV or JSON lines.

    Raises:
        ValueError: with file, line and column.
    """
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"{file}: is not UTF-8 text") from None
    suffix = file.lower().rpartition(".")[2]
    as_json = suffix in ("jsonl", "ndjson") or (suffix != "csv" and text.lstrip()[:1] == "{")
    rows = _json_rows(text, file) if as_json else _csv_rows(text, file, columns)
    lines = []
    for n, row in rows:
        try:
            lines.append(_line(n, row, columns))
        except ValueError as error:
            raise ValueError(f"{file}, line {n}: {error}") from None
    return lines


def _json_rows(text: str, file: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    for n, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line, parse_float=str, parse_int=str, parse_constant=str)
        except (ValueError, RecursionError):
            raise ValueError(f"{file}, line {n}: is not JSON") from None
        if not isinstance(row, dict):
            raise ValueError(f"{file}, line {n}: is not a JSON object")
        yield n, row


def _csv_rows(text: str, file: str, columns: Mapping[str, str]) -> Iterator[tuple[int, Mapping[str, Any]]]:
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        names = reader.fieldnames or ()
        prices = {columns["micro_usd"], columns["usd"]}
        absent = next((name for name in ("id", "at", "type") if columns[name] not in names), None)
        if absent or not prices & set(names):
            wanted = absent or "micro_usd"
            raise ValueError(f"{file}, line 1: has no column `{columns[wanted]}`; say --column {wanted}=COLUMN")
        for row in reader:
            yield reader.line_num, row
    except csv.Error:
        raise ValueError(f"{file}, after line {reader.line_num}: is not CSV") from None


def _line(n: int, row: Mapping[str, Any], columns: Mapping[str, str]) -> Line:
    def text(name: str) -> str:
        value = row.get(columns[name])
        if not isinstance(value, str) or not (1 <= len(value) <= 200 and value.isprintable()):
            raise ValueError(f"`{columns[name]}` must have 1 to 200 printable characters")
        return value

    def read(name: str, how: Any) -> Any:
        try:
            return how(text(name))
        except ValueError as error:
            shown = row.get(columns[name])
            found = f", not {shown[:_MAX_SHOWN]!r}" if isinstance(shown, str) else ""
            raise ValueError(f"`{columns[name]}` {str(error).removeprefix(f'`{columns[name]}` ')}{found}") from None

    micro = (
        read("micro_usd", parse_micro) if row.get(columns["micro_usd"]) not in (None, "") else read("usd", parse_billed)
    )
    return Line(n, text("id"), read("at", parse_time), text("type"), micro)
