"""OpenAPI of the OpenAI surface, made from the catalogue's data and the table of fields.

The bodies are read off the stream by hand, so their schemas are declared here and not by FastAPI's own models.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from app.domain.catalog import OUTPUT_FORMATS, Catalog
from app.domain.validate import AUTO, DEFAULT_VARIANT
from app.jobs.hooks import FIELD
from app.surfaces.openai_fields import MAX_N, PREFIX, REPLIES, WITHOUT

_ERROR = {"application/json": {"schema": {"$ref": "#/components/schemas/OpenAIError"}}}
_READ = (400, 401, 403, 404, 405, 429, 431, 500, 503)
_PAID = (408, 409, 410, 411, 413, 415, 422, 424, 502, 504)
_NULL = {"type": "null"}
_LINKED = {
    "type": "object",
    "properties": {"image_url": {"type": "string", "format": "image-data-url"}},
    "required": ["image_url"],
    "additionalProperties": False,
}
_PICTURES = {
    "type": "object",
    "required": ["created", "data", "output_format"],
    "properties": {
        "created": {"type": "integer"},
        "output_format": {"enum": list(OUTPUT_FORMATS)},
        "data": {
            "type": "array",
            "minItems": 1,
            "maxItems": MAX_N,
            "items": {
                "type": "object",
                "properties": {"b64_json": {"type": "string"}, "url": {"type": "string", "format": "uri"}},
            },
        },
    },
}
_MODEL = {"type": "object", "required": ["id", "object", "created", "owned_by"]}
COMPONENTS: dict[str, Any] = {
    "OpenAIPictures": _PICTURES,
    "OpenAIModel": _MODEL,
    "OpenAIError": {
        "type": "object",
        "required": ["error"],
        "properties": {
            "error": {"type": "object", "required": ["message", "type", "param", "code", "gateway"]},
        },
    },
}


def generations() -> dict[str, Any]:
    """Route arguments of POST /v1/images/generations."""
    return _route("OpenAIPictures", {"application/json": {"schema": {"$ref": "#/components/schemas/OpenAIGenerate"}}})


def edits() -> dict[str, Any]:
    """Route arguments of POST /v1/images/edits."""
    return _route(
        "OpenAIPictures",
        {
            "application/json": {"schema": {"$ref": "#/components/schemas/OpenAIEdit"}},
            "multipart/form-data": {"schema": {"$ref": "#/components/schemas/OpenAIEditForm"}},
        },
    )


def model() -> dict[str, Any]:
    """Route arguments of GET /v1/models/{model}."""
    return _route("OpenAIModel", None)


def complete(schema: dict[str, Any], catalog: Catalog) -> dict[str, Any]:
    """Put this surface's bodies and answers into an OpenAPI document that has the native ones."""
    schemas, form = schema["components"]["schemas"], "multipart/form-data"
    models = {job.variant: job.model for job in catalog.enabled.values()}
    made = {
        ours: {
            "anyOf": [
                one for native in _alike(schemas[own]["anyOf"]) for one in _bodies(native, models, form="Form" in own)
            ]
        }
        for ours, own in (("OpenAIGenerate", "Generate"), ("OpenAIEdit", "Edit"), ("OpenAIEditForm", "EditForm"))
    }
    schemas.update(COMPONENTS | made)
    edit, ours = (schema["paths"][path]["post"]["requestBody"]["content"] for path in ("/v1/edit", "/v1/images/edits"))
    ours[form]["encoding"] = edit[form]["encoding"]
    return schema


def _alike(bodies: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The alternatives of a native body, those that differ in the variant alone as one."""
    found: list[dict[str, Any]] = []
    for body in bodies:
        fields = {name: field for name, field in body["properties"].items() if name != "variant"}
        twin = next(
            (one for one in found if one["properties"] == fields | {"variant": one["properties"]["variant"]}), None
        )
        if twin is None:
            found.append(body | {"properties": fields | {"variant": body["properties"]["variant"]}})
            continue
        variants = [*twin["properties"]["variant"]["enum"], *body["properties"]["variant"]["enum"]]
        twin["properties"]["variant"] = {"type": "string", "enum": list(dict.fromkeys(variants))}
        twin["title"] += f", {body['title']}"
    return found


def _bodies(native: dict[str, Any], models: Mapping[str, str], *, form: bool) -> Iterator[dict[str, Any]]:
    """Two for each native one, as what OpenAI calls otherwise goes with its native name in no body: one in OpenAI's
    names, one in ours. In JSON a field that may be left out may be null."""
    properties = {name: found for name, found in native["properties"].items() if name not in ("variant", FIELD)}
    sized = {"aspect_ratio"} if "aspect_ratio" in properties else {"width", "height"}
    properties |= {
        "n": {"type": "integer", "minimum": 1, "maximum": MAX_N},
        "size": {"type": "string", "pattern": _size(properties)},
        "response_format": {"type": "string", "enum": list(REPLIES)},
        "safety_identifier": properties["user"],
    }
    neutral = {name: rule.neutral for name, rule in WITHOUT.items() if name not in properties}
    properties |= {name: {"enum": list(values)} for name, values in neutral.items() if values or not form}
    variants = native["properties"]["variant"]["enum"]
    named = [name for variant in variants for name in (variant, models.get(variant, PREFIX + variant))]
    required = {name for name in native["required"] if name != "variant"}
    for theirs in (True, False):
        absent = {*sized, "user"} if theirs else {"size", "safety_identifier"}
        # Of `auto` nobody knows before what a size stands for, but that it is a ratio.
        fitting = [name for name in named if not (name.endswith(AUTO) and "width" in absent)]
        here = properties | {"model": {"enum": fitting}}
        needed = required | (set() if DEFAULT_VARIANT in variants else {"model"})
        if theirs and "image" in required and not form:
            here["images"] = {"type": "array", "minItems": 1, "maxItems": 1, "items": _LINKED}
            needed = needed - {"image"} | {"images"}
            del here["image"]
        for name in absent:
            here[name] = {"enum": ["auto"]} if name == "size" else _NULL
        if form:
            here = {name: found for name, found in here.items() if found is not _NULL}
        else:
            here = {name: found if name in needed else {"anyOf": [found, _NULL]} for name, found in here.items()}
        yield {
            "type": "object", "title": native["title"], "properties": here, "required": sorted(needed),
            "additionalProperties": False,
        }  # fmt: skip


def _size(properties: Mapping[str, Any]) -> str:
    """Any ratio, or the pixels that width and height may have."""
    if "aspect_ratio" in properties:
        return "^(auto|[1-9][0-9]{0,4}x[1-9][0-9]{0,4})$"
    if not {"width", "height"} <= set(properties):
        return "^auto$"
    sides = [_multiples(properties[name]) for name in ("width", "height")]
    return f"^(auto|({sides[0]})x({sides[1]}))$"


def _multiples(side: Mapping[str, Any]) -> str:
    step = side.get("multipleOf", 1)
    first = -(-side["minimum"] // step) * step
    return "|".join(str(value) for value in range(first, side["maximum"] + 1, step))


def _route(answer: str, content: dict[str, Any] | None) -> dict[str, Any]:
    found = {"application/json": {"schema": {"$ref": f"#/components/schemas/{answer}"}}}
    statuses = _READ if content is None else (*_READ, *_PAID)
    errors: dict[int, Any] = {status: {"description": "Refused or failed", "content": _ERROR} for status in statuses}
    asked = {} if content is None else {"requestBody": {"required": True, "content": content}}
    return {
        "responses": {200: {"description": "In OpenAI's shape.", "content": found}, **errors},
        "openapi_extra": {"security": [{"key": []}], "x-role": "key"} | asked,
    }
