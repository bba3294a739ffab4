"""Whatever the policy, the tolerance that is applied is explicit and within its ceiling; the row A-05 sends it all to a
gateway."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.domain import policy
from app.domain.catalog import load
from app.domain.job import Ask, Caller
from app.domain.tenant import KeyPolicy, Safety, SafetyRule, Tenant
from app.domain.upload import Upload
from app.domain.validate import validate
from app.errors import GatewayError
from tests.e2e.ceilings import DEFAULT, RANGE

CATALOG = load()


@settings(max_examples=500, deadline=None)
@given(st.data())
def test_whatever_the_policy_the_applied_tolerance_is_explicit_and_within_the_ceiling(data: st.DataObject) -> None:
    operation, variant = data.draw(st.sampled_from(sorted(CATALOG.enabled)))
    rules = {}
    for name, top in RANGE.items():
        ceiling = data.draw(st.none() | st.integers(0, top))
        default = data.draw(st.none() | st.integers(0, top if ceiling is None else ceiling))
        if data.draw(st.booleans()):
            rules[name] = SafetyRule(ceiling, default)
    without_knob = data.draw(st.frozensets(st.sampled_from(["dev", "pro"])))
    safety = Safety(MappingProxyType(rules), data.draw(st.sampled_from(["clamp", "reject"])), without_knob)
    tenant = Tenant(id="acme", name="Acme", safety=safety)
    fields: dict[str, Any] = {"prompt": "a lighthouse", "variant": variant}
    asked = data.draw(st.none() | st.integers(0, RANGE[operation]))
    if variant != "dev" and asked is not None:
        fields["safety_tolerance"] = asked
    uploads = {"image": Upload(b"picture")} if operation == "edit" else {}
    request = validate(Ask(operation, fields, uploads), CATALOG)
    rule = rules.get(operation, SafetyRule())
    ceiling = DEFAULT[operation] if rule.ceiling is None else rule.ceiling
    if variant == "dev":
        forbidden = rule.ceiling is not None and "dev" not in without_knob
    else:
        forbidden = safety.mode == "reject" and asked is not None and asked > ceiling
    caller = Caller(tenant, "key_1", "digest", KeyPolicy())
    if forbidden:
        with pytest.raises(GatewayError, match="ceiling") as refused:
            policy.apply(caller, request)
        assert refused.value.code == "safety_ceiling"
        return
    job = policy.apply(caller, request)
    if variant == "dev":
        assert "safety_tolerance" not in job.config
    else:
        sent = job.config["safety_tolerance"]
        preferred = DEFAULT[operation] if rule.default is None else rule.default
        assert type(sent) is int
        assert sent == min(preferred if asked is None else asked, ceiling)
        assert safety.mode == "clamp" or asked is None or asked <= ceiling
