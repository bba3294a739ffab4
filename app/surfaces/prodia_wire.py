"""Prodia's wire form as its clients read it: Accept, the job document and its envelopes, statuses, validation texts.

Pure; called by the Prodia surface. What public clients rely on is said where it is done: a file name on every part, a
boundary without quotes, 400, 401 and 403 as the only statuses that the official client does not send again by itself.
"""

from __future__ import annotations

import hashlib
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

import orjson

from app.domain.catalog import JobType, Parameter
from app.domain.ids import as_uuid
from app.domain.pricing import usd
from app.errors import GatewayError

FORMATS = {"image/jpeg": "jpeg", "image/png": "png", "image/webp": "webp"}
EXTENSIONS = {"jpeg": "jpg", "png": "png", "webp": "webp"}
EXPIRY = timedelta(seconds=300)  # of a document, as in every capture of a real one
ENVELOPE = "multipart/form-data"
MAX_QUOTED = 200  # characters of what a caller wrote
BAD_TOKEN = b"token is invalid\n"  # Prodia's own words, as its client's tests know them

# By error code. Every other code is a 400: Prodia's answer to whatever is wrong with a job, or became of it.
STATUSES = {
    "unauthenticated": 401,
    **dict.fromkeys(("forbidden", "safety_ceiling", "budget_exhausted"), 403),
    "method_not_allowed": 405,
    "request_timeout": 408,
    **dict.fromkeys(("rate_limited", "concurrency_limited", "image_quota_exhausted", "budget_reserved"), 429),
    **dict.fromkeys(("idempotency_in_flight", "upstream_busy", "queue_full"), 429),
    "internal": 500,
    "upstream_misconfigured": 502,
    **dict.fromkeys(("upstream_unavailable", "ledger_unavailable", "ledger_frozen", "overloaded", "draining"), 503),
}
CHARGED = {"no": "", "yes": " It was charged.", "unknown": " It may have been charged."}
RESENT = (408, 502, 503)  # what clients send again: not where a first try may have been charged


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a caller will take: the container and the picture's format, None for a document without pixels; `refused` is
    a type that no job gives."""

    container: Literal["multipart", "image", "json"]
    format: str | None = "jpeg"
    refused: str | None = None


def accepted(header: str) -> Wanted:
    """Read Accept as Prodia does, not as RFC 9110: in `multipart/form-data; image/png` the second type is the output's.

    The first entry of a list that can be met; without any, the first is what is refused.
    """
    entries = [_entry(entry) for entry in header.split(",")]
    return next((entry for entry in entries if entry.refused is None), entries[0])


def _entry(entry: str) -> Wanted:
    kind, *rest = (token.strip().lower() for token in entry.split(";"))
    if kind == ENVELOPE:
        output = next((token for token in rest if "/" in token), "image/jpeg")
        if output == "application/json":
            return Wanted("multipart", None)
        return Wanted("multipart", FORMATS.get(output), None if output in FORMATS else output)
    if kind == "application/json":
        return Wanted("json", None)
    if kind in ("", "*/*", "image/*"):
        return Wanted("image")
    return Wanted("image", FORMATS.get(kind), None if kind in FORMATS else kind)


# --- documents --------------------------------------------------------------------------------------------------------


def head(
    kind: str | None, name: str, created: datetime, updated: datetime | None = None, expires: datetime | None = None
) -> dict[str, Any]:
    """How every job document begins. `name` is ours, the id made of it a version 4 UUID, as clients expect."""
    stamps = {
        "created_at": created,
        "updated_at": updated or datetime.now(UTC),
        "expires_at": expires or created + EXPIRY,
    }
    start = {} if kind is None else {"type": kind}
    return start | {key: _stamp(at) for key, at in stamps.items()} | {"id": as_uuid(name)}


def shown(given: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """The config of a job that was taken: the client's keys in alphabetical order, then what was added.

    Args:
        given: the config as the client wrote it, without what was left out.
        config: what goes upstream, which is what is shown where they differ.
    """
    told = {name: config.get(name, given[name]) for name in sorted(given)}
    return told | {name: value for name, value in config.items() if name not in given}


def completed(config: Mapping[str, Any], elapsed: float) -> dict[str, Any]:
    """State, config and metrics of a finished job; `elapsed` in seconds."""
    return {"state": state("completed"), "config": config, "metrics": {"elapsed": round(elapsed, 5)}}


def failed(given: object, text: str) -> dict[str, Any]:
    """State, config and error of a job that was refused or failed; the config, if it was one, by its keys."""
    config = {"config": dict(sorted(given.items()))} if isinstance(given, dict) else {}
    return {"state": {"current": "failed", "history": [{"message": text}]}} | config | {"error": text}


def price(kind: str, micro_usd: int) -> dict[str, Any]:
    """What a job of a type cost."""
    return {"product": kind.replace(".", "-"), "dollars": float(usd(micro_usd))}


def filename(content_type: str) -> str:
    """Under which a picture is an output."""
    return f"output.{EXTENSIONS[FORMATS[content_type]]}"


def state(current: str) -> dict[str, Any]:
    """The state of a job that nothing is wrong with."""
    return {"current": current, "history": None}


def to_json(document: Mapping[str, Any]) -> bytes:
    """Compact JSON, with `<`, `>` and `&` escaped as Go's encoder does. What a caller sent may be beyond JSON that can
    be written, such as half of a surrogate pair: its config and type are left out then."""
    try:
        raw = orjson.dumps(document, default=str)
    except TypeError:
        raw = orjson.dumps(
            {name: value for name, value in document.items() if name not in ("config", "type")}, default=str
        )
    for letter in (b"<", b">", b"&"):
        raw = raw.replace(letter, b"\\u%04x" % letter[0])
    return raw


def envelope(parts: Sequence[tuple[str, str, str, bytes]]) -> tuple[str, bytes]:
    """Content type and body of parts (name, file name, content type, data). The first has a name of its own
    in it, so the boundary that is made of it is nowhere else, and the same answer has the same."""
    # Every part has a file name: without one the official client takes it for a text, and breaks.
    boundary = hashlib.sha256(parts[0][3]).hexdigest()[:60]
    pieces = [
        f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"; filename="{filename}"\r\n'
        f"Content-Type: {kind}\r\n\r\n".encode()
        + data
        + b"\r\n"
        for name, filename, kind, data in parts
    ]
    return f"{ENVELOPE}; boundary={boundary}", b"".join([*pieces, f"--{boundary}--\r\n".encode()])


def _stamp(at: datetime) -> str:
    return at.isoformat(timespec="milliseconds").replace("+00:00", "Z")


# What a job in the queue is to a client: other words than those of a finished call, as in Prodia's documentation.
STATES = {"queued": "processing", "running": "processing", "succeeded": "processed"}


# --- errors -----------------------------------------------------------------------------------------------------------


def status_of(error: GatewayError) -> int:
    """The status of a refusal or failure here. Nothing that may have been charged, and no limit that lasts, is answered
    with what clients take as leave to try again."""
    status = STATUSES.get(error.code, 400)
    if error.lasting:
        return 403
    return 400 if error.charged != "no" and (status in RESENT or error.code == "upstream_busy") else status


def words(error: GatewayError, document: Mapping[str, Any], job_type: JobType | None) -> str:
    """What is wrong, for people, who see no more of an error: of a parameter in the grammar of Prodia's own
    validation, of a job in Prodia's words where it gave some, and whether it costs anything."""
    return _reason(error, document, job_type) + CHARGED[error.charged]


def _reason(error: GatewayError, document: Mapping[str, Any], job_type: JobType | None) -> str:
    config, name = document.get("config"), error.field
    if message := error.extra.get("upstream_message"):
        return str(message)
    said_so = error.detail.startswith("at '")
    if error.code == "invalid_request" and job_type and isinstance(config, dict) and name is not None and not said_so:
        parameter = job_type.parameters.get(name)
        if parameter is None and name in config:
            return f"at '/config': additional properties {quoted(name)} not allowed"
        if parameter is not None and name not in config:
            return f"at '/config': missing property {quoted(name)}"
        if parameter is not None and (rule := _broken(parameter, config[name])):
            return f"at '/config/{name}': {rule}"
    return error.detail


_KINDS = {"choice": "string", "ratio": "string"}


def _broken(rule: Parameter, value: Any) -> str | None:
    """The rule of JSON Schema that a value breaks, in the words of the library that Prodia's texts agree with."""
    wanted, found = _KINDS.get(rule.kind, rule.kind), type_name(value)
    if found != wanted and not (wanted == "integer" and isinstance(value, int) and found == "number"):
        return f"got {found}, want {wanted}"
    match value:
        case bool():
            return None
        case str():
            return _broken_text(rule, value)
    for name, bound, breaks in (
        ("minimum", rule.minimum, operator.lt),
        ("maximum", rule.maximum, operator.gt),
        ("exclusiveMinimum", rule.exclusive_minimum, operator.le),
        ("multipleOf", rule.multiple_of, operator.mod),
    ):
        if bound is not None and breaks(value, bound):
            return f"{name}: got {_number(value)}, want {_number(bound)}"
    return None


def _broken_text(rule: Parameter, value: str) -> str | None:
    if rule.choices is not None and value not in rule.choices:
        return "value must be one of " + ", ".join(map(quoted, rule.choices))
    if rule.kind == "ratio" and rule.problem(value):
        return f"{quoted(value)} does not match pattern {quoted(rule.json_schema()['pattern'])}"
    if rule.min_length is not None and len(value) < rule.min_length:
        return f"minLength: got {len(value):,}, want {rule.min_length:,}"
    if rule.max_length is not None and len(value) > rule.max_length:
        return f"maxLength: got {len(value):,}, want {rule.max_length:,}"
    return None


def type_name(value: Any) -> str:
    """The JSON type of a value; integers are numbers, as in the library's texts."""
    match value:
        case None:
            return "null"
        case bool():
            return "boolean"
        case int() | float():
            return "number"
        case str():
            return "string"
        case list():
            return "array"
    return "object"


def _number(value: float) -> str:
    """As an English printer writes it: `1,000`, `2.5`."""
    whole = isinstance(value, int) or value.is_integer()
    return (f"{int(value):,}" if whole else f"{value:,}")[:MAX_QUOTED]


def quoted(text: str) -> str:
    """As the library quotes what a caller wrote, cut where it is long."""
    clipped = text if len(text) <= MAX_QUOTED else text[:MAX_QUOTED] + "..."
    return "'" + clipped.replace("\\", "\\\\").replace("'", "\\'") + "'"
