"""Mistakes at the edges: who is let in, what is read, what is told, and how a process stops."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from typing import Any

from PIL import Image

from app.domain import policy
from app.domain.tenant import Tenant
from app.errors import Refused
from app.health import Health
from app.images import plan, worker
from app.jobs import address
from app.pictures import Pictures
from app.pipeline import Gateway
from app.purchase import Buyer
from app.surfaces import prodia
from app.surfaces.intake import Charge
from app.telemetry import access
from app.tenants import Keyring
from tests.mutants.mutant import Killer, Mutant


def _ready_while_it_drains() -> None:
    Health.draining = property(lambda self: False, lambda self, value: None)  # type: ignore[assignment]


def _bytes_uncounted() -> None:
    Charge.grow = lambda self, total: None  # type: ignore[method-assign]


def _unchecked_at_dispatch() -> None:
    async def allowed(self: Buyer, job: object) -> None:
        """Always."""

    Buyer._still_allowed = allowed  # type: ignore[method-assign]


def _key_by_prefix() -> None:
    resolve, known = Keyring.resolve, dict[str, tuple[str, str, str]]()

    async def by_prefix(self: Keyring, token: str) -> tuple[str, str, str]:
        if token[:20] not in known:
            known[token[:20]] = await resolve(self, token)
        return known[token[:20]]

    Keyring.resolve = by_prefix  # type: ignore[method-assign]


def unlimited() -> None:
    """Prepare a decode process that lets Pillow decode whatever it is given."""
    prepare()
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)
    Image.MAX_IMAGE_PIXELS = None


prepare = worker.start


def _pixels_unchecked() -> None:
    plan.UPLOAD_MAX_PIXELS = 10**12
    worker.start = unlimited


def _anybodys_picture() -> None:
    async def readable(self: Pictures, tenant: Tenant, wanted: str) -> Any:
        scopes = tuple(f"t:{name}" for name in self._tenants.current.tenants)
        found = await self._results.by_id(scopes, wanted)
        if found is None:
            raise Refused("not_found", "There is no such picture.")
        return found

    Pictures._readable = readable  # type: ignore[method-assign]


def _default_above_the_ceiling() -> None:
    decide = policy.decide

    def decided(tenant: Tenant, request: Any) -> Any:
        decision = decide(tenant, request)
        if decision.action != "defaulted":
            return decision
        return replace(decision, applied=int(request.job_type.role("safety")[1].default))

    policy.decide = decided


def _last_of_two_keys_in_a_job() -> None:
    prodia.parse_json = json.loads


def _prompt_in_a_log_line() -> None:
    admit, line = Gateway.admit, access.request_line
    prompts: dict[str, object] = {}

    async def noted(self: Gateway, caller: Any, ask: Any, record: Any, **options: Any) -> Any:
        prompts[record.request_id] = ask.fields.get("prompt")
        return await admit(self, caller, ask, record, **options)

    def told(outcome: Any, *args: Any) -> dict[str, object]:
        return line(outcome, *args) | {"prompt": prompts.get(outcome.request_id)}

    Gateway.admit = noted  # type: ignore[method-assign]
    access.request_line = told  # type: ignore[attr-defined]


def _webhooks_to_anywhere() -> None:
    address.allowed = lambda target, allow: True


MUTANTS: dict[str, Mutant] = {
    "webhooks-to-anywhere": Mutant(
        "takes a webhook to a host that the allow list does not name", (Killer("S-01", "assert (answer.status"),),
        _webhooks_to_anywhere,
    ),
    "prompt-in-a-log-line": Mutant(
        "logs what was asked for", (Killer("O-01", "I10: the prompt is in", {"ways": 1}),), _prompt_in_a_log_line
    ),
    "unchecked-at-dispatch": Mutant(
        "does not look at the policy again when a job's turn has come", (Killer("A-05", "I9: ", {"requests": 0}),),
        _unchecked_at_dispatch,
    ),
    "default-above-the-ceiling": Mutant(
        "gives a request without a tolerance the usual one, whatever the ceiling",
        (Killer("A-05", "surprises", {"requests": 600}),), _default_above_the_ceiling,
    ),
    "last-of-two-keys-in-a-job": Mutant(
        "reads a job in Prodia's form whose tolerance is given twice",
        (Killer("A-05", "surprises", {"requests": 600}),), _last_of_two_keys_in_a_job,
    ),
    "key-by-prefix": Mutant(
        "knows a key by its first characters", (Killer("A-01", "'near'", {"hosts": 0}),), _key_by_prefix
    ),
    "anybodys-picture": Mutant(
        "shows a picture to whoever knows its id", (Killer("A-01", "IDOR", {"hosts": 0}),), _anybodys_picture
    ),
    "bytes-uncounted": Mutant(
        "reads uploads without counting what they take", (Killer("L-03", "Counter({422", {"uploads": 24}),),
        _bytes_uncounted,
    ),
    "pixels-unchecked": Mutant(
        "lets Pillow decode a picture of any size", (Killer("I-01", "was answered 200", {"rounds": 1}),),
        _pixels_unchecked,
    ),
    "ready-while-it-drains": Mutant(
        "says that it is ready while it drains",
        (Killer("D-01", "load.outcomes()", {"each": 2, "scale": 0.1, "rate": 40}),), _ready_while_it_drains,
    ),
}  # fmt: skip
