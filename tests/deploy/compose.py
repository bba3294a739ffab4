"""Reads docker-compose.yml as data, with the values of a stack put in, for the tests of this folder."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import yaml

from .dockerfile import ROOT

COMPOSE = ROOT / "docker-compose.yml"
SANDBOX_ENV = ROOT / "deploy" / "sandbox" / "compose.env"
_VALUE = re.compile(r"\$\{(\w+):-([^}]*)\}")


def values(text: str | None = None) -> dict[str, str]:
    """Every value that differs between stacks, with its default."""
    return dict(_VALUE.findall(_code(text or COMPOSE.read_text("utf-8"))))


def sandbox_values() -> dict[str, str]:
    """What deploy/sandbox/compose.env sets."""
    lines = SANDBOX_ENV.read_text("utf-8").splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def stack(given: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The file with `given` in the place of defaults. Fails on a variable without one."""
    text = _code(COMPOSE.read_text("utf-8"))
    text = _VALUE.sub(lambda found: (given or {}).get(found[1], found[2]), text)
    assert "${" not in text
    found: dict[str, Any] = yaml.safe_load(text)
    return found


def seconds(duration: str) -> float:
    """Seconds of 10s, 2m or 150s."""
    return float(duration[:-1]) * {"s": 1, "m": 60}[duration[-1]]


def megabytes(size: str) -> float:
    """Megabytes of 1g or 256m (or Redis's 512mb)."""
    number, unit = re.fullmatch(r"(\d+)([gm])b?", size).groups()  # type: ignore[union-attr]
    return float(number) * {"m": 1, "g": 1024}[unit]


def _code(text: str) -> str:
    return "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
