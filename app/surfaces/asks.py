"""Reads the bodies of the native paid calls: what `/v1/generate` and `/v1/edit` take, and a quote with them.

Called by the native surface and the reports. What cannot be read is an `InvalidRequest` before anything is spent; an
image that is named by id is looked up for its own tenant.
"""

from __future__ import annotations

import re
from typing import Any

from starlette.requests import Request

from app.domain.job import Ask, Caller
from app.domain.upload import Upload
from app.errors import InvalidRequest
from app.pipeline import Gateway
from app.surfaces.body import EDIT_JSON_BYTES, JSON_SLACK, decode_base64, media_type, read_form, read_json

IMAGE_ID = "^img_[0-9a-f]{48}$"
OPERATIONS = ("generate", "edit")
_DATA_URL = re.compile(r"data:image/[a-z.+-]{1,32};base64,", re.ASCII)

# Fields, uploads by input name, and whether the fields came from a form and are text.
EditBody = tuple[dict[str, Any], dict[str, Upload], bool]


async def read_generate(request: Request) -> dict[str, Any]:
    """The fields of a generation. Raises InvalidRequest."""
    require(request, "application/json")
    return await read_json(request, JSON_SLACK)


async def read_edit(request: Request, caller: Caller, gateway: Gateway) -> EditBody:
    """The body of an edit, as a form or as JSON. Raises InvalidRequest, and Refused: not_found for an image id."""
    if media_type(request)[0] == "multipart/form-data":
        return await _read_form(request, gateway)
    require(request, "application/json", "multipart/form-data")
    fields = await read_json(request, EDIT_JSON_BYTES)
    return fields, await _uploads(fields, caller, gateway), False


async def read_quote(request: Request, caller: Caller, gateway: Gateway, chosen: str | None) -> Ask:
    """What a quote is asked for: `operation`, and the body that its call takes. A form stands for an edit.

    Args:
        chosen: the picture's format where Accept names one, as the call takes it.

    Raises like `read_edit`.
    """
    if media_type(request)[0] == "multipart/form-data":
        fields, uploads, _ = await _read_form(request, gateway)
        operation = fields.pop("operation", "edit")
        if operation != "edit":
            raise InvalidRequest("`operation` must be edit in a form.", field="operation", choices=["edit"])
        return Ask("edit", fields, uploads, textual=True, accepted_format=chosen)
    require(request, "application/json", "multipart/form-data")
    fields = await read_json(request, EDIT_JSON_BYTES)
    operation = fields.pop("operation", None)
    if operation not in OPERATIONS:
        text = f"`operation` must be one of {', '.join(OPERATIONS)}."
        raise InvalidRequest(text, field="operation", choices=list(OPERATIONS))
    uploads = await _uploads(fields, caller, gateway) if operation == "edit" else {}
    return Ask(operation, fields, uploads, accepted_format=chosen)


async def _read_form(request: Request, gateway: Gateway) -> EditBody:
    form = await read_form(request, media_type(request)[1])
    if name := next((name for name in _inputs(gateway) if name in form.fields), None):
        raise InvalidRequest(f"`{name}` must be a file: a part with a file name or an image type.", field=name)
    fields: dict[str, Any] = {name: values if name == "tags" else values[0] for name, values in form.fields.items()}
    return fields, form.files, True


async def _uploads(fields: dict[str, Any], caller: Caller, gateway: Gateway) -> dict[str, Upload]:
    """The inputs among the fields of a JSON body, which they are taken out of."""
    return {
        name: await read_upload(name, fields.pop(name), caller, gateway) for name in _inputs(gateway) if name in fields
    }


async def read_upload(name: str, value: Any, caller: Caller, gateway: Gateway) -> Upload:
    """An image in a JSON body: a data URL, {"b64": ...} or {"image_id": ...}."""
    match value:
        case str() if prefix := _DATA_URL.match(value):
            return Upload(await decode_base64(value[prefix.end() :], name))
        case {"b64": str() as text} if len(value) == 1:
            return Upload(await decode_base64(text, name))
        case {"image_id": str() as wanted} if len(value) == 1 and re.fullmatch(IMAGE_ID, wanted):
            return Upload((await gateway.pictures.by_key(caller, wanted)).image, wanted)
    raise InvalidRequest(f'`{name}` must be a data URL, {{"b64": ...}} or {{"image_id": ...}}.', field=name)


def _inputs(gateway: Gateway) -> set[str]:
    return {rule.name for job in gateway.catalog.enabled.values() for rule in job.inputs}


def require(request: Request, *kinds: str) -> None:
    """Hold a body to the first of these media types; the others are named too. Raises InvalidRequest."""
    if media_type(request)[0] != kinds[0]:
        raise InvalidRequest(f"Send {' or '.join(kinds)}.", code="unsupported_type", accepted=list(kinds))
