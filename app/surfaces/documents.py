"""The document of a finished picture: the native surface's JSON reply, and what others tell beside their own.

Pure, but for the signed link, which is made of the key's secret.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from app.domain.advice import advise
from app.domain.pricing import usd
from app.pipeline import Delivery, Gateway
from app.surfaces.dialect import picture_document


def result_document(delivery: Delivery, gateway: Gateway, request_id: str) -> dict[str, Any]:
    """What a caller is told of a picture, but for its own bytes."""
    job, result, safety = delivery.job, delivery.result, delivery.job.safety
    picture = picture_document(result, len(result.image))
    if job.request.response_format == "url":
        picture["url"] = gateway.pictures.link(job.caller, result)
    body: dict[str, Any] = {
        "id": result.job_id, "object": "kontext.result", "created": result.created,
        "operation": job.operation, "variant": job.variant, "job_type": job.type.type, "seed": result.seed,
        "source": delivery.source,
        "safety": asdict(safety),
        "image": picture,
        "cost": {"micro_usd": delivery.cost, "usd": usd(delivery.cost), "saved_micro_usd": delivery.saved},
        "advice": advise(job, gateway.catalog, gateway.guidance),
        "request_id": request_id,
    }  # fmt: skip
    if job.request.chosen:
        body["auto"] = asdict(job.request.chosen)
    inputs = {
        name: {
            "sha256": delivery.digests[name], "width": plan.width, "height": plan.height, "fitted": plan.fitted,
            "actions": list(plan.actions),
        }
        for name, plan in delivery.plans.items()
    }  # fmt: skip
    if len(inputs) == 1:
        body["input"] = next(iter(inputs.values()))
    elif inputs:
        body["inputs"] = inputs
    return body
