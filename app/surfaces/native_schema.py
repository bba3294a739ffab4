"""OpenAPI of the native surface, made from the catalogue's data: what the schema says is legal, the gateway takes.

The bodies are read off the stream by hand, so their schemas are declared here and not by FastAPI's own models.
"""

from __future__ import annotations

from typing import Any

from app.domain.catalog import OUTPUT_FORMATS, Catalog
from app.domain.tenant import MAX_IMAGES
from app.domain.usage import FILTERS, GROUPS, MAX_TEXT, PERS
from app.domain.validate import AUTO, MAX_TAG_LENGTH, MAX_TAGS, MAX_USER_LENGTH
from app.errors import CODES
from app.jobs.hooks import FIELD
from app.store.keys import RECENT
from app.surfaces.asks import IMAGE_ID

_PICTURE = {
    kind: {"schema": {"type": "string", "format": "binary"}} for kind in ("image/jpeg", "image/png", "image/webp")
}
_PROBLEM = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
_COMMON = (400, 401, 403, 404, 405, 411, 413, 415, 422, 429, 431, 500, 503)
_PAID = (402, 409, 410, 502, 504)
_TAGS: dict[str, Any] = {
    "type": "array",
    "maxItems": MAX_TAGS,
    "items": {"type": "string", "minLength": 1, "maxLength": MAX_TAG_LENGTH, "format": "printable"},
}
_HOOK = {
    "type": "string",
    "format": "webhook-url",
    "description": "Told of the job's end, with `Prefer: respond-async`; below a URL that the tenant allows.",
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
    return _read({**_PICTURE}, extra={304: {"description": "Not modified"}}, role="key, client token or signed link")


def models() -> dict[str, Any]:
    """Route arguments of GET /v1/models."""
    return _read({"application/json": {"schema": {"type": "object", "required": ["object", "data"]}}})


def me() -> dict[str, Any]:
    """Route arguments of GET /v1/me."""
    return _read({"application/json": {"schema": {"type": "object", "required": ["object", "tenant", "limits"]}}})


def quote() -> dict[str, Any]:
    """Route arguments of POST /v1/quote."""
    content = {
        "application/json": {"schema": {"$ref": "#/components/schemas/Quote"}},
        "multipart/form-data": {"schema": {"$ref": "#/components/schemas/QuoteForm"}},
    }
    route = _read({"application/json": {"schema": {"type": "object", "required": ["object", "price", "allowed"]}}})
    route["openapi_extra"]["requestBody"] = {"required": True, "content": content}
    return route


def usage() -> dict[str, Any]:
    """Route arguments of GET /v1/usage."""
    text = {"type": "string", "minLength": 1, "maxLength": MAX_TEXT, "format": "printable"}
    groups = {"type": "array", "minItems": 1, "uniqueItems": True, "items": {"type": "string", "enum": list(GROUPS)}}
    parameters = [
        *(_parameter(name, {"type": "string", "format": "date"}) for name in ("from", "to")),
        _parameter("per", {"type": "string", "enum": list(PERS)}),
        _parameter("group_by", groups) | {"style": "form", "explode": False},
        *(_parameter(name, {"type": "string", "enum": list(of)} if of else text) for name, of in FILTERS.items()),
    ]
    report = {"type": "object", "required": ["object", "tenant", "from", "to", "per", "rows", "total"]}
    content = {"application/json": {"schema": report}, "text/csv": {"schema": {"type": "string"}}}
    return _read(content, parameters=parameters)


def jobs() -> dict[str, Any]:
    """Route arguments of GET /v1/jobs."""
    limit = _parameter("limit", {"type": "integer", "minimum": 1, "maximum": RECENT, "default": RECENT})
    content = {"application/json": {"schema": {"type": "object", "required": ["object", "data"]}}}
    return _read(content, parameters=[limit])


def lineage() -> dict[str, Any]:
    """Route arguments of GET /v1/images/{id}/lineage."""
    return _read({"application/json": {"schema": {"type": "object", "required": ["object", "image", "steps"]}}})


def deletion() -> dict[str, Any]:
    """Route arguments of DELETE /v1/images/{id}."""
    route = _read({})
    route["responses"][204] = {"description": "Deleted"}
    del route["responses"][200]
    return route


def client_tokens() -> dict[str, Any]:
    """Route arguments of POST /v1/client-tokens."""
    content = {"application/json": {"schema": {"$ref": "#/components/schemas/ClientTokenRequest"}}}
    made = {"application/json": {"schema": {"type": "object", "required": ["object", "id", "token", "expires"]}}}
    route = _read({})
    route["responses"][201] = route["responses"].pop(200) | {"description": "Minted", "content": made}
    route["openapi_extra"]["requestBody"] = {"required": True, "content": content}
    return route


def job() -> dict[str, Any]:
    """Route arguments of GET /v1/jobs/{id}."""
    return _read({"application/json": {"schema": {"type": "object", "required": ["id", "object", "state"]}}})


def cancel() -> dict[str, Any]:
    """Route arguments of DELETE /v1/jobs/{id}."""
    route = job()
    route["responses"] |= _problems(409)
    return route


def events() -> dict[str, Any]:
    """Route arguments of GET /v1/jobs/{id}/events."""
    stream: dict[str, Any] = {"text/event-stream": {}}  # OpenAPI 3.1 has no words for what each event is
    return _read(stream, extra={204: {"description": "The client knows the end already."}})


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
            "Quote": _quoted(catalog, auto, "generate", "edit", form=False),
            "QuoteForm": _quoted(catalog, auto, "edit", form=True),
            "ClientTokenRequest": _client_token(catalog),
            "Result": RESULT,
            "Problem": PROBLEM,
        }
    )
    encoding = {
        rule.name: {"contentType": ", ".join(_PICTURE)} for job in catalog.enabled.values() for rule in job.inputs
    }
    for path in ("/v1/edit", "/v1/quote"):
        schema["paths"][path]["post"]["requestBody"]["content"]["multipart/form-data"]["encoding"] = encoding
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
            FIELD: _HOOK,
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


def _quoted(catalog: Catalog, auto: tuple[str, ...], *operations: str, form: bool) -> dict[str, Any]:
    """The bodies of the paid calls with their operation beside the fields, and no input required."""
    inputs = {rule.name for job in catalog.enabled.values() for rule in job.inputs}
    alternatives = []
    for operation in operations:
        for body in _body(catalog, operation, auto, form=form)["anyOf"]:
            properties = {"operation": {"type": "string", "enum": [operation]}} | body["properties"]
            del properties[FIELD]  # nothing is queued
            required = [name for name in body["required"] if name not in inputs] + ([] if form else ["operation"])
            alternatives.append(
                body | {"title": f"{operation} {body['title']}", "properties": properties, "required": required}
            )
    return {"anyOf": alternatives}


def _client_token(catalog: Catalog) -> dict[str, Any]:
    """What a client token can be bound to; what a key allows of it, only the gateway can say."""
    several = {"type": "array", "minItems": 1}
    variants = sorted({variant for _, variant in catalog.enabled})
    return {
        "type": "object",
        "properties": {
            "expires_in": {"type": "integer", "minimum": 1},
            "operations": several | {"items": {"type": "string", "enum": ["generate", "edit"]}},
            "variants": several | {"items": {"type": "string", "enum": variants}},
            "ceiling": {"type": "integer", "minimum": 0, "maximum": 6},
            "images": {"type": "integer", "minimum": 1, "maximum": MAX_IMAGES},
            "usd": {"type": "string", "pattern": r"^([1-9][0-9]{0,8}(\.[0-9]{1,6})?|0\.(?=[0-9]*[1-9])[0-9]{1,6})$"},
            "origins": {"type": "array", "items": {"type": "string", "format": "printable"}},
            "user": {"type": "string", "minLength": 1, "maxLength": MAX_USER_LENGTH, "format": "printable"},
        },
        "additionalProperties": False,
    }


def _parameter(name: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "in": "query", "required": False, "schema": schema}


def _route(operation: str, content: dict[str, Any]) -> dict[str, Any]:
    return {
        "operation_id": operation,
        "responses": {
            200: {
                "description": "The picture: bytes, or JSON where Accept prefers it.",
                "content": {**_PICTURE, "application/json": {"schema": {"$ref": "#/components/schemas/Result"}}},
            },
            202: {
                "description": "The job is queued (`Prefer: respond-async`, or `wait=n` and it takes longer).",
                "content": {"application/json": {"schema": {"type": "object", "required": ["id", "object", "state"]}}},
            },
            **_problems(*_COMMON, *_PAID),
        },
        "openapi_extra": {"requestBody": {"required": True, "content": content}, "security": [{"key": []}]},
    }


def _read(
    content: dict[str, Any],
    *,
    extra: dict[int, Any] | None = None,
    role: str = "key",
    parameters: list[dict[str, Any]] | None = None,
) -> dict[str, Any]:
    asked = {"parameters": parameters} if parameters else {}
    return {
        "responses": {200: {"description": "Found", "content": content}, **(extra or {}), **_problems(*_COMMON)},
        "openapi_extra": {"security": [{"key": []}], "x-role": role} | asked,
    }


def _problems(*statuses: int) -> dict[int, Any]:
    return {status: {"description": "Refused or failed", "content": _PROBLEM} for status in statuses}
