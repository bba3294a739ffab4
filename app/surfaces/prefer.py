"""The `Prefer` header (RFC 7240) as far as it is honoured: `respond-async` and `wait=n`. Pure.

What is unknown or malformed is ignored, as the RFC asks.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

_WAIT = re.compile(r'wait\s*=\s*"?(\d{1,9})"?', re.ASCII | re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Preference:
    """How a caller wants to be answered: at once with a job, or with what there is after `wait` seconds."""

    asynchronous: bool = False
    wait: int | None = None

    @property
    def applied(self) -> str:
        """The value of Preference-Applied."""
        words = ["respond-async"] if self.asynchronous else []
        return ", ".join(words if self.wait is None else [*words, f"wait={self.wait}"])


def preference(headers: Iterable[str], *, most: float) -> Preference | None:
    """The caller's preference, None where it has none; `most` seconds are waited at most."""
    asynchronous, wait = False, None
    for word in (word.partition(";")[0].strip() for header in headers for word in header.split(",")):
        if word.lower() == "respond-async":
            asynchronous = True
        elif wait is None and (found := _WAIT.fullmatch(word)):
            wait = min(int(found[1]), int(most))
    return Preference(asynchronous, wait) if asynchronous or wait is not None else None
