"""The safety ceiling, who may use what, and that both are looked at again when a job is sent or a picture is read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.domain.catalog import load
from app.domain.policy import apply, readable, still_allowed
from app.domain.tenant import KeyPolicy, Limits, Rate, SafetyRule, Tenant
from app.errors import GatewayError, InvalidRequest, Refused
from tests.unit.asks import caller, request, tenant

NO_POLICY: Mapping[str, SafetyRule] = {}


def rule(ceiling: int | None = None, default: int | None = None) -> SafetyRule:
    return SafetyRule(ceiling, default)


def refused(who: Tenant, policy: KeyPolicy | None = None, operation: str = "generate", **fields: Any) -> GatewayError:
    with pytest.raises(GatewayError) as caught:
        apply(caller(who, policy), request(operation, **fields))
    assert caught.value.charged == "no"
    return caught.value


# operation, rule, asked -> applied, ceiling, action; None for what is absent. Type defaults: generate 4, edit 2.
APPLIED: list[tuple[str, SafetyRule | None, int | None, int, int, str]] = [
    ("generate", None, None, 4, 4, "defaulted"),
    ("generate", None, 4, 4, 4, "requested"),
    ("generate", None, 0, 0, 4, "requested"),
    ("edit", None, None, 2, 2, "defaulted"),
    ("edit", None, 2, 2, 2, "requested"),
    ("generate", rule(1), None, 1, 1, "defaulted"),
    ("generate", rule(1), 1, 1, 1, "requested"),
    ("generate", rule(1), 0, 0, 1, "requested"),
    ("generate", rule(0), None, 0, 0, "defaulted"),
    ("generate", rule(0), 0, 0, 0, "requested"),
    ("generate", rule(6), None, 4, 6, "defaulted"),
    ("generate", rule(6), 6, 6, 6, "requested"),
    ("generate", rule(6, 5), None, 5, 6, "defaulted"),
    ("generate", rule(3, 0), None, 0, 3, "defaulted"),
    ("generate", rule(3, 0), 3, 3, 3, "requested"),
    ("generate", rule(None, 2), None, 2, 4, "defaulted"),
    ("generate", rule(None, 6), None, 4, 4, "defaulted"),
    ("edit", rule(1), None, 1, 1, "defaulted"),
    ("edit", rule(0), None, 0, 0, "defaulted"),
    ("edit", rule(2, 1), None, 1, 2, "defaulted"),
    ("edit", rule(2, 1), 2, 2, 2, "requested"),
]
ABOVE: list[tuple[str, SafetyRule | None, int, int]] = [
    ("generate", None, 5, 4),
    ("generate", None, 6, 4),
    ("generate", rule(1), 2, 1),
    ("generate", rule(1), 6, 1),
    ("generate", rule(0), 1, 0),
    ("generate", rule(3, 0), 4, 3),
    ("generate", rule(None, 2), 5, 4),
    ("edit", rule(1), 2, 1),
    ("edit", rule(0), 1, 0),
    ("edit", rule(0), 2, 0),
]


def with_rule(operation: str, found: SafetyRule | None, mode: Literal["clamp", "reject"]) -> Tenant:
    return tenant({} if found is None else {operation: found}, mode=mode)


@pytest.mark.parametrize("variant", ["pro", "max"])
@pytest.mark.parametrize("mode", ["clamp", "reject"])
@pytest.mark.parametrize(("operation", "found", "asked", "applied", "ceiling", "action"), APPLIED)
def test_within_the_ceiling_both_modes_do_the_same(
    operation: str,
    found: SafetyRule | None,
    asked: int | None,
    applied: int,
    ceiling: int,
    action: str,
    mode: Any,
    variant: str,
) -> None:
    job = apply(caller(with_rule(operation, found, mode)), request(operation, variant=variant, safety_tolerance=asked))
    assert job.config["safety_tolerance"] == applied
    assert (job.safety.requested, job.safety.applied, job.safety.ceiling, job.safety.action) == (
        asked,
        applied,
        ceiling,
        action,
    )


@pytest.mark.parametrize(("operation", "found", "asked", "ceiling"), ABOVE)
def test_above_the_ceiling_clamp_lowers_and_tells(
    operation: str, found: SafetyRule | None, asked: int, ceiling: int
) -> None:
    job = apply(caller(with_rule(operation, found, "clamp")), request(operation, safety_tolerance=asked))
    assert job.config["safety_tolerance"] == ceiling
    assert (job.safety.requested, job.safety.applied, job.safety.action) == (asked, ceiling, "clamped")


@pytest.mark.parametrize(("operation", "found", "asked", "ceiling"), ABOVE)
def test_above_the_ceiling_reject_refuses_and_names_it(
    operation: str, found: SafetyRule | None, asked: int, ceiling: int
) -> None:
    refusal = refused(with_rule(operation, found, "reject"), operation=operation, safety_tolerance=asked)
    assert (refusal.code, refusal.status, refusal.field) == ("safety_ceiling", 403, "safety_tolerance")
    assert (refusal.extra["requested"], refusal.extra["ceiling"]) == (asked, ceiling)


@given(
    st.sampled_from(["generate", "edit"]),
    st.none() | st.integers(0, 6),
    st.none() | st.integers(0, 6),
    st.none() | st.integers(0, 6),
    st.sampled_from(["clamp", "reject"]),
)
def test_no_job_ever_leaves_without_a_tolerance_or_with_one_above_the_ceiling(
    operation: str, ceiling: int | None, default: int | None, asked: int | None, mode: Any
) -> None:
    high = {"generate": 6, "edit": 2}[operation]
    if asked is not None and asked > high:
        asked = high
    asking = request(operation, safety_tolerance=asked)
    limit = min(high, {"generate": 4, "edit": 2}[operation] if ceiling is None else ceiling)
    if mode == "reject" and asked is not None and asked > limit:
        with pytest.raises(Refused):
            apply(caller(with_rule(operation, rule(ceiling, default), mode)), asking)
        return
    job = apply(caller(with_rule(operation, rule(ceiling, default), mode)), asking)
    assert 0 <= job.config["safety_tolerance"] <= limit
    if asked is not None and asked <= limit:
        assert job.config["safety_tolerance"] == asked


@pytest.mark.parametrize("mode", ["clamp", "reject"])
@pytest.mark.parametrize("ceiling", [0, 1, 2])
def test_a_variant_without_the_knob_is_refused_under_a_ceiling_unless_it_is_allowed_by_name(
    ceiling: int, mode: Any
) -> None:
    held = tenant({"edit": rule(ceiling)}, mode=mode)
    refusal = refused(held, operation="edit", variant="dev")
    assert (refusal.code, refusal.field, refusal.extra["ceiling"]) == ("safety_ceiling", "variant", ceiling)
    job = apply(caller(tenant({"edit": rule(ceiling)}, mode=mode, without=("dev",))), request("edit", variant="dev"))
    assert "safety_tolerance" not in job.config
    assert (job.safety.applied, job.safety.ceiling, job.safety.action) == (None, ceiling, "no_knob")


@pytest.mark.parametrize("rules", [NO_POLICY, {"generate": rule(0)}, {"edit": rule(None, 1)}])
def test_without_a_ceiling_for_the_operation_the_variant_without_the_knob_is_free(
    rules: Mapping[str, SafetyRule],
) -> None:
    assert apply(caller(tenant(rules)), request("edit", variant="dev")).safety.action == "no_knob"


def test_allowing_another_variant_by_name_does_not_help() -> None:
    assert (
        refused(tenant({"edit": rule(1)}, without=("pro",)), operation="edit", variant="dev").code == "safety_ceiling"
    )


NARROW = """
[[job]]
type = "inference.flux-2.txt2img.v1"
variant = "flux-2"
operation = "generate"
price_usd = "0.06"
typical_seconds = 9
[job.parameters]
prompt = { kind = "string", required = true }
safety_tolerance = { kind = "integer", role = "safety", minimum = 1, maximum = 3, default = 2 }
"""


@pytest.mark.parametrize(
    ("found", "applied"), [(rule(6, 5), 3), (rule(6), 2), (rule(1), 1), (rule(3, 0), 1), (None, 2)]
)
def test_a_type_with_a_narrower_range_is_never_sent_what_it_does_not_take(
    found: SafetyRule | None, applied: int
) -> None:
    asked = request(catalog=load(NARROW), variant="flux-2")
    assert apply(caller(with_rule("generate", found, "clamp")), asked).config["safety_tolerance"] == applied


def test_a_type_that_cannot_be_as_strict_as_the_ceiling_is_refused() -> None:
    with pytest.raises(Refused) as caught:
        apply(caller(tenant({"generate": rule(0)})), request(catalog=load(NARROW), variant="flux-2"))
    assert (caught.value.code, caught.value.extra["ceiling"]) == ("safety_ceiling", 0)


def test_the_config_says_exactly_what_is_bought() -> None:
    job = apply(caller(tenant()), request("generate", seed=7, aspect_ratio="7:3", safety_tolerance=0))
    exact = {"aspect_ratio": "7:3", "prompt_upsampling": False, "safety_tolerance": 0, "seed": 7}
    assert job.config == {"prompt": "a lighthouse at dawn", **exact}
    assert (job.price, job.operation, job.variant) == (40_000, "generate", "pro")


def test_an_edit_without_a_ratio_sends_none() -> None:
    assert "aspect_ratio" not in apply(caller(tenant()), request("edit")).config


# Who may use what.


def test_a_suspended_tenant_may_nothing() -> None:
    assert refused(tenant(suspended=True)).code == "forbidden"


@pytest.mark.parametrize(
    ("operation", "variant", "allowed"),
    [("generate", "pro", True), ("generate", "max", False), ("edit", "pro", False), ("edit", "dev", True)],
)
def test_a_tenant_is_held_to_its_variants(operation: str, variant: str, allowed: bool) -> None:
    held = tenant(variants={"generate": ("pro",), "edit": ("dev",)})
    if allowed:
        assert apply(caller(held), request(operation, variant=variant)).variant == variant
        return
    refusal = refused(held, operation=operation, variant=variant)
    assert (refusal.code, refusal.field) == ("forbidden", "variant")
    assert refusal.extra["allowed"] == list(held.variants[operation])  # type: ignore[index]


def test_an_operation_that_the_tenants_variants_leave_out_is_not_allowed() -> None:
    assert refused(tenant(variants={"generate": ("pro",)}), operation="edit").code == "forbidden"


def test_a_key_is_held_to_its_operations_and_variants() -> None:
    narrow = KeyPolicy(variants=("pro",), operations=("edit",))
    assert apply(caller(tenant(), narrow), request("edit")).variant == "pro"
    assert refused(tenant(), narrow, "generate").field == "operation"
    assert refused(tenant(), narrow, "edit", variant="max").field == "variant"


def test_a_key_never_widens_its_tenant() -> None:
    assert (
        refused(tenant(variants={"generate": ("pro",)}), KeyPolicy(variants=("pro", "max")), variant="max").code
        == "forbidden"
    )


def test_limits_per_user_need_a_user() -> None:
    held = tenant(per_user=Limits(requests=Rate(10, 60, 10)))
    refusal = refused(held)
    assert isinstance(refusal, InvalidRequest)
    assert refusal.field == "user"
    assert apply(caller(held), request(user="ada")).request.user == "ada"


def test_a_type_without_a_price_is_refused_and_never_free() -> None:
    entry = """
[[job]]
type = "inference.flux-2.txt2img.v1"
variant = "flux-2"
operation = "generate"
typical_seconds = 9
[job.parameters]
prompt = { kind = "string", required = true }
"""
    with pytest.raises(Refused) as caught:
        apply(caller(tenant()), request(catalog=load(entry), variant="flux-2"))
    assert (caught.value.code, caught.value.status) == ("price_unknown", 409)


# Again at dispatch.


@pytest.mark.parametrize(
    ("then", "now", "code"),
    [
        (tenant(), tenant(), None),
        (tenant({"generate": rule(4)}), tenant({"generate": rule(4)}), None),
        (tenant({"generate": rule(2)}), tenant({"generate": rule(6)}), None),
        (tenant({"generate": rule(4)}), tenant({"generate": rule(3)}), "safety_ceiling"),
        (tenant({"generate": rule(4)}), tenant({"generate": rule(3)}, mode="reject"), None),
        (tenant(), tenant(suspended=True), "forbidden"),
        (tenant(), tenant(variants={"generate": ("max",)}), "forbidden"),
        (tenant(), tenant(variants={"edit": ("pro",)}), "forbidden"),
        (tenant({"generate": rule(4, 0)}), tenant({"generate": rule(1)}), None),
    ],
)
def test_a_job_is_still_allowed_or_not(then: Tenant, now: Tenant, code: str | None) -> None:
    asked = 3 if code is None and now.safety.mode == "reject" else None
    job = apply(caller(then), request("generate", safety_tolerance=asked))
    refusal = still_allowed(job, caller(now))
    assert (refusal.code if refusal else None) == code


def test_a_job_that_was_clamped_goes_on_when_the_mode_turns_to_reject_under_it() -> None:
    job = apply(caller(tenant({"generate": rule(2)})), request("generate", safety_tolerance=6))
    assert (job.safety.action, job.safety.applied) == ("clamped", 2)
    refusal = still_allowed(job, caller(tenant({"generate": rule(2)}, mode="reject")))
    assert refusal is not None
    assert refusal.code == "safety_ceiling"


def test_a_job_without_the_knob_is_refused_once_a_ceiling_is_set() -> None:
    job = apply(caller(tenant()), request("edit", variant="dev"))
    assert still_allowed(job, caller(tenant({"edit": rule(2)}))) is not None
    assert still_allowed(job, caller(tenant({"edit": rule(2)}, without=("dev",)))) is None


# Whenever a stored picture is read: operation, variant, applied tolerance, the type's default -> may it be read?

READABLE: list[tuple[Tenant, tuple[str, str, int | None, int | None], bool]] = [
    (tenant(), ("generate", "pro", 4, 4), True),
    (tenant(), ("generate", "pro", 5, 4), False),
    (tenant({"generate": rule(6)}), ("generate", "pro", 6, 4), True),
    (tenant({"generate": rule(1)}), ("generate", "pro", 2, 4), False),
    (tenant({"generate": rule(1)}), ("generate", "pro", 1, 4), True),
    (tenant({"generate": rule(1)}), ("edit", "pro", 2, 2), True),
    (tenant({"edit": rule(0)}), ("edit", "dev", None, None), False),
    (tenant({"edit": rule(0)}, without=("dev",)), ("edit", "dev", None, None), True),
    (tenant(), ("edit", "dev", None, None), True),
    (tenant({"generate": rule(None, 1)}), ("generate", "pro", 5, 4), False),
    (tenant(suspended=True), ("generate", "pro", 0, 4), False),
]


@pytest.mark.parametrize(("held", "picture", "expected"), READABLE)
def test_a_stored_picture_is_read_under_the_ceiling_in_force(
    held: Tenant, picture: tuple[str, str, int | None, int | None], expected: bool
) -> None:
    assert readable(held, *picture) is expected


def test_policy_leaves_what_was_asked_as_it_is() -> None:
    asked = request("generate", safety_tolerance=6)
    apply(caller(tenant({"generate": rule(1)})), asked)
    assert asked == replace(asked)
    assert (asked.safety_asked, asked.parameters) == (6, request("generate").parameters)
