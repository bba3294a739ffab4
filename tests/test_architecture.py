"""House rules that a linter does not know."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

APP = Path(__file__).resolve().parent.parent / "app"
MODULES = sorted(APP.rglob("*.py"))
SCRIPTS = sorted(APP.rglob("*.lua"))


def named(paths: list[Path]) -> list[str]:
    """Test ids."""
    return [str(path.relative_to(APP)) for path in paths]


@pytest.mark.parametrize("path", SCRIPTS, ids=named(SCRIPTS))
def test_a_script_lies_beside_the_module_that_runs_it_and_says_what_it_takes_and_returns(path: Path) -> None:
    text = path.read_text()
    header = "\n".join(line for line in text.splitlines() if line.startswith("--"))
    assert "KEYS[1]" in header
    assert "ARGV[1" in header
    assert "Returns" in header
    callers = [module for module in path.parent.glob("*.py") if f'"{path.stem}")' in module.read_text()]
    assert len(callers) == 1, f"{path.name} is run by {callers}"


@pytest.mark.parametrize("path", MODULES, ids=named(MODULES))
def test_a_module_says_its_role_and_stays_small(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= 400
    if text.strip():
        assert ast.get_docstring(ast.parse(text)), f"{path} has no docstring"


def test_redis_keys_are_spelled_in_one_file_only() -> None:
    elsewhere = [
        str(path.relative_to(APP))
        for path in [*MODULES, *SCRIPTS]
        if path.name != "keys.py" and re.search(r"""["']kg:""", path.read_text())
    ]
    assert elsewhere == []


def test_scripts_never_take_the_time_or_a_random_number_from_the_caller() -> None:
    for path in SCRIPTS:
        assert "math.random" not in path.read_text()
        if re.search(r"\bnow(_ms)?\b", path.read_text()):
            assert "redis.call('TIME')" in path.read_text()


def test_scripts_are_found_at_all() -> None:
    assert len(SCRIPTS) >= 10
    assert len(MODULES) >= 60
