"""OpenAPI of the Prodia surface: the job's body by the catalogue, the answers by container."""

from __future__ import annotations

from typing import Any

from app.domain.catalog import Catalog

_PICTURE = {
    kind: {"schema": {"type": "string", "format": "binary"}} for kind in ("image/jpeg", "image/png", "image/webp")
}
_JOB = {"$ref": "#/components/schemas/JobDocument"}
_ENVELOPED = {"multipart/form-data": {"schema": {"type": "object", "required": ["job"], "properties": {"job": _JOB}}}}
_DOCUMENT = {"application/json": {"schema": _JOB}}
QUEUED = ("processing", "processed")  # beside failed
DOCUMENT = {
    "type": "object",
    "required": ["created_at", "updated_at", "expires_at", "id", "state", "gateway"],
    "properties": {
        "type": {"type": "string"},
        "id": {"type": "string", "format": "uuid"},
        "state": {"type": "object", "properties": {"current": {"enum": ["completed", "failed", *QUEUED]}}},
        "config": {"type": "object"},
        "error": {"type": "string"},
        "gateway": {"description": "The native reply, the native job, or the native error."},
    },
}
READ_ERROR = {
    "type": "object",
    "required": ["error", "gateway"],
    "properties": {"error": {"type": "string"}, "gateway": {"description": "The native error."}},
}
_BAD_TOKEN = {"description": "No valid key", "content": {"text/plain": {"schema": {"type": "string"}}}}
_PRICE = {
    "name": "price",
    "in": "query",
    "required": False,
    "schema": {"type": "string"},
    "description": "true: with the price",
}
_SCALAR = {"type": ["boolean", "number", "string", "null"]}
PLAIN: dict[str, Any] = {"anyOf": [_SCALAR, {"type": "array", "items": _SCALAR}]}  # of a key that is left out


def job() -> dict[str, Any]:
    """Route arguments of POST /v2/job."""
    failures: dict[int | str, Any] = {
        status: {"description": "Refused or failed", "content": {**_ENVELOPED, **_DOCUMENT}} for status in (400, 403)
    }
    failures |= {status: {"description": "Not now", "content": _DOCUMENT} for status in (405, 408, 429, 500, 502, 503)}
    return {
        "operation_id": "job",
        "responses": {
            200: {
                "description": "The finished job: an envelope, the picture, or its document alone, as Accept says.",
                "content": {**_ENVELOPED, **_PICTURE, **_DOCUMENT},
            },
            401: _BAD_TOKEN,
            **failures,
        },
        "openapi_extra": {
            "parameters": [_PRICE],
            "requestBody": {
                "required": True,
                "content": {
                    "application/json": {"schema": {"$ref": "#/components/schemas/Job"}},
                    "multipart/form-data": {
                        "schema": {"$ref": "#/components/schemas/JobForm"},
                        "encoding": {"job": {"contentType": "application/json"}, "input": {"contentType": "image/*"}},
                    },
                },
            },
            "security": [{"key": []}],
        },
    }


def queue() -> dict[str, Any]:
    """Route arguments of POST /v2/job/async."""
    route = job() | {"operation_id": "queue_job"}
    responses = {status: told for status, told in route["responses"].items() if status != 200}
    responses |= {status: responses[status] | {"content": _DOCUMENT} for status in (400, 403)}
    made = {"description": "The job is queued: its document as it is now.", "content": _DOCUMENT}
    return route | {"responses": {201: made, **responses}}


def state() -> dict[str, Any]:
    """Route arguments of GET /v2/job/async/{id}/job.state.current."""
    return _read({"text/plain": {"schema": {"type": "string", "enum": [*QUEUED, "failed"]}}})


def document() -> dict[str, Any]:
    """Route arguments of GET /v2/job/async/{id}/job.json."""
    route = _read(_DOCUMENT)
    route["openapi_extra"]["parameters"] = [_PRICE]
    return route


def outputs() -> dict[str, Any]:
    """Route arguments of GET /v2/job/async/{id}/output."""
    return _read({"application/json": {"schema": {"type": "array", "items": {"type": "string"}}}})


def output() -> dict[str, Any]:
    """Route arguments of GET /v2/job/async/{id}/output/{filename}."""
    return _read(_PICTURE)


def _read(content: dict[str, Any]) -> dict[str, Any]:
    refused = {"application/json": {"schema": {"$ref": "#/components/schemas/ReadError"}}}
    failures = {status: {"description": "Refused", "content": refused} for status in (403, 404, 405, 429, 500, 503)}
    return {
        "responses": {200: {"description": "Found", "content": content}, 401: _BAD_TOKEN, **failures},
        "openapi_extra": {"security": [{"key": []}], "x-role": "key or client token"},
    }


def complete(schema: dict[str, Any], catalog: Catalog) -> dict[str, Any]:
    """Put the catalogue's jobs into a finished OpenAPI document."""
    jobs = {name: _jobs(catalog, *operations) for name, operations in _BODIES.items()}
    form = {
        "type": "object",
        "required": ["job"],
        "properties": {
            "job": jobs["AnyJob"],
            "input": {"type": "array", "items": {"type": "string", "format": "binary"}},
        },
        "additionalProperties": False,
    }
    schemas = {"Job": jobs["Job"], "JobForm": form, "JobDocument": DOCUMENT, "ReadError": READ_ERROR}
    schema["components"]["schemas"].update(schemas)
    return schema


_BODIES = {"Job": ("generate",), "AnyJob": ("generate", "edit")}  # without parts there are no inputs


def _jobs(catalog: Catalog, *operations: str) -> dict[str, Any]:
    """One alternative per job type: exactly its parameters, and nothing else."""
    return {
        "anyOf": [
            {
                "type": "object",
                "title": job.type,
                "required": ["type", "config"],
                "properties": {
                    "type": {"type": "string", "enum": [job.type]},
                    "config": {
                        "type": "object",
                        "required": [name for name, parameter in job.parameters.items() if parameter.required],
                        "properties": {name: parameter.json_schema() for name, parameter in job.parameters.items()}
                        | dict.fromkeys(job.left_out, PLAIN),
                        "additionalProperties": False,
                    },
                },
                "additionalProperties": False,
            }
            for job in catalog.enabled.values()
            if job.operation in operations
        ]
    }
