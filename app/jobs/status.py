"""What became of a job: read from its record and from what is held for it, and the one place that says what both mean.

Called by the surfaces, to tell, and by the worker, to end a job whose worker died between the end of the money and the
end of the record. The reservation decides: what it says is over is over, whatever the record says.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from app.errors import CODES, Charged, GatewayError
from app.jobs.queue import Queue, State
from app.prodia.faults import code_of
from app.quota.recent import recent
from app.quota.seat import Held
from app.store import keys
from app.store.redis import Store

CHARGED: dict[str, Charged] = {"SETTLED": "yes", "REFUNDED": "no", "RESERVED": "no"}


@dataclass(frozen=True, slots=True)
class Status:
    """A job at one moment. Times in Unix ms, 0: not yet; money in micro-dollars; `place` is how many go before it."""

    id: str
    state: State
    operation: str
    variant: str
    job_type: str
    seed: int
    created: int
    started: int
    ended: int
    paid: int
    charged: Charged
    image: str
    code: str  # of a failed one
    typical: float
    request: str
    place: int | None
    answer: dict[str, Any]  # what is kept of the outcome: `error`, or `image` and what the surface said of it
    queued: bool  # came by the queue
    echo: bytes = b""  # what the surface that it came by says of it again

    @property
    def over(self) -> bool:
        """Whether it has ended."""
        return self.state not in ("queued", "running")


def state_of(held: Held) -> tuple[State, str]:
    """State and error code that a reservation stands for."""
    reason, charged = held.record["reason"], CHARGED.get(held.state, "unknown")
    match held.state:
        case "RESERVED":
            return "queued", ""
        case "DISPATCHING":
            return "running", ""
        case "REFUNDED" if reason == "cancelled":
            return "cancelled", ""
        case "SETTLED" | "REFUNDED" if held.record["image"]:
            return "succeeded", ""
        case "REFUNDED" if reason == "expired":
            return "failed", "job_expired"
    return "failed", code_of(reason, charged=charged)


def plain_error(code: str, charged: Charged) -> GatewayError:
    """An error of which only the code is known."""
    return GatewayError(code, f"{CODES[code].title}.", charged=charged)


async def read(queue: Queue, tenant: str, holder: str, job_id: str) -> Status | None:
    """A job of a key or client token; None where it has no such job. Raises LedgerUnavailable."""
    job = await queue.find(tenant, job_id)
    if job is None:
        return await _direct(queue.store, tenant, holder, job_id)
    if job.holder != holder:
        return None
    held = await queue.held(job)
    state, code = state_of(held)
    place = await queue.place(job) if state == "queued" and not job.over else None
    charged, paid = CHARGED.get(held.state, "unknown"), int(held.record["paid"] or 0)
    if not job.over and state in ("succeeded", "failed"):  # the money is at its end, and its worker is about to say so
        state, charged, paid = "running", "unknown", 0
    if job.over:
        state = job.state  # type: ignore[assignment]
        code = job.answer.get("error", {}).get("code", code)
    return Status(
        job.id, state, job.operation, job.variant, job.type, job.seed, job.created,
        int(held.record["dispatched"] or 0), job.ended, paid, charged, job.answer.get("image", ""),
        code if state == "failed" else "", job.typical, job.request, place,
        job.answer, queued=True, echo=job.echo,
    )  # fmt: skip


async def _direct(store: Store, tenant: str, holder: str, job_id: str) -> Status | None:
    """A job whose caller waits, or waited, for it."""
    found = next((job for job in await recent(store, tenant, holder, limit=keys.RECENT) if job.id == job_id), None)
    if found is None:
        return None
    code = code_of(found.reason, charged=found.charged) if found.state == "failed" else ""
    return Status(
        found.id, found.state, found.operation, found.variant, found.job_type, found.seed, found.created * 1000,  # type: ignore[arg-type]
        0, 0, found.paid, found.charged, found.image, code, 0.0, "", None, {}, queued=False,
    )  # fmt: skip
