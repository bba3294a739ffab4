"""The event record of one request: filled in along the walk, read once at its end by metrics, log line and headers.

It holds facts for operators only: never a prompt, a key, a token or an image.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from time import perf_counter
from typing import Any


@dataclass(slots=True)
class Outcome:
    """Facts of one request; money in micro-dollars, times in seconds. `pictures` has a record for each of several."""

    request_id: str
    began: float = field(default_factory=perf_counter)
    surface: str = "native"
    route: str = "_other"
    tenant: str | None = None
    key_id: str | None = None
    operation: str | None = None
    variant: str | None = None
    source: str | None = None
    code: str = "ok"
    job_id: str | None = None
    safety_action: str | None = None
    cost: int = 0
    saved: int = 0
    waited: float = 0.0
    upstream: float = 0.0
    attempts: int = 0
    cache: str | None = None
    charged: str | None = None
    rates: list[Any] = field(default_factory=list)
    pictures: list[Outcome] = field(default_factory=list)

    @property
    def each(self) -> list[Outcome]:
        """The facts of every picture that the request was for: its own, or those of a call for several."""
        return self.pictures or [self]

    def add_up(self) -> None:
        """Take over what the pictures of a call for several came to: sums of money and sends, the longest times."""
        if made := [one for one in self.pictures if one.source]:
            self.job_id, self.source = made[0].job_id, made[0].source
        self.cost, self.saved = (sum(getattr(one, name) for one in self.pictures) for name in ("cost", "saved"))
        self.attempts = sum(one.attempts for one in self.pictures)
        slowest = max(self.pictures, key=lambda one: one.upstream + one.waited)
        self.upstream, self.waited = slowest.upstream, slowest.waited
