"""A job as it waits in the queue: what was asked and what policy decided of it, as text.

Written by `intake` and read by the worker, maybe of another replica, maybe after a restart. What was decided stays: the
seed, the safety tolerance, the price. Whether it may still be sent is asked again when its turn has come.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import orjson

from app.domain.catalog import Catalog
from app.domain.client_token import ClientToken
from app.domain.job import Caller, Choice, Job, Request, SafetyDecision
from app.domain.upload import Upload
from app.errors import Refused
from app.pipeline import Control


def pack(job: Job, control: Control) -> bytes:
    """Everything but the caller and the uploads' bytes."""
    request = job.request
    return orjson.dumps(
        {
            "operation": job.operation, "variant": job.variant, "type": job.type.type,
            "parameters": dict(request.parameters), "seed": request.seed, "seed_given": request.seed_given,
            "output": request.output, "fit": request.fit, "response_format": request.response_format,
            "user": request.user, "tags": request.tags, "safety_asked": request.safety_asked,
            "given": sorted(request.given), "chosen": asdict(request.chosen) if request.chosen else None,
            "safety": asdict(job.safety), "config": dict(job.config), "price": job.price,
            "control": asdict(control),
            "client": job.caller.client and job.caller.client.to_json().decode(),
            "images": {name: one.image_id for name, one in request.uploads.items()},
        }
    )  # fmt: skip


def unpack(text: bytes, caller: Caller, catalog: Catalog, uploads: Mapping[str, Upload]) -> tuple[Job, Control]:
    """The job again, for its key's caller as it is now, within the client token if it came by one.

    Raises Refused: forbidden, the catalogue has no such type now.
    """
    told: dict[str, Any] = orjson.loads(text)
    if told["client"]:
        caller = caller.narrowed(ClientToken.from_json(told["client"].encode()))
    job_type = catalog.find(told["operation"], told["variant"])
    if job_type is None or job_type.type != told["type"]:
        raise Refused("forbidden", "The catalogue does not have this variant any more.", field="variant")
    for name, upload in uploads.items():
        upload.image_id = told["images"].get(name)
    request = Request(
        job_type=job_type, parameters=told["parameters"], seed=told["seed"], seed_given=told["seed_given"],
        output=told["output"], fit=told["fit"], response_format=told["response_format"], user=told["user"],
        tags=tuple(told["tags"]), uploads=uploads, safety_asked=told["safety_asked"], given=frozenset(told["given"]),
        chosen=Choice(**told["chosen"]) if told["chosen"] else None,
    )  # fmt: skip
    job = Job(caller, request, SafetyDecision(**told["safety"]), told["config"], told["price"])
    return job, Control(**told["control"])
