"""Mistakes in the queue and its webhooks."""

from __future__ import annotations

import secrets
from typing import Any

from app.jobs.hooks import Hooks
from tests.mutants.mutant import Killer, Mutant


def _webhook_anywhere() -> None:
    async def accept(self: Hooks, tenant: Any, url: object) -> str:
        return str(url)

    Hooks.accept = accept  # type: ignore[method-assign]


def _another_id_each_time() -> None:
    made = Hooks.headers

    async def headers(self: Hooks, tenant: str, hook_id: str, body: bytes) -> dict[str, str] | None:
        return await made(self, tenant, f"msg_{secrets.token_hex(8)}", body)

    Hooks.headers = headers  # type: ignore[method-assign]


MUTANTS: dict[str, Mutant] = {
    "seat-of-another": Mutant(
        "gives a seat that another worker has", (Killer("M-13", "model: "),),
        script="seat", change=("if held[2] ~= ARGV[5] then return {'state', 'taken'} end\n", ""),
    ),
    "seat-given-back-late": Mutant(
        "takes a seat back whatever its fence", (Killer("M-13", "model: "),),
        script="unseat", change=("or held[3] ~= ARGV[3] ", ""),
    ),
    "places-kept": Mutant(
        "gives a job back and keeps its places", (Killer("M-13", "I2: "),),
        script="unseat", change=("for _, place in ipairs(places) do redis.call('SREM', place, ARGV[1]) end\n", ""),
    ),
    "webhook-anywhere": Mutant(
        "tells whatever URL it is given", (Killer("S-01", "assert (answer.status"),), _webhook_anywhere
    ),
    "another-id-each-time": Mutant(
        "gives every attempt of a webhook an id of its own", (Killer("Q-07", "== wanted", {"kills": 0}),),
        _another_id_each_time,
    ),
}  # fmt: skip
