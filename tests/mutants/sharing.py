"""Mistakes with what several callers share: flights, the cache, names, and the line for the upstream."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

from app import named, pipeline
from app.cache.flight import Flights
from app.domain.job import Job
from app.errors import Refused, UpstreamError
from app.pipeline import Gateway
from app.prodia.turns import Turns
from app.store import keys
from tests.mutants.mutant import Killer, Mutant


def _seedless_coalesced() -> None:
    validate = pipeline.validate  # type: ignore[attr-defined]

    def fixed(*args: Any, **options: Any) -> Any:
        return replace(validate(*args, **options), seed=0, seed_given=True)

    pipeline.validate = fixed  # type: ignore[attr-defined]


def _flight_per_process() -> None:
    async def join(self: Flights, flight: Any, *, dead: str, fresh: bool) -> Any:
        flight.fence = "1"
        return True

    async def mark(self: Flights, flight: Any, state: str, note: str) -> bool:
        return True

    Flights._join, Flights._mark = join, mark  # type: ignore[method-assign]


def _tolerance_left_out() -> None:
    digest = pipeline.fingerprint  # type: ignore[attr-defined]

    def without(job: Job, **options: Any) -> Any:
        config = {name: value for name, value in job.config.items() if name != "safety_tolerance"}
        return digest(replace(job, config=config), **options)

    pipeline.fingerprint = without  # type: ignore[attr-defined]


def _tenant_left_out() -> None:
    where = Gateway.where

    async def anywhere(self: Gateway, job: Job) -> tuple[str, str]:
        tenant = job.caller.tenant
        one = replace(tenant, cache=replace(tenant.cache, scope="pool:all"))
        return await where(self, replace(job, caller=replace(job.caller, tenant=one)))

    Gateway.where = anywhere  # type: ignore[method-assign]


def _inherits_the_402() -> None:
    failed = Flights.failed

    async def shared(self: Flights, flight: Any, error: BaseException) -> None:
        if isinstance(error, Refused):
            error = UpstreamError(error.code, error.detail, charged="no")
        await failed(self, flight, error)

    Flights.failed = shared  # type: ignore[method-assign]


def _sent_untold() -> None:
    async def sent(self: Flights, flight: Any) -> None:
        """Nothing is said."""

    Flights.sent = sent  # type: ignore[method-assign]
    Turns.slack = property(lambda self: False)  # type: ignore[method-assign, assignment]


def _unscoped() -> None:
    scoped = keys.idempotency
    keys.idempotency = lambda tenant, key_id, route, name: scoped(tenant, "", "", name)


def _body_unchecked() -> None:
    named.call_digest = lambda request, *, secret: "always the same"  # type: ignore[attr-defined]


def _name_per_process() -> None:
    scoped, here = keys.idempotency, str(os.getpid())
    keys.idempotency = lambda tenant, key_id, route, name: scoped(tenant, key_id, route, here + name)


CROWD = {"callers": 30, "kills": 0}

MUTANTS: dict[str, Mutant] = {
    "flight-per-process": Mutant(
        "joins flights in one process only", (Killer("flock", "I7: "),), _flight_per_process
    ),
    "seedless-coalesced": Mutant(
        "takes all seedless requests for equal", (Killer("seedless flock", "I7: "),), _seedless_coalesced
    ),
    "tolerance-left-out": Mutant(
        "finds a picture whatever safety tolerance it was made with",
        (Killer("C-01", "I9: ", {"requests": 100}),), _tolerance_left_out,
    ),
    "tenant-left-out": Mutant(
        "finds a picture whoever paid for it", (Killer("C-01", "I8: ", {"requests": 100}),), _tenant_left_out
    ),
    "sent-untold": Mutant(
        "sends without saying so to those who may take over",
        (Killer("C-02", "max(sent.values()) == 1", {"rounds": 2}),), _sent_untold,
    ),
    "inherits-the-402": Mutant(
        "tells followers that their leader's budget is exhausted", (Killer("C-04", "rich callers", {"rounds": 0}),),
        _inherits_the_402,
    ),
    "name-unscoped": Mutant(
        "takes one key's name for another's", (Killer("C-06", "I6: ", {"callers": 10}),), _unscoped
    ),
    "body-unchecked": Mutant(
        "takes any request under a name for the first", (Killer("C-05", "I6: ", CROWD),), _body_unchecked
    ),
    "name-per-process": Mutant(
        "remembers names in one process only", (Killer("C-05", "I6: ", CROWD),), _name_per_process
    ),
    "first-come-first-served": Mutant(
        "gives slots to whoever waits longest, whatever the weights", (Killer("L-05", "jain", {"seconds": 6}),),
        script="turns", change=("(by_tenant[want.tenant] or 0) / want.weight", "0"),
    ),
}  # fmt: skip
