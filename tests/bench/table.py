"""A table: rows of named figures, as text. The tables' modules make them; the command prints them, the test reads
them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

Figure = float | int | str | None


@dataclass(slots=True)
class Table:
    """A title, rows that all have the same columns, lines that stand below, and why what failed did. A figure
    that does not apply is None."""

    title: str
    rows: list[dict[str, Figure]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    failed: Counter[str] = field(default_factory=Counter)

    def __str__(self) -> str:
        names = list(self.rows[0])
        cells = [names, *([_shown(row[name]) for name in names] for row in self.rows)]
        widths = [max(len(line[at]) for line in cells) for at in range(len(names))]
        lines = ["  ".join(_padded(line, widths)) for line in cells]
        failed = [f"Failed: {', '.join(f'{count} x {why}' for why, count in self.failed.most_common())}"]
        return "\n".join([self.title, *(line.rstrip() for line in lines), *self.notes, *failed * bool(self.failed), ""])


def _padded(line: list[str], widths: list[int]) -> list[str]:
    first, *rest = line
    return [first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True))]


def _shown(figure: Figure) -> str:
    if figure is None:
        return "-"
    return f"{figure:.2f}" if isinstance(figure, float) else str(figure)
