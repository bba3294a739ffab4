"""Calls that do not wait: what clients of the queue do."""

from __future__ import annotations

import time
from typing import Any

from tests.fleet import Fleet
from tests.pipeline.calls import Answer, call, generate

ASYNC = {"Prefer": "respond-async"}


def queued(url: str, token: str, **fields: Any) -> str:
    """The id of a job that was queued."""
    answer = generate(url, token, ASYNC, **fields)
    assert answer.status == 202, answer.body
    return str(answer.json["id"])


def look(url: str, token: str, job: str) -> Any:
    """The job's document."""
    answer = call(url, f"/v1/jobs/{job}", token)
    assert answer.status == 200, answer.body
    return answer.json


def end(url: str, token: str, job: str, seconds: float = 40) -> Any:
    """The document of a job that has ended."""
    return until(url, token, job, "succeeded", "failed", "cancelled", seconds=seconds)


def until(url: str, token: str, job: str, *states: str, seconds: float = 20) -> Any:
    """The document of a job once it is in one of these states."""
    over = time.monotonic() + seconds
    while (found := look(url, token, job))["state"] not in states:
        assert time.monotonic() < over, found
        time.sleep(0.05)
    return found


def cancel(url: str, token: str, job: str) -> Answer:
    """`DELETE` of it."""
    return call(url, f"/v1/jobs/{job}", token, method="DELETE")


def events(url: str, token: str, job: str, *, last: str = "") -> list[tuple[str, str]]:
    """(event, id or data) of its stream, to the end."""
    answer = call(url, f"/v1/jobs/{job}/events", token, headers={"Last-Event-ID": last} if last else {})
    found = []
    for block in answer.body.decode().split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith(":"))
        if fields:
            found.append((fields["event"], fields.get("id") or fields["data"]))
    return found


def slow(running: Fleet, seconds: float, count: int = 1) -> None:
    """The next jobs take so long, after they were accepted and billed."""
    running.faults([{"kind": "slow", "count": count, "options": {"after_seconds": seconds}}])
