"""What a stored picture is to its tenant beyond its bytes: `GET /v1/images/{id}/lineage` and `DELETE /v1/images/{id}`.

Thin: `app.pictures` finds and deletes. Both take the key: a chain names pictures that a browser was never given.
"""

from __future__ import annotations

import re
from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Request
from fastapi import Path as PathParameter
from starlette.responses import Response

from app.cache.lineage import Step
from app.domain.pricing import usd
from app.errors import Refused
from app.surfaces import native_schema
from app.surfaces.asks import IMAGE_ID
from app.surfaces.deps import KeyCaller, gateway_of
from app.surfaces.dialect import json_response

router = APIRouter()
ImageId = Annotated[str, PathParameter(json_schema_extra={"pattern": IMAGE_ID})]


@router.get("/v1/images/{image_id}/lineage", **native_schema.lineage())
async def lineage(request: Request, image_id: ImageId, caller: KeyCaller) -> Response:
    """The chain of a picture back to its upload or text, newest first."""
    chain, heads = await gateway_of(request).pictures.lineage(caller, _legal(image_id))
    total = sum(step.cost for step in chain.steps)
    return json_response(
        {
            "object": "kontext.lineage", "image": image_id, "complete": chain.whole,
            "cost": {"micro_usd": total, "usd": usd(total)},
            "steps": [_step(step, stored=step.image in heads) for step in chain.steps],
        }
    )  # fmt: skip


@router.delete("/v1/images/{image_id}", status_code=204, **native_schema.deletion())
async def delete(request: Request, image_id: ImageId, caller: KeyCaller) -> Response:
    """Delete a picture and the record of how it came to be."""
    await gateway_of(request).pictures.delete(caller, _legal(image_id))
    return Response(status_code=204)


def _legal(image_id: str) -> str:
    if not re.fullmatch(IMAGE_ID, image_id):
        raise Refused("not_found", "There is no such picture.")
    return image_id


def _step(step: Step, *, stored: bool) -> dict[str, Any]:
    return {
        "image": step.image, "stored": stored, "job": step.job, "created": step.created, "operation": step.operation,
        "variant": step.variant, "job_type": step.job_type, "seed": step.seed, "safety": {"applied": step.applied},
        "cost": {"micro_usd": step.cost, "usd": usd(step.cost)}, "prompt_digest": step.prompt,
        "inputs": [asdict(one) for one in step.inputs],
    }  # fmt: skip
