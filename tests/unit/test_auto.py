"""`auto` picks the best variant that has every field of a request, that the caller may use, and that it can pay for."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from app.domain import auto, policy
from app.domain.catalog import Catalog
from app.domain.guidance import load
from app.domain.job import Choice
from app.domain.tenant import KeyPolicy, Limits, SafetyRule, Tenant
from app.domain.validate import validate
from app.errors import GatewayError, InvalidRequest, Refused
from tests.unit.asks import CATALOG, ask, caller, tenant

GUIDANCE = load()
OPEN = tenant(without=("dev",))
ONE, TWO = "make the sky stormy", "make the sky stormy and add a boat"


def chosen(
    operation: str,
    *,
    by: Tenant = OPEN,
    key: KeyPolicy | None = None,
    left: int | None = None,
    catalog: Catalog = CATALOG,
    **fields: Any,
) -> Choice:
    options = auto.options(caller(by, key), ask(operation, variant="auto", **fields), catalog, GUIDANCE)
    found = auto.pick(options, left)
    assert found.chosen is not None
    assert found.fields["variant"] == found.chosen.variant
    return found.chosen


def only(operation: str, *variants: str) -> Tenant:
    return tenant(variants={operation: variants}, without=("dev",))


def test_each_rule_names_its_variant_and_says_why() -> None:
    assert chosen("edit", prompt=ONE) == Choice("pro", "pro is enough for this prompt")
    assert chosen("edit", prompt=TWO) == Choice("max", "the prompt asks for 2 independent changes")
    assert chosen("generate", prompt=TWO).variant == "max"
    assert chosen("edit", prompt=TWO, style_preset="anime") == Choice("dev", "a style preset was given")


@pytest.mark.parametrize(
    ("fields", "variant"),
    [
        ({"prompt": TWO, "aspect_ratio": "16:9"}, "max"),
        ({"prompt": ONE, "aspect_ratio": "16:9"}, "pro"),
        ({"prompt": ONE, "prompt_upsampling": True}, "pro"),
        ({"prompt": ONE, "steps": 20}, "dev"),
        ({"prompt": TWO, "width": 512}, "dev"),
        ({"prompt": TWO, "guidance_scale": 3, "seed": 1, "user": "u", "tags": ["t"], "fit": "auto"}, "dev"),
    ],
)
def test_only_a_variant_with_every_field_is_picked(fields: dict[str, Any], variant: str) -> None:
    found = chosen("edit", **fields)
    assert found.variant == variant
    assert validate(ask("edit", **fields | {"variant": found.variant}), CATALOG).job_type.variant == variant


def test_fields_that_no_variant_has_together_are_named() -> None:
    with pytest.raises(InvalidRequest) as caught:
        chosen("edit", style_preset="anime", aspect_ratio="1:1", seed=1)
    assert caught.value.status == 422
    assert caught.value.field == "style_preset"
    assert caught.value.extra["fields"] == {"style_preset": ["dev"], "aspect_ratio": ["pro", "max"]}
    assert "`style_preset`, `aspect_ratio`" in caught.value.detail
    assert "seed" not in caught.value.detail


@pytest.mark.parametrize(
    ("operation", "fields", "field"),
    [
        ("edit", {"strength": 1}, "strength"),
        ("edit", {"style_preset": "anime", "strength": 1}, "strength"),
        ("generate", {"style_preset": "anime"}, "style_preset"),
        ("edit", {"prompt": 7}, "prompt"),
        ("edit", {"prompt": None}, "prompt"),
        ("edit", {"style_preset": "pastel"}, "style_preset"),
        ("edit", {"prompt": TWO, "safety_tolerance": 3}, "safety_tolerance"),
        ("generate", {"user": ""}, "user"),
    ],
)
def test_a_field_that_is_wrong_is_refused_by_name(operation: str, fields: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        chosen(operation, **fields)
    assert (caught.value.status, caught.value.field) == (422, field)


@pytest.mark.parametrize(
    ("by", "prompt", "variant", "because"),
    [
        (only("edit", "pro", "dev"), TWO, "pro", "the prompt asks for 2 independent changes; max may not be used here"),
        (only("edit", "dev"), TWO, "dev", "the prompt asks for 2 independent changes; max may not be used here"),
        (only("edit", "max", "dev"), ONE, "dev", "pro is enough for this prompt; pro may not be used here"),
        (only("edit", "max"), ONE, "max", "pro is enough for this prompt; pro may not be used here"),
    ],
)
def test_what_tenant_does_not_allow_is_fallen_back_from_downwards_first(
    by: Tenant, prompt: str, variant: str, because: str
) -> None:
    assert chosen("edit", by=by, prompt=prompt) == Choice(variant, because)


def test_the_key_counts_as_the_tenant_does() -> None:
    assert chosen("edit", key=KeyPolicy(Limits(), ("pro",), None), prompt=TWO).variant == "pro"
    with pytest.raises(Refused) as caught:
        chosen("edit", key=KeyPolicy(Limits(), None, ("generate",)), prompt=TWO)
    assert caught.value.code == "forbidden"


def test_a_variant_that_cannot_hold_the_ceiling_is_not_eligible() -> None:
    held = tenant({"edit": SafetyRule(ceiling=1)})
    with pytest.raises(Refused) as caught:
        chosen("edit", by=held, prompt=ONE, style_preset="anime")
    assert (caught.value.code, caught.value.status) == ("safety_ceiling", 403)
    assert chosen("edit", by=held, prompt=ONE, left=30_000).variant == "pro"
    named = tenant({"edit": SafetyRule(ceiling=1)}, without=("dev",))
    assert chosen("edit", by=named, prompt=ONE, style_preset="anime").variant == "dev"


@pytest.mark.parametrize(
    ("left", "prompt", "variant"),
    [
        (None, TWO, "max"),
        (80_000, TWO, "max"),
        (79_999, TWO, "pro"),
        (40_000, TWO, "pro"),
        (39_999, TWO, "dev"),
        (39_999, ONE, "dev"),
        (24_999, TWO, "max"),
        (0, ONE, "pro"),
    ],
)
def test_what_cannot_be_paid_is_fallen_back_from_and_said(left: int | None, prompt: str, variant: str) -> None:
    """Where nothing can be paid for, the wish stays, to be found in the cache or refused by the ledger."""
    found = chosen("edit", left=left, prompt=prompt)
    assert found.variant == variant
    fell = variant != ("max" if prompt == TWO else "pro")
    assert ("does not pay for" in found.because) is fell


def test_a_variant_without_a_price_or_out_of_service_is_not_picked() -> None:
    unpriced = Catalog(tuple(replace_price(job, None) if job.variant == "max" else job for job in CATALOG.jobs))
    assert chosen("edit", catalog=unpriced, prompt=TWO).variant == "pro"
    none = Catalog(tuple(job for job in CATALOG.jobs if job.variant != "max"))
    assert chosen("edit", catalog=none, prompt=TWO).because.endswith("max is not offered")
    with pytest.raises(InvalidRequest, match="auto has no variant"):
        chosen("edit", catalog=Catalog(()), prompt=TWO)


def replace_price(job: Any, price: str | None) -> Any:
    return job.model_copy(update={"price_usd": price})


def test_auto_never_goes_where_the_caller_could_not_go_by_name() -> None:
    """Every tenant, key and request of this grid: what is picked passes the policy, and nothing eligible is refused."""
    tenants = [OPEN, tenant(), tenant({"edit": SafetyRule(ceiling=0)}, mode="reject"), only("edit", "pro"),
               only("edit", "dev", "max"), only("generate", "pro"), replace(OPEN, suspended=True)]  # fmt: skip
    policies = [KeyPolicy(), KeyPolicy(Limits(), ("dev",), None), KeyPolicy(Limits(), ("max", "pro"), ("edit",))]
    asks: list[dict[str, Any]] = [{"prompt": ONE}, {"prompt": TWO}, {"style_preset": "anime"},
                                  {"safety_tolerance": 2}, {"aspect_ratio": "1:1"}, {"steps": 3}]  # fmt: skip
    picked = 0
    for by in tenants:
        for key in policies:
            for fields in asks:
                able = {v for v in ("pro", "max", "dev") if allowed(by, key, v, fields)}
                try:
                    found = chosen("edit", by=by, key=key, **fields)
                except GatewayError:
                    assert not able
                else:
                    assert found.variant in able
                    picked += 1
    assert picked > 40


def allowed(by: Tenant, key: KeyPolicy, variant: str, fields: dict[str, Any]) -> bool:
    try:
        policy.apply(caller(by, key), validate(ask("edit", variant=variant, **fields), CATALOG))
    except GatewayError:
        return False
    return True


def test_a_variant_by_name_is_not_touched() -> None:
    assert not auto.asked(ask("edit"))
    assert not auto.asked(ask("edit", variant="pro"))
    assert not auto.asked(ask("edit", variant=["auto"]))
    assert validate(ask("edit", variant="pro"), CATALOG).chosen is None
