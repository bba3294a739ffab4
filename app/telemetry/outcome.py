"""The event record of one request: filled in along the walk, read once at its end by metrics, log line and headers.

It holds facts for operators only: never a prompt, a key, a token or an image.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from time import perf_counter
from typing import Any


@dataclass(slots=True)
class Outcome:
    """Facts of one request; money in micro-dollars, times in seconds."""

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
