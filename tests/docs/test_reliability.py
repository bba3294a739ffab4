"""Every fault of the catalogue is a row, the business of a named test, or said not to be covered; none is forgotten."""

from __future__ import annotations

import ast
import re
from collections import Counter

from tests.faults.rows import ROWS

from .page import ROOT, named, table

PAGE = (ROOT / "deploy" / "RELIABILITY.md").read_text("utf-8")
# The sections of the catalogue, and how many faults each has.
CATALOGUE = {"M": 23, "R": 15, "U": 13, "C": 12, "D": 7, "L": 13, "I": 6, "A": 12, "S": 11, "Q": 8, "O": 7, "P": 5}


def _rows() -> dict[str, str]:
    """Of the tables of rows: id and figure."""
    return dict(re.findall(r"^\| ([A-Z]-\d\d) \| ([^|]+) \|$", PAGE, flags=re.M))


def _uncovered() -> list[str]:
    """The ids that a point of "What is not covered" begins with."""
    (points,) = re.findall(r"^## What is not covered\n(.*?)(?=^## |\Z)", PAGE, flags=re.M | re.S)
    return [
        name for ids in re.findall(r"^- ((?:[A-Z]-\d\d(?:, )?)+): ", points, flags=re.M) for name in ids.split(", ")
    ]


def test_every_row_is_told_with_its_figure() -> None:
    """The page is the rows that are run, in their words."""
    assert _rows() == {name: row.asked for name, row in ROWS.items()}


def test_every_fault_of_the_catalogue_is_in_one_list() -> None:
    """By its number, so that a line that goes missing is missed."""
    told = Counter([*_rows(), *(row[0] for row in table("Row", _other_tests())), *_uncovered()])
    wanted = {f"{section}-{number:02}" for section, count in CATALOGUE.items() for number in range(1, count + 1)}
    assert told == Counter(wanted)


def test_every_test_that_is_said_to_hold_a_fault_exists() -> None:
    """Where it is said to be, under the name that it has."""
    for name, what, tests in table("Row", _other_tests()):
        assert what, name
        assert named(tests), name
        for path, _, function in (test.partition("::") for test in named(tests)):
            found = ast.parse((ROOT / "tests" / path).read_text("utf-8")).body
            functions = {node.name for node in found if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
            assert function.startswith("test_"), (name, function)
            assert function in functions, (name, path, function)


def _other_tests() -> str:
    return PAGE.partition("### Other tests")[2]
