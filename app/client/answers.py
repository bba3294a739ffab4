"""What the gateway's replies hold, as typed records. Built by `client.py`; members without a field of their own are in
`document`.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Safety:
    """What became of `safety_tolerance`: asked for, applied, the ceiling, and why (`requested`, `defaulted`, `clamped`,
    `no_knob`)."""

    requested: int | None
    applied: int | None
    ceiling: int | None
    action: str


@dataclass(frozen=True, slots=True)
class Cost:
    """What the tenant pays for this reply; one dollar is 1,000,000 `micro_usd`."""

    micro_usd: int
    usd: str
    saved_micro_usd: int


@dataclass(frozen=True, slots=True)
class Picture:
    """A finished picture.

    Attributes:
        data: the encoded picture, of the media type `content_type`.
        id: `img_...`: start an edit from it, or read it again with `Client.image`.
        job_id: the upstream job that made it.
        source: `upstream` (made for you), `cache` (made before), `coalesced` (being made for an identical request).
        input: of an edit, what was done to the upload; None otherwise.
        advice: hints on the prompt; often empty.
        document: the whole reply, without the bytes.
    """

    data: bytes = field(repr=False)
    id: str
    job_id: str
    operation: str
    variant: str
    job_type: str
    seed: int
    source: str
    created: int
    content_type: str
    width: int
    height: int
    sha256: str
    safety: Safety
    cost: Cost
    input: Mapping[str, Any] | None
    advice: tuple[Any, ...]
    request_id: str
    document: Mapping[str, Any] = field(repr=False)


@dataclass(frozen=True, slots=True)
class StoredPicture:
    """A picture read by its id."""

    data: bytes = field(repr=False)
    id: str
    content_type: str
    sha256: str


def picture(document: dict[str, Any]) -> Picture:
    """The picture of a JSON reply with `b64_json`. Raises KeyError, TypeError or ValueError for any other document."""
    image, cost, safety = dict(document["image"]), document["cost"], document["safety"]
    data = base64.b64decode(image.pop("b64_json"), validate=True)
    return Picture(
        data=data,
        id=image["id"],
        job_id=document["id"],
        operation=document["operation"],
        variant=document["variant"],
        job_type=document["job_type"],
        seed=document["seed"],
        source=document["source"],
        created=document["created"],
        content_type=image["content_type"],
        width=image["width"],
        height=image["height"],
        sha256=image["sha256"],
        safety=Safety(safety["requested"], safety["applied"], safety["ceiling"], safety["action"]),
        cost=Cost(cost["micro_usd"], cost["usd"], cost["saved_micro_usd"]),
        input=document.get("input"),
        advice=tuple(document.get("advice") or ()),
        request_id=document["request_id"],
        document=document | {"image": image},
    )
