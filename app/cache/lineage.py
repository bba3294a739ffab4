"""How a picture came to be: one record for each step, so that a chain of edits can be followed back to its upload.

Written by the pipeline beside a picture's bytes, read by the surface that tells of it. A record lies in the ledger's
Redis under its tenant, holds a keyed digest in the place of the prompt, and outlives the picture's bytes, but not its
deletion. One that cannot be written is lost, and the picture delivered all the same. Key: `keys.lineage`.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import orjson

from app.cache.results import Result
from app.domain.fingerprint import prompt_digest, scope_secret
from app.domain.job import Job
from app.errors import LedgerUnavailable
from app.store import keys
from app.store.redis import Store

LONGEST = 100  # steps that are followed
ROUND = 20  # records that are read in one round trip


@dataclass(frozen=True, slots=True)
class Input:
    """One input of a step: the digest of its bytes, and the picture it was, where it was named by id."""

    name: str
    sha256: str
    image: str | None


@dataclass(frozen=True, slots=True)
class Step:
    """One picture. `cost` is what its tenant paid, in micro-dollars; `made` is False where another of its pool made
    it; `scope` is where its bytes are stored."""

    image: str
    job: str
    created: int
    operation: str
    variant: str
    job_type: str
    seed: int
    applied: int | None
    cost: int
    prompt: str | None
    inputs: tuple[Input, ...]
    scope: str
    made: bool


@dataclass(frozen=True, slots=True)
class Chain:
    """Steps from a picture back to its uploads, newest first; not `whole` where a record is not there any more, or
    there are more than `LONGEST`."""

    steps: tuple[Step, ...]
    whole: bool


class Lineage:
    """The records of one process. `ttl` is in seconds, and at least as long as a tenant keeps its pictures."""

    def __init__(self, store: Store, pepper: bytes, *, ttl: int) -> None:
        self._store = store
        self._pepper = pepper
        self._ttl = ttl

    async def note(self, job: Job, result: Result, *, made: bool) -> None:
        """Write the record of a picture; one that is there already stays when it was not this job that made it. Never
        raises for a Redis that is away."""
        tenant, prompt = job.caller.tenant, job.request.parameters.get("prompt")
        secret = scope_secret(self._pepper, f"t:{tenant.id}")
        step = Step(
            image=result.image_id, job=result.job_id, created=result.created, operation=result.operation,
            variant=result.variant, job_type=result.job_type, seed=result.seed, applied=result.safety_applied,
            cost=result.price if made else 0, prompt=prompt_digest(prompt, secret=secret) if prompt else None,
            inputs=tuple(Input(name, one.sha256, one.image_id) for name, one in job.request.uploads.items()),
            scope=result.scope, made=made,
        )  # fmt: skip
        ttl = max(self._ttl, tenant.cache.ttl_seconds)
        unless = () if made else ("NX",)
        with suppress(LedgerUnavailable):
            name = keys.lineage(tenant.id, result.image_id)
            await self._store.command("SET", name, orjson.dumps(step), "EX", ttl, *unless)

    async def step(self, tenant: str, image: str) -> Step | None:
        """The record of one picture. Raises LedgerUnavailable."""
        return (await steps(self._store, tenant, [image])).get(image)

    async def chain(self, tenant: str, image: str) -> Chain | None:
        """The chain of a picture; None where this tenant knows none. Raises LedgerUnavailable."""
        seen: dict[str, Step] = {}
        ahead, whole = [image], True
        while ahead and len(seen) < LONGEST:
            asked = ahead[: min(ROUND, LONGEST - len(seen))]
            found = await steps(self._store, tenant, asked)
            whole = whole and len(found) == len(asked)
            seen |= found
            parents = [one.image for step in found.values() for one in step.inputs if one.image]
            ahead = [name for name in dict.fromkeys(ahead[len(asked) :] + parents) if name not in seen]
        return Chain(tuple(seen.values()), whole and not ahead) if image in seen else None

    async def forget(self, tenant: str, image: str) -> bool:
        """Delete a record; whether there was one. Raises LedgerUnavailable."""
        return bool(await self._store.command("DEL", keys.lineage(tenant, image)))


async def steps(store: Store, tenant: str, images: Sequence[str]) -> dict[str, Step]:
    """The records of a tenant's pictures that are there. Raises LedgerUnavailable."""
    found = await store.commands(*(("GET", keys.lineage(tenant, image)) for image in images))
    return {image: _step(text) for image, text in zip(images, found, strict=True) if text is not None}


def _step(text: bytes) -> Step:
    found: dict[str, Any] = orjson.loads(text)
    return Step(**(found | {"inputs": tuple(Input(**one) for one in found["inputs"])}))
