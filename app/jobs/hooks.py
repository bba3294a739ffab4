"""Webhooks as Standard Webhooks has them: who may have one, its secrets and signature, and the list of what was sent.

Called by the surfaces, the courier and the commands. A secret is derived from the pepper and a salt, so that Redis
holds nothing to sign with; for a while after a rotation the previous one signs too. URLs are sealed. When Redis is
away, `LedgerUnavailable` is raised. Keys: `hook_secrets`, `hooks`, `hook`.
"""

from __future__ import annotations

import base64
import hmac
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

import orjson

from app.domain.tenant import Tenant
from app.errors import InvalidRequest
from app.jobs import address
from app.jobs.address import Target
from app.store import keys
from app.store.redis import Store
from app.store.seal import Seal

FIELD = "webhook_url"
State = Literal["due", "done", "dead"]
STATES: tuple[State, ...] = ("due", "done", "dead")


@dataclass(frozen=True, slots=True)
class Hook:
    """One webhook. `at` is when it is due, or was done or given up, in Unix seconds; `last` how it was answered."""

    id: str
    state: State
    type: str
    url: str
    job: str
    attempts: int
    last: str
    at: int


class Hooks:
    """The webhooks of all tenants. `loopback` is for tests: plain http to this machine is allowed."""

    def __init__(self, store: Store, pepper: bytes, *, loopback: bool = False) -> None:
        self.store, self._pepper, self.loopback = store, pepper, loopback
        self._seal = Seal(pepper)

    async def accept(self, tenant: Tenant, url: object) -> str:
        """The URL that a caller wants to be told at.

        Raises:
            InvalidRequest: not a URL to send to, not on the tenant's list, or there is nothing to sign with.
        """
        try:
            target = address.parse(url, loopback=self.loopback)
        except ValueError as error:
            raise InvalidRequest(f"`{FIELD}` {error}.", field=FIELD) from None
        if not address.allowed(target, tenant.webhooks_allow):
            text = f"`{FIELD}` is not below a URL that this tenant allows."
            raise InvalidRequest(text, field=FIELD, allowed=list(tenant.webhooks_allow))
        if not await self.secrets(tenant.id):
            text = f"`{FIELD}` needs a secret to sign with; the operator makes one for this tenant."
            raise InvalidRequest(text, field=FIELD)
        return target.url

    async def secrets(self, tenant: str) -> list[str]:
        """The secrets that sign now, the newest first."""
        current, previous, until = await self.store.command(
            "HMGET", keys.hook_secrets(tenant), "current", "previous", "until"
        )
        if current is None:
            return []
        both = [current] if previous is None or int(until) <= time.time() else [current, previous]
        return [self._secret(tenant, salt) for salt in both]

    async def rotate(self, tenant: str, *, overlap: int) -> str:
        """A new secret; the one before signs too for `overlap` seconds more."""
        key, salt = keys.hook_secrets(tenant), secrets.token_hex(16).encode()
        current = await self.store.command("HGET", key, "current")
        if current is not None:
            await self.store.command("HSET", key, "previous", current, "until", int(time.time()) + overlap)
        await self.store.command("HSET", key, "current", salt)
        return self._secret(tenant, salt)

    async def headers(self, tenant: str, hook_id: str, body: bytes) -> dict[str, str] | None:
        """What a webhook is sent with; None where there is nothing to sign with."""
        found, now = await self.secrets(tenant), int(time.time())
        if not found:
            return None
        return {
            "Content-Type": "application/json", "User-Agent": "kontext-gateway",
            "webhook-id": hook_id, "webhook-timestamp": str(now), "webhook-signature": sign(found, hook_id, now, body),
        }  # fmt: skip

    def target(self, url: str, allow: Sequence[str]) -> Target | None:
        """Where to send, under the list in force now; None: not there."""
        try:
            target = address.parse(url, loopback=self.loopback)
        except ValueError:
            return None
        return target if address.allowed(target, allow) else None

    async def list(self, tenant: str, states: Sequence[State] = STATES) -> list[Hook]:
        """A tenant's webhooks, the latest first."""
        found = []
        for state in states:
            pairs = await self.store.command("ZRANGE", keys.hooks(tenant, state), 0, -1, "WITHSCORES")
            for name, score in zip(pairs[::2], pairs[1::2], strict=True):
                fields = ("type", "url", "job", "attempts", "last")
                told = await self.store.command("HMGET", keys.hook(tenant, name.decode()), *fields)
                url = self.url_of(tenant, name.decode(), told.pop(1))
                kind, job, attempts, last = ((value or b"").decode() for value in told)
                if kind:
                    at = int(float(score)) // 1000
                    found.append(Hook(name.decode(), state, kind, url, job, int(attempts or 0), last, at))
        return sorted(found, key=lambda hook: hook.at, reverse=True)

    def url_of(self, tenant: str, hook_id: str, value: bytes | None) -> str:
        """The URL in its stored value; empty where it does not open."""
        return (self._seal.open(keys.hook(tenant, hook_id), value or b"") or b"").decode()

    async def redeliver(self, tenant: str, hook_id: str) -> None:
        """Send one again, under its id. Raises KeyError: there is none."""
        hook = keys.hook(tenant, hook_id)
        if not await self.store.command("EXISTS", hook):
            raise KeyError(hook_id)
        await self.store.commands(
            ("PERSIST", hook), ("HSET", hook, "attempts", 0),
            ("ZADD", keys.hooks(tenant, "due"), int(time.time() * 1000), hook_id),
            ("ZREM", keys.hooks(tenant, "done"), hook_id), ("ZREM", keys.hooks(tenant, "dead"), hook_id),
        )  # fmt: skip

    def _secret(self, tenant: str, salt: bytes) -> str:
        derived = hmac.digest(self._pepper, b"kontext-gateway/webhook\n" + tenant.encode() + b"\n" + salt, "sha256")
        return "whsec_" + base64.b64encode(derived).decode()


def sign(found: Sequence[str], hook_id: str, timestamp: int, body: bytes) -> str:
    """The signatures of Standard Webhooks, one for each secret."""
    signed = f"{hook_id}.{timestamp}.".encode() + body
    keyed = (hmac.digest(base64.b64decode(one.removeprefix("whsec_")), signed, "sha256") for one in found)
    return " ".join("v1," + base64.b64encode(digest).decode() for digest in keyed)


def event(kind: str, data: dict[str, Any]) -> bytes:
    """The body of a webhook."""
    return orjson.dumps({"type": kind, "timestamp": datetime.now(UTC).isoformat(timespec="seconds"), "data": data})
