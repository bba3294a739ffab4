"""L-09: no regular expression of the gateway takes long over a text that is made for it."""

from __future__ import annotations

import ast
import re
import time
from pathlib import Path

import app
from app.prodia.faults import DEFAULT
from tests.faults.row import Run, row

HOW = ("match", "fullmatch", "search")
CALLS = {*HOW, "compile", "sub", "split", "findall", "finditer"}
PIECES = ("a", "0", " ", "-", ".", "/", "=", "a;", "a=", "0.", "é", "_", ":", '"', "\\", "a ", "1/", "\n")


def patterns() -> dict[tuple[str, str], str]:
    """Every pattern that stands in the gateway's code, as (pattern, how it is used), and where; and the moderation
    patterns of its settings."""
    found = {(pattern, "search"): "moderation patterns" for pattern in DEFAULT.patterns}
    for path in sorted(Path(str(app.__file__)).parent.rglob("*.py")):
        source = path.read_text("utf-8")
        for node in ast.walk(ast.parse(source)):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args):
                continue
            of, first = node.func, node.args[0]
            if isinstance(of.value, ast.Name) and of.value.id == "re" and of.attr in CALLS:
                text = first.value if isinstance(first, ast.Constant) else _joined(first)
                text = text.decode("latin-1") if isinstance(text, bytes) else text
                # A compiled one is used as its name says elsewhere in the module.
                line = source.splitlines()[node.lineno - 1]
                name = re.match(r"\s*(\w+) = re\.compile", line)
                used = set(re.findall(rf"\b{name[1]}\.(\w+)\(", source)) if name else {of.attr}
                for how in used if text is not None else ():
                    found[str(text), how if how in HOW else "search"] = f"{path.name}:{node.lineno}"
    return found


def _joined(node: ast.expr) -> str | None:
    """An f-string with something harmless in the place of its values; None for a pattern that is made elsewhere."""
    if not isinstance(node, ast.JoinedStr):
        return None
    return "".join(str(part.value) if isinstance(part, ast.Constant) else "3" for part in node.values)


@row("L-09", "<= 10 ms for 100 KB of evil text, for every pattern", ci={"size": 100_000}, nightly={"size": 100_000})
def evil_text(run: Run, size: int) -> None:
    slowest, where, owned = 0.0, "", patterns()
    for (pattern, how), place in owned.items():
        look = getattr(re.compile(pattern), how)
        for piece in PIECES:
            for end in ("", "\x00!"):
                for length in (size // 50, size):  # what is far too slow shows before it takes minutes
                    text, began = piece * (length // len(piece)) + end, time.thread_time()
                    look(text)
                    took = time.thread_time() - began
                    if took > slowest:
                        slowest, where = took, f"{place} {pattern!r} with {piece!r}"
                    assert took <= run.within(0.01), where
    run.reached = f"{len(owned)} patterns, slowest {slowest * 1000:.1f} ms: {where}"
    assert len(owned) > 20
