"""Cache digests of jobs drawn at random, told apart by what they would be sent as: for C-01."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

from app.domain import policy
from app.domain.fingerprint import fingerprint, scope_secret
from app.domain.tenant import SafetyRule
from app.domain.upload import Upload
from app.domain.validate import validate
from tests.unit.asks import CATALOG, ask, caller, tenant

PEPPER = b"pepper-of-the-tests-0123456789abcdef"
WIDE = tenant({"generate": SafetyRule(6), "edit": SafetyRule(2)}, without=("dev",))
SECRETS = {scope: scope_secret(PEPPER, scope) for scope in ("t:acme", "t:zeta", "pool:shared")}
PROMPTS = ("ab c", "a bc", "abc", "ab\u0301c", "\u00e1bc", "abc ", " abc", "1.0", "[1.0]", '"abc"')


def distinct(draw: random.Random, count: int) -> int:
    """So many digests, each of a job that differs from others in few fields, compared; how many pairs that are. Raises
    AssertionError where two jobs share a digest or one job has two."""
    jobs: dict[str, object] = {}
    while len(jobs) < count:
        name, digest = _drawn(draw)
        assert jobs.setdefault(digest, name) == name, f"{name} and {jobs[digest]} share a digest"
    assert len(set(jobs.values())) == count
    return count * (count - 1) // 2


def _drawn(draw: random.Random) -> tuple[str, str]:
    operation = draw.choice(["generate", "edit"])
    fields: dict[str, Any] = {
        "prompt": draw.choice(PROMPTS),
        "variant": draw.choice(["pro", "max"]),
        "seed": draw.randrange(40),
        "safety_tolerance": draw.choice([None, 0, 1, 2]),
        "aspect_ratio": draw.choice([None, "1:1", "1:11", "11:1"]),
        "output_format": draw.choice([None, "jpeg", "png", "webp"]),
        "prompt_upsampling": draw.choice([None, True, False]),
    }
    made = ask(operation, **fields)
    if operation == "edit":
        made = replace(made, uploads={"image": Upload(draw.choice([b"one", b"on", b"e"]))})
    job = policy.apply(caller(WIDE), validate(made, CATALOG))
    scope, gate, keep = draw.choice(list(SECRETS)), draw.choice([1, 2]), draw.random() < 0.5
    uploads = {name: upload.sha256 for name, upload in job.request.uploads.items()}
    pixels = (job.type.type, sorted(job.config.items()), job.request.output)
    gated = (uploads, job.request.fit, gate, keep) if uploads else None
    return repr((scope, pixels, gated)), fingerprint(job, secret=SECRETS[scope], gate_version=gate, keep_metadata=keep)
