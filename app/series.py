"""The walk of a call for n pictures: n ordinary jobs, seeds in a row, of which all hold their money or none is sent.

Called by a surface that knows `n` in the place of `Gateway.submit`. What is in the cache or being made costs nothing
here either. Once they have begun each job ends for itself: what exists is delivered and charged, and the rest is told.
When Redis is away, `LedgerUnavailable` is raised and nothing is bought.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace

from app.domain.job import Ask, Caller, Job
from app.domain.validate import SEED_MAXIMUM
from app.errors import GatewayError, InvalidRequest
from app.pipeline import Admitted, Control, Delivery, Gateway
from app.prodia.wire import Part
from app.quota.party import Guest, Party
from app.quota.refusals import told
from app.telemetry.outcome import Outcome as Record

Inputs = tuple[Part, ...]


@dataclass(frozen=True, slots=True)
class Series:
    """What came of n pictures, each in the order of the seeds: those that exist, and why the others do not."""

    deliveries: tuple[Delivery, ...]
    failures: tuple[GatewayError, ...]


async def submit(gateway: Gateway, caller: Caller, ask: Ask, n: int, control: Control, record: Record) -> Series:
    """As `Gateway.submit` for `n` pictures.

    Raises GatewayError: none of them exists. Where one was refused before they began, nothing was sent.
    """
    admitted = await gateway.admit(caller, ask, record, pictures=n)
    first = _first_seed(admitted.job, n)
    party = Party[Inputs](n)
    record.pictures = [replace(record, rates=[], pictures=[]) for _ in range(n)]
    work = [
        asyncio.create_task(_one(gateway, admitted.with_seed(first + i), control, record.pictures[i], guest))
        for i, guest in enumerate(party.guests)
    ]
    try:
        await _ended(work, party)
    except asyncio.CancelledError:
        # Those that may have been sent run on without us; the others give everything back.
        for one in work:
            one.cancel()
        await asyncio.wait(work)
        raise
    if party.refusal is not None:
        record.pictures = []  # also what the cache had is not given
        raise told(caller, party.refusal)
    record.add_up()
    errors = [error for one in work if (error := one.exception()) is not None]
    failures = tuple(error for error in errors if isinstance(error, GatewayError))
    if strange := [error for error in errors if not isinstance(error, GatewayError)]:
        raise strange[0]
    if len(failures) == n:
        raise told(caller, _worst(failures))
    return Series(tuple(one.result() for one in work if one.exception() is None), failures)


async def _ended(work: list[asyncio.Task[Delivery]], party: Party[Inputs]) -> None:
    """Wait for all of them; once one was refused before they began, nobody waits for what others make."""
    pending = set(work)
    while pending:
        done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_EXCEPTION)
        for one in done:
            if not one.cancelled():
                one.exception()  # retrieved: the refusal is told by the party
        if party.refusal is not None:
            for one in pending:
                one.cancel()


async def _one(
    gateway: Gateway, admitted: Admitted, control: Control, record: Record, guest: Guest[Inputs]
) -> Delivery:
    try:
        delivery = await gateway.obtain(admitted, control, record, guest=guest)
    except BaseException as error:
        record.code = error.code if isinstance(error, GatewayError) else "client_gone"
        guest.failed(error)
        raise
    guest.needs_nothing()
    record.job_id, record.source = delivery.result.job_id, delivery.source
    record.cost, record.saved = delivery.cost, delivery.saved
    return delivery


def _first_seed(job: Job, n: int) -> int:
    """The seed of the first picture: the caller's, or one that leaves room for the others. Raises InvalidRequest."""
    knob = job.type.role("seed")
    most = SEED_MAXIMUM if knob is None else int(knob[1].maximum or 0)
    if job.request.seed + n - 1 <= most:
        return job.request.seed
    if job.request.seed_given:
        name = knob[0] if knob else "seed"
        text = f"`{name}` must be at most {most - n + 1} for {n} pictures, whose seeds are in a row."
        raise InvalidRequest(text, field=name, maximum=most - n + 1)
    return most - n + 1


def _worst(failures: tuple[GatewayError, ...]) -> GatewayError:
    """The failure to tell where all failed: one that may have cost something, if there is one."""
    return min(failures, key=lambda error: ("unknown", "yes", "no").index(error.charged))
