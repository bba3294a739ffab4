"""What OpenAI's image calls take, read into an `Ask`: its names for ours, and what of it FLUX.1 Kontext cannot do.

Called by the OpenAI surface alone. A field of OpenAI's is translated, or has no effect with the values of the table, or
is refused by name; Kontext's own fields go through as they are, and everything else is refused by validation.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request

from app.domain.catalog import Catalog, JobType
from app.domain.job import Ask, Caller
from app.domain.upload import Upload
from app.domain.validate import AUTO, DEFAULT_VARIANT, ENVELOPE
from app.errors import InvalidRequest
from app.pipeline import Gateway
from app.surfaces.asks import read_upload, require
from app.surfaces.body import EDIT_JSON_BYTES, FORM_BYTES, JSON_SLACK, media_type, read_json, read_parts

MAX_N = 10
PREFIX = "flux-kontext-"
REPLIES = ("b64_json", "url")
OURS = (*ENVELOPE, "n", "size", "safety_identifier")
_MASKS = "masks belong to other job types; say in the prompt what is to change and what must stay"
_FRAMES = "only still pictures are made"


@dataclass(frozen=True, slots=True)
class Without:
    """A field that Kontext has nothing for: the values that ask for nothing, and what to do otherwise."""

    neutral: tuple[Any, ...]
    instead: str


WITHOUT: Mapping[str, Without] = {
    "background": Without(("auto", "opaque"), "pictures have no transparency"),
    "complexity": Without((), "it belongs to SVG output"),
    "frame_count": Without((), _FRAMES),
    "frame_duration_ms": Without((), _FRAMES),
    "input_fidelity": Without(("low",), "say in the prompt what must stay"),
    "markup": Without((), _MASKS),
    "mask": Without((), _MASKS),
    "moderation": Without(("auto",), "use `safety_tolerance`"),
    "output_compression": Without((100,), "use `output_format`"),
    "partial_images": Without((0,), "a picture comes whole"),
    "quality": Without(("auto", "standard"), "choose another `model`, or `steps` with flux-kontext-dev"),
    "stream": Without((False,), "a picture comes whole"),
    "style": Without(("vivid",), "use `style_preset` with flux-kontext-dev, or say it in the prompt"),
    "svg": Without((), "pictures are jpeg, png or webp"),
}


@dataclass(frozen=True, slots=True)
class Order:
    """What was asked: the ask of one picture, how many, how they are given, and what a caller calls our fields."""

    ask: Ask
    n: int
    reply: str
    spelled: Mapping[str, str]


async def read_generation(request: Request, gateway: Gateway) -> Order:
    """The body of a generation. Raises InvalidRequest."""
    require(request, "application/json")
    fields = await read_json(request, JSON_SLACK)
    return _order("generate", fields, {}, gateway.catalog, textual=False)


async def read_edit(request: Request, caller: Caller, gateway: Gateway) -> Order:
    """The body of an edit, as a form or as JSON. Raises InvalidRequest, and Refused: not_found for an image id."""
    kind, options = media_type(request)
    if kind == "multipart/form-data":
        fields, uploads = await _form(request, options)
        return _order("edit", fields, uploads, gateway.catalog, textual=True)
    require(request, "application/json", "multipart/form-data")
    fields = await read_json(request, EDIT_JSON_BYTES)
    image = _one_image(fields)
    uploads = {} if image is None else {"image": await read_upload("image", image, caller, gateway)}
    return _order("edit", fields, uploads, gateway.catalog, textual=False)


def _order(
    operation: str, fields: dict[str, Any], uploads: Mapping[str, Upload], catalog: Catalog, *, textual: bool
) -> Order:
    if "variant" in fields:
        raise InvalidRequest("`variant` is named by `model` here.", field="variant")
    job_type = _model(fields, operation, catalog)
    choice = (job_type,) if job_type else tuple(job for (of, _), job in catalog.enabled.items() if of == operation)
    own = {name for job in choice for name in (*job.parameters, *(rule.name for rule in job.inputs))}
    for name in [name for name, value in fields.items() if value is None and name in (*own, *OURS, *WITHOUT)]:
        del fields[name]  # null means to OpenAI's clients that it is not given
    for name in [name for name in WITHOUT if name in {*fields, *uploads} and name not in own]:
        _nothing(name, fields.pop(name, None), textual)
    spelled = {"variant": "model"} | _size(fields, job_type) | _user(fields)
    n = _count(fields.pop("n", 1), textual)
    reply = fields.get("response_format", REPLIES[0])
    return Order(Ask(operation, fields, uploads, textual=textual), n, reply, spelled)


async def _form(request: Request, options: dict[str, str]) -> tuple[dict[str, Any], dict[str, Upload]]:
    fields: dict[str, Any] = {}
    uploads: dict[str, Upload] = {}
    async for part in read_parts(request, options, FORM_BYTES):
        shown = part.name[:64]
        name = part.name if part.name != "image[]" else "image"
        if part.is_file:
            if name == "image" and name in uploads:
                raise _several()
            if name in uploads:
                raise InvalidRequest(f"`{shown}` is given more than once.", field=shown, status=400)
            uploads[name] = Upload(part.data)
            continue
        if name == "image":
            raise InvalidRequest("`image` must be a file: a part with a file name or an image type.", field="image")
        try:
            text = part.data.decode("utf-8")
        except UnicodeDecodeError:
            raise InvalidRequest(f"`{shown}` is not UTF-8 text.", field=shown, status=400) from None
        if name in ("tags", "tags[]"):
            fields.setdefault("tags", []).append(text)
        elif name in fields:
            raise InvalidRequest(f"`{shown}` is given more than once.", field=shown, status=400)
        else:
            fields[name] = text
    return fields, uploads


def _one_image(fields: dict[str, Any]) -> Any:
    """The image of a JSON edit: `image` as the native call takes it, or OpenAI's `images`, each alone or in a list."""
    if "image" in fields and "images" in fields:
        raise _several()
    found = fields.pop("images") if "images" in fields else fields.pop("image", None)
    if isinstance(found, list):
        if len(found) != 1:
            raise _several()
        found = found[0]
    match found:
        case {"image_url": str() as url} if len(found) == 1:
            return url
        case {"file_id": _}:
            raise InvalidRequest('No files are kept here: send `image_url` or {"image_id": ...}.', field="image")
    return found


def _several() -> InvalidRequest:
    return InvalidRequest("FLUX.1 Kontext starts from one image: send exactly one.", field="image", maximum=1)


def _model(fields: dict[str, Any], operation: str, catalog: Catalog) -> JobType | None:
    """The job type of `model`, which becomes `variant`; None where the gateway is to choose. Raises InvalidRequest."""
    model = fields.pop("model", None)
    model = DEFAULT_VARIANT if model is None else model
    variant = model.removeprefix(PREFIX) if isinstance(model, str) else ""
    found = catalog.find(operation, variant)
    if found is None and variant != AUTO:
        offered = [job.model for (kind, _), job in catalog.enabled.items() if kind == operation]
        text = f"`model` must be one of {', '.join((*offered, AUTO))} here."
        raise InvalidRequest(text, field="model", choices=[*offered, AUTO])
    fields["variant"] = variant
    return found


def _nothing(name: str, value: Any, textual: bool) -> None:
    """Let a value pass that asks for nothing. Raises InvalidRequest."""
    rule = WITHOUT[name]
    for neutral in rule.neutral:
        same = value == (neutral if isinstance(neutral, str) else json.dumps(neutral))
        if same if textual else type(value) is type(neutral) and value == neutral:
            return
    if not rule.neutral:
        raise InvalidRequest(f"`{name}` is not supported: {rule.instead}.", field=name)
    shown = [neutral if isinstance(neutral, str) else json.dumps(neutral) for neutral in rule.neutral]
    text = f"`{name}` can only be {' or '.join(shown)} here: {rule.instead}."
    raise InvalidRequest(text, field=name, choices=list(rule.neutral))


def _size(fields: dict[str, Any], job_type: JobType | None) -> dict[str, str]:
    """Put an aspect ratio, or width and height, in the place of `size`; what its parts are called by the caller."""
    size = fields.pop("size", AUTO)
    if size == AUTO:
        return {}
    found = re.fullmatch(r"([1-9][0-9]{0,4})x([1-9][0-9]{0,4})", size, re.ASCII) if isinstance(size, str) else None
    if found is None:
        raise InvalidRequest("`size` must be auto or WIDTHxHEIGHT in pixels, such as 1024x1536.", field="size")
    width, height = int(found[1]), int(found[2])
    parameters = {"aspect_ratio"} if job_type is None else job_type.parameters
    if "aspect_ratio" in parameters:
        common = math.gcd(width, height)
        parts: dict[str, Any] = {"aspect_ratio": f"{width // common}:{height // common}"}
    elif {"width", "height"} <= set(parameters):
        parts = {"width": width, "height": height}
    else:
        raise InvalidRequest("`size` cannot be chosen with this model.", field="size")
    if clash := next((name for name in parts if name in fields), None):
        raise InvalidRequest(f"Send `size` or `{clash}`, not both.", field="size")
    fields |= parts
    return dict.fromkeys(parts, "size")


def _user(fields: dict[str, Any]) -> dict[str, str]:
    """The end user under either of OpenAI's names; what `user` is called by the caller."""
    if "safety_identifier" not in fields:
        return {}
    if "user" in fields:
        raise InvalidRequest("Send `user` or `safety_identifier`, not both.", field="safety_identifier")
    fields["user"] = fields.pop("safety_identifier")
    return {"user": "safety_identifier"}


def _count(value: Any, textual: bool) -> int:
    if textual and isinstance(value, str) and re.fullmatch(r"[0-9]{1,3}", value, re.ASCII):
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MAX_N:
        text = f"`n` must be an integer from 1 to {MAX_N}."
        raise InvalidRequest(text, field="n", minimum=1, maximum=MAX_N)
    return value
