"""The record of a picture that was bought: what the cache keeps and replies tell of it.

Pure but for the clock. Called by the pipeline when an answer of the upstream is whole.
"""

from __future__ import annotations

import hashlib
from time import time

from app.cache.results import Result, image_id
from app.domain import pricing
from app.domain.job import Job
from app.prodia.wire import Completed


def bought_result(
    job: Job, bought: Completed, picture: tuple[str, int, int], job_id: str, scope: str, where: str
) -> Result:
    """What is kept of an answer; `picture` is (content type, width, height), `where` the digest it is stored under."""
    content_type, width, height = picture
    sha256, price = hashlib.sha256(bought.image).hexdigest(), pricing.actual(job.price, bought.price_micro_usd).paid
    return Result(
        image=bought.image, job_id=job_id, image_id=image_id(where, sha256), sha256=sha256,
        content_type=content_type, width=width, height=height,
        seed=job.request.seed, job_type=job.type.type, variant=job.variant, operation=job.operation,
        safety_applied=job.safety.applied, price=price, created=int(time()), scope=scope,
    )  # fmt: skip


def claim_digest(job_id: str) -> str:
    """Where a result that must not be reused waits for those it was made for."""
    return hashlib.sha256(b"kontext-gateway/claim/" + job_id.encode()).hexdigest()
