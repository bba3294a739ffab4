"""What is wrong with a job, in the words Prodia uses.

The grammar is that of the Go library santhosh-tekuri/jsonschema v6 with an English printer, which Prodia's texts match:
`at '/config/steps': maximum: got 1,000, want 50`. Pure; called by the job endpoint before a job is accepted.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from .jobtypes import JobType, Kind, Parameter

TOP_LEVEL = ("type", "config", "name")


def violations(job: JobType, document: Mapping[str, Any], *, unknown_keys_allowed: bool) -> list[str]:
    """Every rule that the job document breaks, in a stable order; empty when it is valid."""
    return list(_document(job, document, unknown_keys_allowed))


def _document(job: JobType, document: Mapping[str, Any], unknown_keys_allowed: bool) -> Iterator[str]:
    if not unknown_keys_allowed:
        yield from _additional("", document, TOP_LEVEL)
    if "config" not in document:
        yield "at '': missing property 'config'"
        return
    config = document["config"]
    if not isinstance(config, Mapping):
        yield f"at '/config': got {type_name(config)}, want object"
        return
    missing = [name for name, parameter in job.parameters.items() if parameter.required and name not in config]
    if missing:
        yield f"at '/config': missing {_counted('property', 'properties', missing)}"
    if not unknown_keys_allowed:
        yield from _additional("/config", config, tuple(job.parameters))
    for name, value in config.items():
        if name in job.parameters:
            yield from (f"at '/config/{name}': {text}" for text in _value(job.parameters[name], value))
            if isinstance(value, list) and job.parameters[name].kind == "array":
                wrong = ((place, item) for place, item in enumerate(value) if not isinstance(item, str))
                yield from (f"at '/config/{name}/{place}': got {type_name(item)}, want string" for place, item in wrong)


def _additional(where: str, found: Mapping[str, Any], allowed: tuple[str, ...]) -> Iterator[str]:
    extra = [key for key in found if key not in allowed]
    if extra:
        yield f"at '{where}': additional {_counted('properties', 'properties', extra)} not allowed"


def _value(rule: Parameter, value: Any) -> Iterator[str]:
    if not _is(rule.kind, value):
        yield f"got {type_name(value)}, want {rule.kind}"
        return
    if rule.min_length is not None and len(value) < rule.min_length:
        yield f"{_length(rule, 'min')}: got {len(value):,}, want {rule.min_length:,}"
    if rule.max_length is not None and len(value) > rule.max_length:
        yield f"{_length(rule, 'max')}: got {len(value):,}, want {rule.max_length:,}"
    if rule.choices and value not in rule.choices:
        yield "value must be one of " + ", ".join(_quoted(choice) for choice in rule.choices)
    if rule.pattern is not None and not re.fullmatch(rule.pattern, value):
        yield f"{_quoted(value)} does not match pattern {_quoted(rule.pattern)}"
    if rule.minimum is not None and value < rule.minimum:
        yield f"minimum: got {number(value)}, want {number(rule.minimum)}"
    if rule.maximum is not None and value > rule.maximum:
        yield f"maximum: got {number(value)}, want {number(rule.maximum)}"
    if rule.multiple_of is not None and value % rule.multiple_of:
        yield f"multipleOf: got {number(value)}, want {number(rule.multiple_of)}"


def _is(kind: Kind, value: Any) -> bool:
    match kind:
        case "string":
            return isinstance(value, str)
        case "boolean":
            return isinstance(value, bool)
        case "array":
            return isinstance(value, list)
        case "number":
            return isinstance(value, int | float) and not isinstance(value, bool)
        case "integer":  # JSON Schema counts 1.0 as an integer
            return _is("number", value) and float(value).is_integer()


def type_name(value: Any) -> str:
    """The JSON type of a value; the Go library says `number` for integers too."""
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
        case _:
            return "object"


def number(value: float) -> str:
    """A number as the English printer writes it: `1,000`, `2.5`."""
    return f"{int(value):,}" if float(value).is_integer() else f"{value:,}"


def _length(rule: Parameter, end: str) -> str:
    return f"{end}{'Items' if rule.kind == 'array' else 'Length'}"


def _counted(one: str, several: str, names: list[str]) -> str:
    return f"{one if len(names) == 1 else several} " + ", ".join(_quoted(name) for name in names)


def _quoted(text: str) -> str:
    clipped = text if len(text) <= 200 else text[:200] + "..."
    return "'" + clipped.replace("\\", "\\\\").replace("'", "\\'") + "'"
