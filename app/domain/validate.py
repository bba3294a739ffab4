"""From what a caller wrote to a request that the catalogue allows; refuses before any I/O, naming field and range.

Pure, called by the pipeline for every surface. Nothing is ever corrected silently: a field is legal or refused.
"""

from __future__ import annotations

import secrets
from typing import Any

from app.domain.catalog import OUTPUT_FORMATS, Catalog, JobType
from app.domain.job import Ask, Request
from app.errors import InvalidRequest

DEFAULT_VARIANT = "pro"
AUTO = "auto"  # `domain.auto` puts a variant in its place before a request is validated
MAX_TAGS = 8
MAX_TAG_LENGTH = 32
MAX_USER_LENGTH = 128
SEED_MAXIMUM = 2**53 - 1
ENVELOPE = ("variant", "output_format", "fit", "response_format", "user", "tags")


def validate(ask: Ask, catalog: Catalog, *, uploads_needed: bool = True) -> Request:
    """The request that `ask` stands for.

    Args:
        uploads_needed: False where inputs may be left out, because nothing is going to be made of them.

    Raises:
        InvalidRequest: names the field, its range, and for a field of another variant the variants that have it.
    """
    job_type = _job_type(ask, catalog)
    output = _choice(ask, "output_format", OUTPUT_FORMATS) or ask.accepted_format or "jpeg"
    for name in ask.fields:
        foreign = name not in ENVELOPE and name not in job_type.parameters
        if foreign or (name == "fit" and not job_type.inputs):
            raise unknown(name, ask, job_type, catalog)
    parameters = _parameters(ask, job_type, output)
    for rule in job_type.inputs:
        if uploads_needed and rule.name not in ask.uploads:
            raise InvalidRequest(f"`{rule.name}` is required: the image to start from.", field=rule.name)
    for name in ask.uploads:
        if name not in {rule.name for rule in job_type.inputs}:
            raise InvalidRequest(f"`{name[:64]}` is not an input of this variant.", field=name[:64])
    seed_knob, safety_knob = job_type.role("seed"), job_type.role("safety")
    seed = parameters.pop(seed_knob[0], None) if seed_knob else None
    asked = parameters.pop(safety_knob[0], None) if safety_knob and safety_knob[0] in ask.fields else None
    if safety_knob:
        parameters.pop(safety_knob[0], None)
    least, most = (int(seed_knob[1].minimum or 0), int(seed_knob[1].maximum or 0)) if seed_knob else (0, SEED_MAXIMUM)
    return Request(
        job_type=job_type,
        parameters=parameters,
        seed=seed if seed is not None else least + secrets.randbelow(most - least + 1),
        seed_given=seed is not None,
        output=output,
        fit=_choice(ask, "fit", ("auto", "strict")) or "auto",  # type: ignore[arg-type]
        response_format=_choice(ask, "response_format", ("url", "b64_json")) or "url",  # type: ignore[arg-type]
        user=read_user(ask.fields["user"]) if "user" in ask.fields else None,
        tags=_tags(ask.fields["tags"]) if "tags" in ask.fields else (),
        uploads=ask.uploads,
        safety_asked=asked,
        given=frozenset(ask.fields),
        chosen=ask.chosen,
    )


def _job_type(ask: Ask, catalog: Catalog) -> JobType:
    variants = catalog.variants(ask.operation)
    variant = ask.fields.get("variant", DEFAULT_VARIANT)
    found = catalog.find(ask.operation, variant) if isinstance(variant, str) else None
    if found is None:
        raise InvalidRequest(
            f"`variant` must be one of {', '.join((*variants, AUTO))} for {ask.operation}.",
            field="variant",
            choices=[*variants, AUTO],
        )
    return found


def _parameters(ask: Ask, job_type: JobType, output: str) -> dict[str, Any]:
    effective: dict[str, Any] = {}
    for name, parameter in job_type.parameters.items():
        if name not in ask.fields:
            if parameter.required:
                raise InvalidRequest(f"`{name}` is required.", field=name, **parameter.facts())
            value: Any = parameter.default
            if value is None or (parameter.only_with_output and parameter.only_with_output != output):
                continue
        else:
            value = ask.fields[name]
            if ask.textual and isinstance(value, str):
                value = parameter.read_text(value)
            if problem := parameter.problem(value):
                raise InvalidRequest(f"`{name}` {problem}.", field=name, **parameter.facts())
            if parameter.only_with_output and value and parameter.only_with_output != output:
                raise InvalidRequest(f"`{name}` is for {parameter.only_with_output} output only.", field=name)
            if parameter.only_with_output and parameter.only_with_output != output:
                continue
        effective[name] = _one_spelling(value) if parameter.kind == "number" else value
    return effective


def _one_spelling(number: int | float) -> int | float:
    """3 and 3.0 are the same request; a whole number that no 64 bits hold is a float on the wire."""
    return int(number) if abs(number) < 2**53 and number == int(number) else float(number)


def unknown(name: str, ask: Ask, job_type: JobType, catalog: Catalog) -> InvalidRequest:
    """Why a field cannot be given with this job type, with the variants or the operation that have it."""
    shown = name[:64]
    if variants := catalog.having(ask.operation, name):
        return InvalidRequest(
            f"`{shown}` is not a parameter of {job_type.variant}; these variants have it: {', '.join(variants)}.",
            field=shown,
            variants=list(variants),
        )
    for operation in ("generate", "edit"):
        if variants := catalog.having(operation, name):
            text = f"`{shown}` is not a field of {ask.operation}; {operation} has it with {', '.join(variants)}."
            return InvalidRequest(text, field=shown, operation=operation, variants=list(variants))
    return InvalidRequest(f"`{shown}` is not a field of {ask.operation}.", field=shown)


def _choice(ask: Ask, name: str, choices: tuple[str, ...]) -> str | None:
    value = ask.fields.get(name)
    if name in ask.fields and not (isinstance(value, str) and value in choices):
        raise InvalidRequest(f"`{name}` must be one of {', '.join(choices)}.", field=name, choices=list(choices))
    return value


def read_user(value: object) -> str:
    """An end user's name. Raises InvalidRequest."""
    legal = isinstance(value, str) and 1 <= len(value) <= MAX_USER_LENGTH and value.isprintable()
    if not legal:
        raise InvalidRequest(f"`user` must have 1 to {MAX_USER_LENGTH} printable characters.", field="user")
    return str(value)


def _tags(value: object) -> tuple[str, ...]:
    legal = (
        isinstance(value, list)
        and len(value) <= MAX_TAGS
        and all(isinstance(tag, str) and 1 <= len(tag) <= MAX_TAG_LENGTH and tag.isprintable() for tag in value)
    )
    if not legal:
        raise InvalidRequest(
            f"`tags` must be at most {MAX_TAGS} strings of 1 to {MAX_TAG_LENGTH} printable characters.", field="tags"
        )
    return tuple(dict.fromkeys(value))  # type: ignore[call-overload]
