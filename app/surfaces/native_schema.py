"""OpenAPI of the native surface, made from the catalogue's data: what the schema says is legal, the gateway takes.

The bodies are read off the stream by hand, so their schemas are declared here and not by FastAPI's own models.
"""

from __future__ import annotations

from typing import Any

from app.domain.catalog import OUTPUT_FORMATS, Catalog
from app.domain.validate import AUTO, MAX_TAG_LENGTH, MAX_TAGS, MAX_USER_LENGTH
from app.errors import CODES

_PICTURE = {
    kind: {"schema": {"type": "string", "format": "binary"}} for kind in ("image/jpeg", "image/png", "image/webp")
}
IMAGE_ID = "^img_[0-9a-f]{48}$"
_PROBLEM = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
_COMMON = (400, 401, 403, 404, 405, 411, 413, 415, 422, 429, 431, 500, 503)
_PAID = (402, 409, 502, 504)
_TAGS: dict[str, Any] = {
    "type": "array",
    "maxItems": MAX_TAGS,
    "items": {"type": "string", "minLength": 1, "maxLength": MAX_TAG_LENGTH, "format": "printable"},
}
_IMAGE = {
    "oneOf": [
        {"type": "string", "format": "image-data-url", "description": "data:image/...;base64,..."},
        {
            "type": "object",
            "properties": {"b64": {"type": "string", "format": "image-base64", "contentEncoding": "base64"}},
            "required": ["b64"],
            "additionalProperties": False,
        },
        {
            "type": "object",
            "properties": {"image_id": {"type": "string", "pattern": IMAGE_ID}},
            "required": ["image_id"],
            "additionalProperties": False,
        },
    ]
}
RESULT = {
    "type": "object",
    "required": [
        "id",
        "object",
        "created",
        "operation",
        "variant",
        "job_type",
        "seed",
        "source",
        "safety",
        "image",
        "cost",
    ],
    "properties": {"object": {"const": "kontext.result"}, "source": {"enum": ["upstream", "cache", "coalesced"]}},
}
PROBLEM = {
    "type": "object",
    "required": ["type", "title", "status", "detail", "code", "charged", "request_id"],
    "properties": {
        "status": {"type": "integer"},
        "code": {"enum": sorted(CODES)},
        "charged": {"enum": ["no", "yes", "unknown"]},
    },
}


def generate() -> dict[str, Any]:
    """Route arguments of POST /v1/generate."""
    return _route("generate", {"application/json": {"schema": {"$ref": "#/components/schemas/Generate"}}})


def edit() -> dict[str, Any]:
    """Route arguments of POST /v1/edit."""
    return _route(
        "edit",
        {
            "application/json": {"schema": {"$ref": "#/components/schemas/Edit"}},
            "multipart/form-data": {"schema": {"$ref": "#/components/schemas/EditForm"}},
        },
    )


def image() -> dict[str, Any]:
    """Route arguments of GET /v1/images/{id}."""
    return _read({**_PICTURE}, extra={304: {"description": "Not modified"}}, role="key or signed link")


def models() -> dict[str, Any]:
    """Route arguments of GET /v1/models."""
    return _read({"application/json": {"schema": {"type": "object", "required": ["object", "data"]}}})


def me() -> dict[str, Any]:
    """Route arguments of GET /v1/me."""
    return _read({"application/json": {"schema": {"type": "object", "required": ["object", "tenant", "limits"]}}})


def complete(schema: dict[str, Any], catalog: Catalog, auto: tuple[str, ...]) -> dict[str, Any]:
    """Put the catalogue's own request schemas, the error document and the key into a finished OpenAPI document.

    `auto` are the variants that `variant: auto` chooses from.
    """
    components = schema.setdefault("components", {})
    components.setdefault("schemas", {}).update(
        {
            "Generate": _body(catalog, "generate", auto, form=False),
            "Edit": _body(catalog, "edit", auto, form=False),
            "EditForm": _body(catalog, "edit", auto, form=True),
            "Result": RESULT,
            "Problem": PROBLEM,
        }
    )
    encoding = {
        rule.name: {"contentType": ", ".join(_PICTURE)} for job in catalog.enabled.values() for rule in job.inputs
    }
    schema["paths"]["/v1/edit"]["post"]["requestBody"]["content"]["multipart/form-data"]["encoding"] = encoding
    components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    return schema


def _body(catalog: Catalog, operation: str, auto: tuple[str, ...], *, form: bool) -> dict[str, Any]:
    """One alternative per variant: exactly its fields, and nothing else. `auto` goes with the fields of any of them."""
    alternatives = []
    for (found, variant), job in catalog.enabled.items():
        if found != operation:
            continue
        properties: dict[str, Any] = {
            "variant": {"type": "string", "enum": [variant, AUTO] if variant in auto else [variant]},
            "output_format": {"type": "string", "enum": list(OUTPUT_FORMATS)},
            "fit": {"type": "string", "enum": ["auto", "strict"]},
            "response_format": {"type": "string", "enum": ["url", "b64_json"]},
            "user": {"type": "string", "minLength": 1, "maxLength": MAX_USER_LENGTH, "format": "printable"},
            "tags": {"anyOf": [_TAGS, _TAGS["items"]]} if form else _TAGS,
        }
        for name, parameter in job.parameters.items():
            properties[name] = parameter.json_schema()
            if parameter.only_with_output:
                properties[name] = {"type": "boolean", "enum": [False]}
        if not job.inputs:
            del properties["fit"]
        for rule in job.inputs:
            properties[rule.name] = {"type": "string", "format": "binary"} if form else _IMAGE
        required = [name for name, parameter in job.parameters.items() if parameter.required]
        required += [rule.name for rule in job.inputs]
        if variant != "pro":
            required.append("variant")
        alternatives.append(
            {
                "type": "object",
                "title": variant,
                "properties": properties,
                "required": required,
                "additionalProperties": False,
            }
        )
    return {"anyOf": alternatives}


def _route(operation: str, content: dict[str, Any]) -> dict[str, Any]:
    return {
        "operation_id": operation,
        "responses": {
            200: {
                "description": "The picture: bytes, or JSON where Accept prefers it.",
                "content": {**_PICTURE, "application/json": {"schema": {"$ref": "#/components/schemas/Result"}}},
            },
            **_problems(*_COMMON, *_PAID),
        },
        "openapi_extra": {"requestBody": {"required": True, "content": content}, "security": [{"key": []}]},
    }


def _read(content: dict[str, Any], *, extra: dict[int, Any] | None = None, role: str = "key") -> dict[str, Any]:
    return {
        "responses": {200: {"description": "Found", "content": content}, **(extra or {}), **_problems(*_COMMON)},
        "openapi_extra": {"security": [{"key": []}], "x-role": role},
    }


def _problems(*statuses: int) -> dict[int, Any]:
    return {status: {"description": "Refused or failed", "content": _PROBLEM} for status in statuses}
