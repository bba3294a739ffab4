"""The asynchronous side of one process, as the surfaces see it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from app.jobs.courier import Courier
from app.jobs.hooks import Hooks
from app.jobs.intake import Intake
from app.jobs.queue import Queue
from app.jobs.run import Runner
from app.jobs.worker import Worker


@dataclass(frozen=True, slots=True)
class Jobs:
    """The way in, the queue, what ends a job, the worker, and what tells of it; `streams` are the open streams of
    events of each tenant and holder."""

    intake: Intake
    queue: Queue
    runner: Runner
    worker: Worker
    hooks: Hooks
    courier: Courier
    streams: Counter[tuple[str, str]] = field(default_factory=Counter)
