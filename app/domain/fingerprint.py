"""Digests of requests, keyed per scope so that prompts cannot be guessed: the cache's, over everything that changes
pixels, and a named call's, over everything that its caller wrote.

Pure. A field is in it or is listed as left out; the test of this module fails when `Request` grows a field that nobody
decided about.
"""

from __future__ import annotations

import hmac
import json
from collections.abc import Mapping
from functools import lru_cache

from app.domain.job import Job, Request

# Fields of Request that change pixels, and those that do not.
INCLUDED = ("job_type", "parameters", "seed", "output", "fit", "uploads", "safety_asked")
LEFT_OUT = ("seed_given", "response_format", "user", "tags", "given", "chosen")


@lru_cache(1024)
def scope_secret(pepper: bytes, scope: str) -> bytes:
    """The key of one cache scope (a tenant or a named pool)."""
    return hmac.digest(pepper, b"kontext-gateway/scope/" + scope.encode(), "sha256")


def fingerprint(job: Job, *, secret: bytes, gate_version: int, keep_metadata: bool) -> str:
    """Hex digest (64 characters) of the job's pixels-to-be.

    The effective safety tolerance is in it through `config`; the asked one matters only through it. For each input it
    is the digest of the upload as it came, with `fit` and the gate's version, so that a hit never decodes.
    """
    request = job.request
    inputs: Mapping[str, str] = {name: upload.sha256 for name, upload in request.uploads.items()}
    canonical = json.dumps(
        [
            job.type.type,
            job.type.version,
            dict(job.config),
            request.output,
            [inputs, request.fit, gate_version, keep_metadata] if inputs else None,
        ],
        sort_keys=True,
        separators=(",", ":"),
        ensure_ascii=True,
        allow_nan=False,
    )
    return hmac.digest(secret, canonical.encode("ascii"), "sha256").hex()


def call_digest(request: Request, *, secret: bytes, hook: str = "") -> str:
    """Hex digest (64 characters) of everything that a caller wrote, for calls under one name.

    Only what was given counts, so that neither a new default nor another choice of `auto` makes a repeat another call;
    a seed that the gateway assigned does not. `hook` is the webhook that is asked for.
    """
    given = {name: value for name, value in request.parameters.items() if name in request.given}
    canonical = json.dumps(
        [
            request.job_type.operation,
            "auto" if request.chosen else request.job_type.variant,
            given,
            request.seed if request.seed_given else None,
            request.safety_asked,
            [request.output, request.fit, request.response_format],
            [request.user, request.tags, hook],
            {name: upload.sha256 for name, upload in request.uploads.items()},
        ],
        sort_keys=True,
        separators=(",", ":"),
        ensure_ascii=True,
        allow_nan=False,
    )
    return hmac.digest(secret, b"call/" + canonical.encode("ascii"), "sha256").hex()


def prompt_digest(prompt: str, *, secret: bytes) -> str:
    """Hex digest (64 characters) by which equal prompts of one scope are told, and none is found without its key."""
    return hmac.digest(secret, b"prompt/" + prompt.encode("utf-8", "surrogatepass"), "sha256").hex()
