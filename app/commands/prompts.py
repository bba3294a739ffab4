"""What is to be made: one prompt of the command line, or a file of them. Pure but for reading that file.

Called by `pictures.py`. A line that begins with `{` is a JSON object with `prompt`, optionally `output`, and fields of
the request; any other line is a prompt; empty lines do not count. A mistake is a ValueError with file and line.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

OURS = ("image", "response_format", "idempotency_key")  # fields that the commands send themselves


@dataclass(frozen=True, slots=True)
class Wanted:
    """One picture: its number from 1, the prompt, the fields that were given, and its own file where one was named."""

    n: int
    prompt: str
    parameters: Mapping[str, Any] = field(default_factory=dict)
    output: str | None = None


def read(source: str, parameters: Mapping[str, Any]) -> list[Wanted]:
    """The pictures of a file, `-` being standard input; a line's own fields go before `parameters`.

    Raises:
        ValueError: a line that cannot be used, or no prompt at all.
        OSError: the file cannot be read.
    """
    raw = sys.stdin.buffer.read() if source == "-" else Path(source).read_bytes()
    shown = "standard input" if source == "-" else source
    try:
        lines = raw.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise ValueError(f"{shown}: is not UTF-8 text") from None
    wanted: list[Wanted] = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                wanted.append(_wanted(len(wanted) + 1, line.strip(), parameters))
            except ValueError as error:
                raise ValueError(f"{shown}, line {number}: {error}") from None
    if not wanted:
        raise ValueError(f"{shown}: holds no prompt")
    return wanted


def _wanted(n: int, line: str, parameters: Mapping[str, Any]) -> Wanted:
    if not line.startswith("{"):
        return Wanted(n, line, parameters)
    try:
        fields = json.loads(line)
    except ValueError:
        raise ValueError("begins with { and is not JSON") from None
    prompt, output = fields.pop("prompt", None), fields.pop("output", None)
    if not isinstance(prompt, str):
        raise ValueError("`prompt` must be a text")
    if not (output is None or (isinstance(output, str) and output)):
        raise ValueError("`output` must be the name of a file")
    if refused := next((name for name in OURS if name in fields), None):
        raise ValueError(f"`{refused}` cannot be set here")
    return Wanted(n, prompt, {**parameters, **fields}, output)
