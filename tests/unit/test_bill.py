"""An exported bill is read as it stands, under any names of columns, and a mistake in it has its place."""

from __future__ import annotations

import time

import pytest

from app.domain.bill import COLUMNS, Line, parse, parse_columns, parse_time
from app.sandbox.bill import Charge, as_csv

TYPE = "inference.flux-kontext.pro.txt2img.v2"
AT = 1_795_521_600_125  # 2026-11-24T12:00:00.125Z
CHARGE = Charge("job-1", "2026-11-24T12:00:00.125Z", TYPE, 40_000, "completed", 7, "ab" * 32, None)
WANTED = [Line(2, "job-1", AT, TYPE, 40_000)]


@pytest.mark.parametrize("file", ["bill.csv", "bill"])
def test_the_csv_of_the_stand_in_is_read_as_it_is(file: str) -> None:
    assert parse(as_csv([CHARGE.line()]).encode(), file=file, columns=COLUMNS) == WANTED


@pytest.mark.parametrize("file", ["bill.jsonl", "bill.ndjson", "bill", "bill.txt"])
def test_the_json_lines_of_the_stand_in_are_read_as_they_are(file: str) -> None:
    assert parse(b"\n" + CHARGE.line(), file=file, columns=COLUMNS) == WANTED


def test_columns_can_be_renamed_and_dollars_taken_for_micro_dollars() -> None:
    columns = parse_columns(["id=Job", "at=Created (UTC)", "type=Model", "usd=Amount"])
    raw = f"\ufeffModel,Job,Amount,Created (UTC)\r\n{TYPE},job-1,0.0399991,2026-11-24 12:00:00.125\r\n".encode()
    assert parse(raw, file="export.csv", columns=columns) == WANTED  # a fraction of a micro-dollar is rounded up


@pytest.mark.parametrize(
    "text",
    ["2026-11-24T12:00:00.125Z", "2026-11-24T13:00:00.125+01:00", "2026-11-24 12:00:00.125", "1795521600.125"],
)
def test_a_time_is_read_to_the_millisecond_wherever_the_command_runs(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    monkeypatch.undo()
    try:
        assert parse_time(text) == AT
    finally:
        time.tzset()
    assert parse_time(text) == AT


def test_a_date_is_its_first_moment_in_utc() -> None:
    assert parse_time("2026-11-24") == AT - 125 - 12 * 3_600_000


HEAD = b"id,at,type,micro_usd\n"


@pytest.mark.parametrize(
    ("file", "raw", "told"),
    [
        ("b.csv", b"", "b.csv, line 1: has no column `id`; say --column id=COLUMN"),
        ("b.csv", b"id,at,type\n", "b.csv, line 1: has no column `micro_usd`; say --column micro_usd=COLUMN"),
        ("b.csv", HEAD + b"j,today,t,1\n", "b.csv, line 2: `at` must be a time such as .*, not 'today'"),
        ("b.csv", HEAD + b"j,2026-11-24,t,-1\n", "b.csv, line 2: `micro_usd` must be a whole number of micro-dollars"),
        ("b.csv", HEAD + b"j,2026-11-24,t,1e9\n", "b.csv, line 2: `micro_usd` must be a whole number"),
        ("b.csv", HEAD + b"j,2026-11-24\n", "b.csv, line 2: `usd` must have 1 to 200 printable characters"),
        ("b.csv", HEAD + b",2026-11-24,t,1\n", "b.csv, line 2: `id` must have 1 to 200 printable characters"),
        ("b.csv", HEAD + b'"j', "b.csv, after line 1: is not CSV"),
        ("b.csv", b"\xff", "b.csv: is not UTF-8 text"),
        ("b.jsonl", b'{"id": 1\n', "b.jsonl, line 1: is not JSON"),
        ("b.jsonl", b"[]\n", "b.jsonl, line 1: is not a JSON object"),
        ("b.jsonl", b'{"id": ["j"], "at": 1795521600, "type": "t", "usd": 1}', "b.jsonl, line 1: `id` must have"),
        ("b.jsonl", b'{"id": "j", "at": 1795521600, "type": "t", "usd": NaN}', "line 1: `usd` must be dollars .*'NaN'"),
    ],
)
def test_a_mistake_is_told_with_file_line_and_column(file: str, raw: bytes, told: str) -> None:
    with pytest.raises(ValueError, match=f"{told}"):
        parse(raw, file=file, columns=COLUMNS)


@pytest.mark.parametrize("text", ["id", "id=", "=id", "price=amount"])
def test_only_what_a_line_must_tell_can_be_renamed(text: str) -> None:
    with pytest.raises(ValueError, match="must be NAME=COLUMN, where NAME is one of id, at, type, micro_usd, usd"):
        parse_columns([text])
