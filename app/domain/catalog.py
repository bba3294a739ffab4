"""The catalogue: every job type that can be sold, as data read from `catalog.toml` and an operator's own file.

Pure. Read by validate, policy, the surfaces and `kontext-gateway check`. A wrong file raises `CatalogError`, which
names the file, the line of the entry and the field.
"""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from importlib import resources
from types import MappingProxyType
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from app.domain.inputs import InputRule
from app.domain.pricing import parse_usd

Operation = Literal["generate", "edit"]
OUTPUT_FORMATS = ("jpeg", "png", "webp")
RESERVED_NAMES = frozenset(
    {"variant", "output_format", "fit", "response_format", "user", "tags", "image_id", "model", "webhook_url"}
)
_NUMBER = r"-?(0|[1-9][0-9]{0,18})(\.[0-9]{1,18})?([eE][+-]?[0-9]{1,3})?"
_RATIO = r"[1-9][0-9]{0,4}:[1-9][0-9]{0,4}"


class CatalogError(Exception):
    """A catalogue file that cannot be used; `mistakes` are lines of the form file:line: field: message."""

    def __init__(self, mistakes: Sequence[str]) -> None:
        super().__init__("\n".join(mistakes))
        self.mistakes = tuple(mistakes)


class Parameter(BaseModel):
    """One parameter of a job type: its kind and its legal values. Lengths count Unicode code points."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    kind: Literal["string", "integer", "number", "boolean", "choice", "ratio"]
    role: Literal["safety", "seed"] | None = None
    required: bool = False
    default: str | int | float | bool | None = None
    minimum: int | float | None = None
    maximum: int | float | None = None
    exclusive_minimum: int | float | None = None
    multiple_of: int | None = None
    min_length: int | None = None
    max_length: int | None = None
    choices: tuple[str, ...] | None = Field(default=None, strict=False)
    only_with_output: Literal["jpeg", "png", "webp"] | None = None

    @model_validator(mode="after")
    def _sound(self) -> Parameter:
        if (self.kind == "choice") != (self.choices is not None):
            raise ValueError('`choices` goes with kind = "choice" and only with it')
        if self.minimum is not None and self.maximum is not None and self.minimum > self.maximum:
            raise ValueError("the minimum is above the maximum")
        if self.role and self.kind != "integer":
            raise ValueError("a parameter with a role is an integer")
        if self.role == "safety" and None in (self.minimum, self.maximum, self.default):
            raise ValueError("a safety parameter needs minimum, maximum and default")
        if self.role == "seed" and (self.minimum is None or self.maximum is None):
            raise ValueError("a seed needs minimum and maximum")
        if self.default is not None and (problem := self.problem(self.default)):
            raise ValueError(f"the default {problem}")
        return self

    def problem(self, value: object) -> str | None:
        """What is wrong with a value, as the end of a sentence ("must be ..."), or None. Booleans are not integers."""
        match self.kind:
            case "boolean":
                return None if isinstance(value, bool) else "must be true or false"
            case "integer":
                wrong = isinstance(value, bool) or not isinstance(value, int) or abs(value) >= 2**63
                return f"must be an integer{self.range_text}" if wrong or self._outside(value) else None  # type: ignore[arg-type]
            case "number":
                wrong = isinstance(value, bool) or not isinstance(value, int | float)
                if wrong or not abs(value) <= sys.float_info.max:  # type: ignore[arg-type]
                    return f"must be a finite number{self.range_text}"
                return f"must be a number{self.range_text}" if self._outside(value) else None  # type: ignore[arg-type]
            case "ratio":
                legal = isinstance(value, str) and re.fullmatch(_RATIO, value, re.ASCII)
                return None if legal else "must be a ratio W:H of two positive integers of at most five digits each"
            case "choice":
                return (
                    None if value in (self.choices or ()) and isinstance(value, str) else "must be one of the choices"
                )
            case "string":
                if not isinstance(value, str):
                    return "must be a string"
                if any("\ud800" <= char <= "\udfff" for char in value) if not value.isascii() else False:
                    return "must be Unicode text without lone surrogates"
                low, high = self.min_length or 0, self.max_length
                if len(value) < low or (high is not None and len(value) > high):
                    return f"must have {low} to {high} characters"
                return None

    def read_text(self, text: str) -> object:
        """The value that a form field's text stands for; the text itself where it stands for none, to be refused."""
        if self.kind == "boolean":
            return {"true": True, "false": False}.get(text, text)
        if self.kind == "integer" and re.fullmatch(r"-?(0|[1-9][0-9]{0,18})", text, re.ASCII):
            return int(text)
        if self.kind == "number" and re.fullmatch(_NUMBER, text, re.ASCII):
            return float(text)
        return text

    def _outside(self, value: int | float) -> bool:
        return (
            (self.minimum is not None and value < self.minimum)
            or (self.maximum is not None and value > self.maximum)
            or (self.exclusive_minimum is not None and value <= self.exclusive_minimum)
            or (self.multiple_of is not None and value % self.multiple_of != 0)
        )

    @property
    def range_text(self) -> str:
        """The bounds in words, for error texts and README: " from 0 to 6"."""
        parts = []
        if self.minimum is not None and self.maximum is not None:
            parts.append(f" from {self.minimum} to {self.maximum}")
        elif self.minimum is not None:
            parts.append(f" of at least {self.minimum}")
        if self.exclusive_minimum is not None:
            parts.append(f" above {self.exclusive_minimum}")
        if self.multiple_of is not None:
            parts.append(f" in multiples of {self.multiple_of}")
        return "".join(parts)

    def facts(self) -> dict[str, Any]:
        """The legal values as public members (`minimum`, `choices` ...), for error bodies and the model list."""
        found = self.model_dump(exclude_none=True, exclude={"role", "required"})
        return found | {"required": True} if self.required else found

    def json_schema(self) -> dict[str, Any]:
        """JSON Schema of the legal values."""
        kinds = {"choice": "string", "ratio": "string"}
        schema: dict[str, Any] = {"type": kinds.get(self.kind, self.kind)}
        names = {
            "min_length": "minLength",
            "max_length": "maxLength",
            "minimum": "minimum",
            "maximum": "maximum",
            "exclusive_minimum": "exclusiveMinimum",
            "multiple_of": "multipleOf",
            "default": "default",
        }
        schema |= {name: getattr(self, key) for key, name in names.items() if getattr(self, key) is not None}
        if self.kind == "ratio":
            schema["pattern"] = f"^{_RATIO}$"
        if self.choices:
            schema["enum"] = list(self.choices)
        return schema


class JobType(BaseModel):
    """One sellable job type. `price_usd` is its maximum price; None means that every request for it is refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    type: str = Field(pattern=r"^[a-z0-9][a-z0-9.\-]{2,127}$")
    variant: str = Field(pattern=r"^[a-z0-9][a-z0-9.\-]{0,31}$")
    operation: Operation
    version: int = Field(default=1, ge=1)
    price_usd: str | None = None
    typical_seconds: float = Field(gt=0, le=600)
    concurrency: int | None = Field(default=None, ge=1)
    enabled: bool = True
    inputs: tuple[InputRule, ...] = ()
    parameters: Mapping[str, Parameter]
    left_out: tuple[Annotated[str, Field(pattern=r"^[A-Za-z0-9_.\-]{1,64}$")], ...] = ()

    @model_validator(mode="after")
    def _sound(self) -> JobType:
        names = [*self.parameters, *(rule.name for rule in self.inputs)]
        if clash := RESERVED_NAMES.intersection(names):
            raise ValueError(f"the gateway's own fields cannot be parameters: {', '.join(sorted(clash))}")
        if clash := frozenset(self.left_out).intersection(names):
            raise ValueError(f"what the type has cannot be left out: {', '.join(sorted(clash))}")
        if len(set(names)) != len(names):
            raise ValueError("parameters and inputs need different names")
        if (self.operation == "edit") != bool(self.inputs):
            raise ValueError("an edit has inputs, a generate has none")
        for role in ("safety", "seed"):
            if sum(1 for parameter in self.parameters.values() if parameter.role == role) > 1:
                raise ValueError(f"only one parameter can have the role {role}")
        return self

    @field_validator("price_usd")
    @classmethod
    def _payable(cls, text: str | None) -> str | None:
        return text if text is None or parse_usd(text) else None

    @field_validator("variant")
    @classmethod
    def _free(cls, name: str) -> str:
        if name == "auto":
            raise ValueError("the variant name auto is taken")
        return name

    @property
    def price(self) -> int | None:
        """Maximum price of one job in micro-dollars."""
        return None if self.price_usd is None else parse_usd(self.price_usd)

    @property
    def model(self) -> str:
        """The name that OpenAI's clients know it by."""
        return f"flux-kontext-{self.variant}" if self.type.startswith("inference.flux") else self.variant

    def role(self, role: str) -> tuple[str, Parameter] | None:
        """Name and definition of the parameter with a role."""
        for name, parameter in self.parameters.items():
            if parameter.role == role:
                return name, parameter
        return None


@dataclass(frozen=True)
class Catalog:
    """All job types by (operation, variant) and by upstream name."""

    jobs: tuple[JobType, ...]
    enabled: Mapping[tuple[str, str], JobType] = field(init=False)
    prices: Mapping[str, int | None] = field(init=False)

    def __post_init__(self) -> None:
        enabled = {(job.operation, job.variant): job for job in self.jobs if job.enabled}
        object.__setattr__(self, "enabled", MappingProxyType(enabled))
        object.__setattr__(self, "prices", MappingProxyType({job.type: job.price for job in self.jobs}))

    def named(self, job_type: str) -> JobType | None:
        """The enabled type of an upstream name, or None."""
        return next((job for job in self.enabled.values() if job.type == job_type), None)

    def find(self, operation: str, variant: str) -> JobType | None:
        """The enabled type that a caller means, or None."""
        return self.enabled.get((operation, variant))

    def variants(self, operation: str) -> tuple[str, ...]:
        """Variant names that an operation offers, in catalogue order."""
        return tuple(variant for found, variant in self.enabled if found == operation)

    def having(self, operation: str, name: str) -> tuple[str, ...]:
        """Variants of an operation that have a parameter of this name."""
        return tuple(v for (op, v), job in self.enabled.items() if op == operation and name in job.parameters)


def load(extra: str | None = None, *, file: str = "catalog.toml") -> Catalog:
    """The built-in catalogue, with an operator's entries added or put in the place of those of the same type.

    Raises:
        CatalogError: the operator's text is not TOML, or an entry is wrong; every mistake is listed.
    """
    built_in = resources.files("app.domain").joinpath("catalog.toml").read_text("utf-8")
    jobs = {job.type: job for job in _read(built_in, "catalog.toml")}
    if extra is not None:
        jobs |= {job.type: job for job in _read(extra, file)}
    taken: dict[tuple[str, str], str] = {}
    for job in jobs.values():
        other = taken.setdefault((job.operation, job.variant), job.type) if job.enabled else job.type
        if other != job.type:
            lines = enumerate((extra or "").splitlines(), 1)
            line = next((number for number, line in lines if job.type in line or other in line), 1)
            raise CatalogError(
                [f"{file}:{line}: job.variant: {job.type} and {other} are both {job.operation} {job.variant}"]
            )
    return Catalog(tuple(jobs.values()))


def _read(text: str, file: str) -> list[JobType]:
    try:
        document = tomllib.loads(text, parse_float=lambda number: float(Decimal(number)))
    except tomllib.TOMLDecodeError as error:
        line = re.search(r"at line (\d+)", str(error))
        raise CatalogError([f"{file}:{line[1] if line else len(text.splitlines())}: not TOML: {error}"]) from None
    entries = document.pop("job", [])
    mistakes = [f"{file}:1: {name}: unknown; only [[job]] entries belong here" for name in document]
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise CatalogError([f"{file}:1: job: must be [[job]] entries"])
    headers = [number for number, line in enumerate(text.splitlines(), 1) if re.match(r"\s*\[\[\s*job\s*\]\]", line)]
    jobs = []
    for index, entry in enumerate(entries):
        start = headers[index] if index < len(headers) else 1
        try:
            jobs.append(JobType.model_validate(entry))
            if jobs[-1].type in {job.type for job in jobs[:-1]}:
                mistakes.append(f"{file}:{start}: job.type: {jobs[-1].type} has an entry already")
        except ValidationError as error:
            end = headers[index + 1] if index + 1 < len(headers) else None
            mistakes += [_mistake(text, file, start, end, found) for found in error.errors()]
    if mistakes:
        raise CatalogError(mistakes)
    return jobs


def _mistake(text: str, file: str, start: int, end: int | None, found: Any) -> str:
    """One pydantic finding as file:line: field: message; the line is the field's own where it can be seen."""
    path = [str(part) for part in found["loc"]]
    lines = text.splitlines()[start - 1 : end and end - 1]
    names = [part for part in path if not part.isdigit()]
    offset = next(
        (i for i, line in enumerate(lines) for n in reversed(names) if re.match(rf"\s*{re.escape(n)}\s*=", line)), 0
    )
    return f"{file}:{start + offset}: {'.'.join(['job', *path])}: {found['msg'].removeprefix('Value error, ')}"
