"""A report adds counters up by period and group, refuses what it does not understand, and is written twice alike."""

from __future__ import annotations

import csv
import io
from datetime import date

import pytest

from app.domain import usage
from app.domain.usage import BETWEEN, WITHIN, Report, parse_query
from app.errors import InvalidRequest

TODAY = date(2026, 11, 24)
COUNTERS = [
    (date(2026, 10, 31), "spent", "k1", "ada", ("web",), "pro", "edit", 40_000),
    (date(2026, 11, 1), "spent", "k1", "ada", ("a", "web"), "pro", "edit", 40_000),
    (date(2026, 11, 1), "images", "k1", "ada", ("a", "web"), "pro", "edit", 1),
    (date(2026, 11, 1), "spent", "k2", "", (), "max", "generate", 80_000),
    (date(2026, 11, 2), "spent", "k2", "=cmd()", (), "max", "generate", 80_000),
    (date(2026, 11, 2), "ambiguous", "k2", "=cmd()", (), "max", "generate", 80_000),
    (date(2026, 11, 2), "refunded", "k1", "ada", ("web",), "pro", "edit", 40_000),
    (date(2026, 11, 2), "made", "k1", "ada", ("web",), "pro", "edit", 2),
    (date(2026, 11, 2), "cache", "k1", "ada", ("web",), "pro", "edit", 3),
    (date(2026, 11, 2), "saved-cache", "k1", "ada", ("web",), "pro", "edit", 120_000),
    (date(2026, 11, 2), "coalesced", "k1", "ada", ("web",), "pro", "edit", 1),
    (date(2026, 11, 2), "saved-coalesced", "k1", "ada", ("web",), "pro", "edit", 40_000),
]


def report(*given: tuple[str, str]) -> Report:
    made = Report("acme", "UTC", parse_query(given, today=TODAY))
    for day, measure, key, user, tags, variant, operation, value in COUNTERS:
        made.add(day, BETWEEN.join((measure, key, user, WITHIN.join(tags), variant, operation)), value)
    made.add(TODAY, "batch" + BETWEEN + "inc_1", 7)
    return made


def test_without_dates_a_report_is_of_this_month() -> None:
    query = parse_query([], today=TODAY)
    assert (query.first, query.until, query.per, query.groups) == (date(2026, 11, 1), date(2026, 12, 1), "day", ())
    for given, first, until in [
        ([("from", "2026-01-31")], date(2026, 1, 31), date(2026, 12, 1)),
        ([("from", "2027-01-31")], date(2027, 1, 31), date(2027, 2, 1)),
        ([("to", "2026-03-01")], date(2026, 2, 1), date(2026, 3, 1)),
        ([("to", "2026-11-10")], date(2026, 11, 1), date(2026, 11, 10)),
    ]:
        query = parse_query(given, today=TODAY)
        assert (query.first, query.until) == (first, until)


WRONG: list[tuple[list[tuple[str, str]], str]] = [
    ([("form", "2026-11-01")], "form"),
    ([("per", "day"), ("per", "day")], "per"),
    ([("per", "week")], "per"),
    ([("from", "2026-11-31")], "from"),
    ([("from", "20261101")], "from"),
    ([("from", "٢٠٢٦-١١-٠١")], "from"),
    ([("from", "0001-01-01")], "from"),
    ([("to", "9999-12-31")], "to"),
    ([("to", "")], "to"),
    ([("from", "2026-11-02"), ("to", "2026-11-02")], "to"),
    ([("from", "2026-11-01"), ("to", "2027-12-07")], "to"),
    ([("from", "2020-11-01")], "from"),
    ([("group_by", "")], "group_by"),
    ([("group_by", "key,prompt")], "group_by"),
    ([("group_by", "key,key")], "group_by"),
    ([("source", "shop")], "source"),
    ([("operation", "draw")], "operation"),
    ([("user", "")], "user"),
    ([("tag", "x" * 129)], "tag"),
    ([("key", "a\nb")], "key"),
]


@pytest.mark.parametrize(("given", "field"), WRONG)
def test_what_a_report_does_not_understand_is_refused_by_name(given: list[tuple[str, str]], field: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        parse_query(given, today=TODAY)
    assert (refused.value.field, refused.value.status) == (field, 422)


def test_400_days_are_not_too_many() -> None:
    assert parse_query([("from", "2026-11-01"), ("to", "2027-12-06")], today=TODAY).until == date(2027, 12, 6)


@pytest.mark.parametrize("per", ["day", "month", "total"])
@pytest.mark.parametrize("groups", ["", "key", "user,tags", "key,user,tags,variant,operation,source"])
def test_every_grouping_adds_up_to_the_same_total(per: str, groups: str) -> None:
    made = report(("per", per), *([("group_by", groups)] if groups else [])).document()
    assert made["total"] == {
        "images": 1, "delivered": {"upstream": 2, "cache": 3, "coalesced": 1},
        "spent": {"micro_usd": 240_000, "usd": "0.240000"}, "ambiguous": {"micro_usd": 80_000, "usd": "0.080000"},
        "refunded": {"micro_usd": 40_000, "usd": "0.040000"}, "saved": {"micro_usd": 160_000, "usd": "0.160000"},
    }  # fmt: skip
    for figure in ("spent", "ambiguous", "refunded", "saved"):
        assert sum(row[figure]["micro_usd"] for row in made["rows"]) == made["total"][figure]["micro_usd"]
    assert sum(row["delivered"]["cache"] for row in made["rows"]) == 3


def test_a_row_says_its_period_and_its_group() -> None:
    rows = report(("per", "month"), ("group_by", "tags,user,source")).document()["rows"]
    shown = [(row["period"], row["tags"], row["user"], row["source"], row["spent"]["micro_usd"]) for row in rows]
    assert shown == [
        ("2026-10", ["web"], "ada", "upstream", 40_000),
        ("2026-11", [], None, "upstream", 80_000),
        ("2026-11", [], "=cmd()", "upstream", 80_000),
        ("2026-11", ["a", "web"], "ada", "upstream", 40_000),
        ("2026-11", ["web"], "ada", "cache", 0),
        ("2026-11", ["web"], "ada", "coalesced", 0),
        ("2026-11", ["web"], "ada", "upstream", 0),
    ]


@pytest.mark.parametrize(
    ("name", "value", "spent"),
    [
        ("key", "k2", 160_000), ("user", "ada", 80_000), ("tag", "a", 40_000), ("tag", "web", 80_000),
        ("tag", "we", 0), ("variant", "max", 160_000), ("operation", "edit", 80_000), ("source", "cache", 0),
        ("source", "upstream", 240_000),
    ],
)  # fmt: skip
def test_a_filter_leaves_out_everything_else(name: str, value: str, spent: int) -> None:
    made = report((name, value)).document()
    assert made["filters"] == {name: value}
    assert made["total"]["spent"]["micro_usd"] == spent


def test_csv_has_the_rows_of_the_json_and_no_formula() -> None:
    made = report(("group_by", "user,tags"))
    rows = list(csv.DictReader(io.StringIO(made.csv())))
    assert len(rows) == len(made.document()["rows"])
    assert sum(int(row["spent_micro_usd"]) for row in rows) == 240_000
    assert {row["user"] for row in rows} == {"ada", "", "'=cmd()"}
    assert {row["tags"] for row in rows} == {"", "web", "a,web"}
    assert [row["ambiguous_usd"] for row in rows if row["user"] == "'=cmd()"] == ["0.080000"]


def test_a_report_of_too_many_rows_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(usage, "MAX_ROWS", 3)
    with pytest.raises(InvalidRequest) as refused:
        report(("group_by", "user,variant"))
    assert refused.value.field == "group_by"
