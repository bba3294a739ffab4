"""What travels along the walk: the ask of a surface, the request after validation, the job after policy.

Pure records. `Ask` holds what a caller wrote; `Request` is legal by the catalogue; `Job` is legal by the tenant's
policy too and says exactly what goes upstream.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from app.domain.catalog import JobType
from app.domain.tenant import KeyPolicy, Tenant
from app.domain.upload import Upload


@dataclass(frozen=True, slots=True)
class Caller:
    """Who is asking: a tenant's key, as authenticated for this request."""

    tenant: Tenant
    key_id: str
    token_digest: str
    policy: KeyPolicy


@dataclass(frozen=True, slots=True)
class Choice:
    """The variant that `auto` stands for in one request, and why."""

    variant: str
    because: str


@dataclass(frozen=True, slots=True)
class Ask:
    """What a surface read. `textual` fields came from a form and are text; `uploads` go by input name. `chosen` is set
    once `auto` has become a variant."""

    operation: str
    fields: Mapping[str, Any]
    uploads: Mapping[str, Upload] = field(default_factory=dict)
    textual: bool = False
    accepted_format: str | None = None
    chosen: Choice | None = None


@dataclass(frozen=True, slots=True)
class Request:
    """A request that the catalogue allows. `parameters` are effective: the caller's values over the defaults; `given`
    names the fields that the caller wrote."""

    job_type: JobType
    parameters: Mapping[str, Any]
    seed: int
    seed_given: bool
    output: str
    fit: Literal["auto", "strict"]
    response_format: Literal["url", "b64_json"]
    user: str | None
    tags: tuple[str, ...]
    uploads: Mapping[str, Upload]
    safety_asked: int | None
    given: frozenset[str]
    chosen: Choice | None


@dataclass(frozen=True, slots=True)
class SafetyDecision:
    """What was asked, what goes upstream, and why. All None and `no_knob` where the type has no such parameter."""

    requested: int | None
    applied: int | None
    ceiling: int | None
    action: Literal["requested", "defaulted", "clamped", "no_knob"]


@dataclass(frozen=True, slots=True)
class Job:
    """A job that may be bought: `config` goes upstream as it is; `price` is the most it can cost, in micro-dollars."""

    caller: Caller
    request: Request
    safety: SafetyDecision
    config: Mapping[str, Any]
    price: int

    @property
    def type(self) -> JobType:
        """The catalogue entry."""
        return self.request.job_type

    @property
    def operation(self) -> str:
        """generate or edit."""
        return self.request.job_type.operation

    @property
    def variant(self) -> str:
        """The variant's public name."""
        return self.request.job_type.variant
