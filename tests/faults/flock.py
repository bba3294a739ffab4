"""Equal requests that all arrive before the first of them is answered. Shared with the mutants."""

from __future__ import annotations

from functools import partial

from tests.faults.checker import Broken, Figures, Violation, check, settle_down
from tests.faults.clients import Answer, ask, together
from tests.faults.storm import token
from tests.fleet import Fleet

THREE_SECONDS = ("--time-scale", "0.5", "--picture", "small")  # how long a job takes


def flock(fleet: Fleet, callers: int, *, seed: int | None, jobs: int) -> tuple[list[Answer], Figures]:
    """Send them to all replicas in turn; with a seed they are one job, without one each is a job of its own.

    Raises:
        Broken: I7 where it was another number of `jobs`; and whatever the checker finds.
    """
    key, urls = token(fleet), [replica.url for replica in fleet.replicas]
    work = [partial(ask, url=urls[i % len(urls)], token=key, seed=seed) for i in range(callers)]
    answers: list[Answer] = together(work)
    settle_down(fleet, "acme")
    received = int(fleet.stats()["received"])
    found = (
        [Violation("I7", f"{callers} equal requests became {received} jobs instead of {jobs}")]
        if received != jobs
        else []
    )
    try:
        figures = check(fleet, "acme")
    except Broken as broken:
        raise Broken([*found, *broken.violations]) from None
    if found:
        raise Broken(found)
    return answers, figures
