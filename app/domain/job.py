"""What travels along the walk: the ask of a surface, the request after validation, the job after policy.

Pure records. `Ask` holds what a caller wrote; `Request` is legal by the catalogue; `Job` is legal by the tenant's
policy too and says exactly what goes upstream.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from app.domain.catalog import JobType
from app.domain.client_token import ClientToken
from app.domain.tenant import KeyPolicy, Tenant
from app.domain.upload import Upload


@dataclass(frozen=True, slots=True)
class Caller:
    """Who is asking: a tenant's key, or a client token that it minted, as authenticated for this request.

    With a client token, `tenant` and `policy` are those of its key, narrowed; `token_digest` is its key's, so that
    every script that asks whether the key is valid asks it of the token too.
    """

    tenant: Tenant
    key_id: str
    token_digest: str
    policy: KeyPolicy
    client: ClientToken | None = None

    @property
    def holder(self) -> str:
        """Whose names and recent jobs these are: the client token's own, else the key's."""
        return self.key_id if self.client is None else self.client.id

    def narrowed(self, client: ClientToken) -> Caller:
        """This caller within what a client token may do."""
        safety = replace(self.tenant.safety, most=client.ceiling)
        policy = replace(
            self.policy,
            operations=_both(self.policy.operations, client.operations),
            variants=_both(self.policy.variants, client.variants),
        )
        return replace(self, tenant=replace(self.tenant, safety=safety), policy=policy, client=client)

    def under(self, tenant: Tenant) -> Caller:
        """This caller under its tenant's policy of another moment."""
        moved = replace(self, tenant=tenant)
        return moved if self.client is None else moved.narrowed(self.client)


def _both(allowed: tuple[str, ...] | None, bound: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(name for name in bound if allowed is None or name in allowed)


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
