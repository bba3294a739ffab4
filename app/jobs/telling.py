"""What a webhook says of the end of a job. Pure: no prompt, no picture's bytes, no link that somebody could follow."""

from __future__ import annotations

from time import time
from typing import Any

from app.errors import CODES
from app.jobs.hooks import event
from app.jobs.queue import Queued, State

TYPES: dict[State, str] = {"succeeded": "job.succeeded", "failed": "job.failed"}


def tell_end(job: Queued, state: State, answer: dict[str, Any]) -> tuple[str, bytes]:
    """Type and body; ("", b"") for an end that its caller brought about."""
    kind = TYPES.get(state, "")
    if not kind or not job.hooked:
        return "", b""
    data: dict[str, Any] = {
        "id": job.id, "object": "kontext.job", "state": state, "created": job.created // 1000, "ended": int(time()),
        "operation": job.operation, "variant": job.variant, "job_type": job.type, "seed": job.seed,
        "request_id": job.request,
    }  # fmt: skip
    if state == "succeeded":
        document = answer["said"]["told"]["document"]
        image = {name: value for name, value in document["image"].items() if name != "url"}
        data |= {"source": document["source"], "cost": document["cost"], "image": image}
    else:
        error = answer["error"]
        data["error"] = {"code": error["code"], "title": CODES[error["code"]].title, "charged": error["charged"]}
    return kind, event(kind, data)
