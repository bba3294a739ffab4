"""Reads the Dockerfile as data: stages of instructions, for tests that hold it to rules and tests that do what it says.

Knows what this Dockerfile uses: continuation lines, comments, JSON forms, and the flags of COPY and HEALTHCHECK.
"""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILE = ROOT / "Dockerfile"


@dataclass(frozen=True)
class Stage:
    """One stage: what it is made from, and its instructions in order as (word, rest)."""

    base: str
    instructions: tuple[tuple[str, str], ...]

    def all(self, word: str) -> list[str]:
        """The rest of every instruction of this kind."""
        return [rest for found, rest in self.instructions if found == word]

    def command(self, word: str) -> list[str]:
        """The words of the exec form of ENTRYPOINT, CMD or HEALTHCHECK; an error for the shell form."""
        (rest,) = self.all(word)
        found: list[str] = json.loads(rest[rest.index("[") :])
        return found

    @property
    def environment(self) -> dict[str, str]:
        """What ENV sets."""
        return dict(pair.split("=", 1) for rest in self.all("ENV") for pair in shlex.split(rest))

    @property
    def labels(self) -> dict[str, str]:
        """What LABEL says."""
        return dict(pair.split("=", 1) for rest in self.all("LABEL") for pair in shlex.split(rest))

    @property
    def user(self) -> str:
        """Who runs."""
        (found,) = self.all("USER")
        return found


def stages(text: str | None = None) -> list[Stage]:
    """Every stage, in order."""
    lines = [line for line in (text or DOCKERFILE.read_text("utf-8")).splitlines() if not line.lstrip().startswith("#")]
    found: list[tuple[str, list[tuple[str, str]]]] = []
    for line in re.sub(r"\\\n\s*", "", "\n".join(lines)).splitlines():
        if not line.strip():
            continue
        word, _, rest = line.partition(" ")
        if word == "FROM":
            found.append((rest.split()[0], []))
        else:
            found[-1][1].append((word, rest.strip()))
    return [Stage(base, tuple(instructions)) for base, instructions in found]
