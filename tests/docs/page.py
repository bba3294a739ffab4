"""Reads README as data: sections, fenced blocks, tables, links and console commands, for the tests of this folder.

A console block is a dialogue: a line that begins with `$ ` is a command (with the lines of its here-document or after a
backslash), every other line is what it prints, `...` standing for anything.
"""

from __future__ import annotations

import re
import textwrap
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text("utf-8")


@dataclass(frozen=True)
class Block:
    """One fenced block: its language, its text without the fence's indent, and the headings it is under."""

    language: str
    text: str
    section: str
    part: str


@dataclass
class Command:
    """One command of a console block and the lines shown below it."""

    text: str
    shown: list[str] = field(default_factory=list)

    @property
    def status(self) -> str | None:
        """The HTTP status it is shown to answer, where it is shown."""
        found = next((re.match(r"HTTP/1\.1 (\d{3})", line) for line in self.shown if line.startswith("HTTP/")), None)
        return found[1] if found else None


def blocks(text: str = README) -> list[Block]:
    """Every fenced block, in order."""
    found, section, part = [], "", ""
    lines = iter(text.splitlines())
    for line in lines:
        if fence := re.fullmatch(r" *```(\w*)", line):
            body = []
            for inner in lines:
                if inner.strip() == "```":
                    break
                body.append(inner)
            found.append(Block(fence[1], textwrap.dedent("\n".join(body)) + "\n", section, part))
        elif line.startswith("## "):
            section, part = line[3:], ""
        elif line.startswith("### "):
            part = line[4:]
    return found


def dialogue(block: Block) -> list[Command]:
    """The commands of a console block."""
    commands: list[Command] = []
    until, going_on = "", False
    for line in block.text.splitlines():
        if until or going_on:
            commands[-1].text += "\n" + line
            if line == until:
                until = ""
        elif line.startswith("$ "):
            commands.append(Command(line[2:]))
            here = re.search(r"<<'(\w+)'", line)
            until = here[1] if here else ""
        else:
            commands[-1].shown.append(line)
        going_on = not until and line.endswith("\\")
    return commands


def console(*sections: str) -> list[Command]:
    """Every console command of these sections, in order."""
    return [
        command
        for block in blocks()
        if block.language == "console" and block.section in sections
        for command in dialogue(block)
    ]


def table(first: str, text: str = README) -> list[list[str]]:
    """The rows of the table whose first heading is `first`, cells stripped; an AssertionError when there is none."""
    lines = text.splitlines()
    start = next((i for i, line in enumerate(lines) if line.startswith(f"| {first} |")), None)
    assert start is not None, f"README has no table that begins with {first}"
    rows = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return rows


def named(cell: str) -> list[str]:
    """The words in backticks of a cell."""
    return re.findall(r"`([^`]+)`", cell)


def anchors(text: str) -> set[str]:
    """The fragments that headings can be linked by."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"^ *```.*?^ *```", "", text, flags=re.M | re.S), flags=re.M)
    return {re.sub(r"[^a-z0-9 -]", "", heading.lower()).replace(" ", "-") for heading in headings}
