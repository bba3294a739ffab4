"""What is told of each picture and of all: a line on standard output per picture, errors and totals on standard error.

Called by `pictures.py`. Keeps the account that the exit code and the last line are made of; money is in micro-dollars.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from app.client import GatewayFailure, GatewayRefused, GatewayUnreachable, Picture
from app.commands.bar import Bar
from app.commands.files import Files
from app.commands.prompts import Wanted
from app.domain.pricing import usd

_MONEY = {"no": "nothing was charged", "yes": "it was charged", "unknown": "it may have been charged"}


class Report:
    """The account of one command.

    Args:
        several: whether pictures are told apart by their number, and summed up at the end.
        as_json: print JSON objects, one a line, failures included.
    """

    def __init__(self, files: Files, bar: Bar, *, several: bool, as_json: bool) -> None:
        self._files = files
        self._bar = bar
        self._several = several
        self._as_json = as_json
        self._out = sys.stderr if files.to_stdout else sys.stdout
        self._under_way: set[int] = set()
        self._made = 0
        self._failures: list[GatewayFailure | OSError] = []
        self._paid = 0

    @property
    def exit_code(self) -> int:
        """0 when all was made; 3 when the gateway was never reached; else 1."""
        if not self._failures:
            return 0
        unreached = all(isinstance(failure, GatewayUnreachable) for failure in self._failures)
        return 3 if unreached and not self._made else 1

    def began(self, one: Wanted) -> None:
        """A request is on its way."""
        self._under_way.add(one.n)
        self._bar.began(one.n, str(one.parameters.get("variant", "pro")))

    def made(self, one: Wanted, picture: Picture) -> None:
        """A picture has arrived: save it and say so."""
        self._end(one)
        self._paid += picture.cost.micro_usd
        try:
            path = self._files.save(one, picture)
        except OSError as error:
            text = f"{error.filename or 'the picture'}: {error.strerror}; the picture is kept as {picture.id}"
            self._fail(one, error, text, {"code": "not_saved", "detail": text, "charged": "yes"})
            return
        self._made += 1
        if self._as_json:
            line = json.dumps({"n": one.n, "file": str(path), **picture.document})
        else:
            about = (f"seed {picture.seed}", picture.source, f"${picture.cost.usd}", picture.job_id)
            line = "\t".join((str(path), *about))
        with self._bar.aside():
            print(line, file=self._out, flush=True)
            for note in _notes(picture):
                print(f"{self._number(one)}{note}", file=sys.stderr)

    def failed(self, one: Wanted, error: GatewayFailure) -> None:
        """A request was refused, or not answered."""
        self._end(one)
        problem: dict[str, Any] = {"code": error.code, "detail": error.detail, "charged": error.charged}
        if isinstance(error, GatewayRefused):
            problem = {**problem, "status": error.status, **error.problem}
        self._fail(one, error, f"{error.code}: {error.detail} ({_MONEY[error.charged]})", problem)

    def end(self) -> None:
        """The last line, where there were several pictures."""
        if self._several:
            total = self._made + len(self._failures)
            print(f"{self._made} of {total} pictures, ${usd(self._paid)} in all{self._doubt()}", file=sys.stderr)

    def interrupted(self) -> None:
        """The last line after Ctrl-C."""
        left = len(self._under_way)
        text = f"interrupted: {self._made} pictures made, ${usd(self._paid)} paid{self._doubt()}"
        if left:
            text += (
                f"; {left} under way: whatever was sent on to the upstream already is made and paid for, and is found"
            )
            text += " with GET /v1/jobs, or Client.jobs() in Python"
        print(text, file=sys.stderr)

    def _end(self, one: Wanted) -> None:
        self._under_way.discard(one.n)
        self._bar.ended(one.n)

    def _fail(self, one: Wanted, error: GatewayFailure | OSError, text: str, problem: dict[str, Any]) -> None:
        self._failures.append(error)
        with self._bar.aside():
            if self._as_json:
                print(json.dumps({"n": one.n, "error": problem}), file=self._out, flush=True)
            print(self._number(one) + text, file=sys.stderr)

    def _number(self, one: Wanted) -> str:
        return f"{one.n}: " if self._several else ""

    def _doubt(self) -> str:
        charged = [getattr(failure, "charged", "no") for failure in self._failures]
        told = ((charged.count("yes"), "charged"), (charged.count("unknown"), "perhaps charged"))
        return "".join(f"; {count} failed and {what}" for count, what in told if count)


def _notes(picture: Picture) -> list[str]:
    """What was changed or chosen on the way, which is always told; advice is in the JSON alone."""
    notes = []
    if picture.safety.action == "clamped":
        asked, applied = picture.safety.requested, picture.safety.applied
        notes.append(f"note: safety_tolerance {asked} was lowered to {applied}, the ceiling")
    if picture.input and picture.input.get("fitted"):
        notes.append(f"note: the input was made to fit, {picture.input['fitted']}")
    if chosen := picture.document.get("auto"):
        notes.append(f"note: variant {chosen['variant']} was chosen, because {chosen['because']}")
    return notes
