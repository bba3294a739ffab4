"""Client tokens: what a key asks one to be bound to, held against what that key may do itself.

Called by the surface of client tokens. A token is never wider than its key: what is asked beyond it is refused, naming
the field and what the key allows; what is not asked gets a small default. When Redis is away, `LedgerUnavailable` is
raised.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Any

from app.domain import policy
from app.domain.client_token import ClientToken
from app.domain.job import Caller
from app.domain.pricing import MAX_USD, MICRO, usd
from app.domain.tenant import MAX_IMAGES, parse_amount
from app.domain.validate import read_user
from app.errors import InvalidRequest, Refused
from app.pipeline import Gateway
from app.quota.limits import Kind, caps

CEILING = 1  # where the key allows it
IMAGES = 10
FIELDS = ("expires_in", "operations", "variants", "ceiling", "images", "usd", "origins", "user")
OPERATIONS = ("generate", "edit")


async def mint(gateway: Gateway, caller: Caller, fields: Mapping[str, Any]) -> tuple[str, ClientToken, int]:
    """A new token, what it is bound to, and how many seconds it lives. Raises InvalidRequest, Refused,
    LedgerUnavailable."""
    for unknown in fields.keys() - set(FIELDS):
        shown = unknown[:64]
        raise InvalidRequest(f"`{shown}` is not a field of a client token.", field=shown, fields=list(FIELDS))
    now, ends = await gateway.keyring.lifetime(caller.tenant.id, caller.key_id, caller.token_digest)
    longest = max(1, min(gateway.client_token_max_ttl, ends - now)) if ends else gateway.client_token_max_ttl
    life = _whole(fields, "expires_in", 1, longest, min(gateway.client_token_ttl, longest))
    client = draft(gateway, caller, fields, expires=now + life)
    return await gateway.keyring.lend(client, life), client, life


def draft(gateway: Gateway, caller: Caller, fields: Mapping[str, Any], *, expires: int) -> ClientToken:
    """What a token of these fields is bound to. Raises InvalidRequest, Refused: forbidden where nothing is left."""
    tenant = caller.tenant
    user = read_user(fields["user"]) if "user" in fields else None
    if user is None and not tenant.per_user.empty:
        raise InvalidRequest("`user` is required: this tenant has limits per end user.", field="user")
    usable = [job for job in gateway.catalog.enabled.values() if policy.usable(caller, job)]
    operations = _some(fields, "operations", [name for name in OPERATIONS if any(j.operation == name for j in usable)])
    usable = [job for job in usable if job.operation in operations]
    highest = max((bound for job in usable if (bound := policy.ceiling_of(tenant, job)) is not None), default=0)
    ceiling = _whole(fields, "ceiling", 0, highest, min(CEILING, highest))
    # A token always has a ceiling, so a variant without the knob takes a policy that allows it by name.
    held = [job.variant for job in usable if job.role("safety") or job.variant in tenant.safety.allow_without_knob]
    variants = _some(fields, "variants", list(dict.fromkeys(held)))
    images, dollars = _most(caller, user, "img", MAX_IMAGES), _most(caller, user, "usd", MAX_USD * MICRO)
    return ClientToken(
        id="ct_" + secrets.token_hex(12), tenant=tenant.id, key_id=caller.key_id, minted_by=caller.token_digest,
        expires=expires, operations=operations, variants=variants, ceiling=ceiling,
        images=_whole(fields, "images", 1, images, min(IMAGES, images)),
        micro_usd=_dollars(fields, dollars),
        origins=_some(fields, "origins", list(tenant.cors_origins), empty=True), user=user,
    )  # fmt: skip


def _most(caller: Caller, user: str | None, kind: Kind, otherwise: int) -> int:
    """The smallest cap that a key has anyway, whatever its window."""
    return min((cap.cap for cap in caps(caller, user) if cap.kind == kind), default=otherwise)


def _whole(fields: Mapping[str, Any], name: str, low: int, high: int, default: int) -> int:
    value = fields.get(name, default)
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        text = f"`{name}` must be a whole number from {low} to {high}: this key allows no more."
        raise InvalidRequest(text, field=name, minimum=low, maximum=high)
    return value


def _dollars(fields: Mapping[str, Any], most: int) -> int | None:
    if "usd" not in fields:
        return None
    try:
        amount = parse_amount(fields["usd"]) if isinstance(fields["usd"], str) else 0
    except ValueError:
        amount = 0
    if not 0 < amount <= most:
        text = f'`usd` must be dollars such as "0.40", above 0 and up to {usd(most)}: this key allows no more.'
        raise InvalidRequest(text, field="usd", maximum=usd(most))
    return amount


def _some(fields: Mapping[str, Any], name: str, allowed: list[str], *, empty: bool = False) -> tuple[str, ...]:
    """A list of what a key allows; all of it where the field is left out."""
    value = fields.get(name, allowed)
    if not allowed and not empty:
        raise Refused("forbidden", f"This key has no {name} that a client token could have.", field=name)
    if not isinstance(value, list) or not (value or empty) or any(one not in allowed for one in value):
        shown = ", ".join(allowed) or "nothing: none are set for this tenant"
        raise InvalidRequest(
            f"`{name}` must be a list out of what this key allows: {shown}.", field=name, allowed=allowed
        )
    return tuple(dict.fromkeys(value))
