"""Who is asking: the tenants file, read again whenever it changes, and API keys, of which only keyed hashes are
stored.

The file is looked at on every request (one stat call), so that a change holds from the next request on; a bad file
leaves the old one in force. Keys live in the ledger Redis; when it is away, `LedgerUnavailable` is raised and nobody
is let in.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from app.domain import tokens
from app.domain.client_token import ClientToken
from app.domain.tenant import KeyPolicy, Tenant
from app.domain.tenants_file import TenantsFile, TenantsFileError, load
from app.errors import Refused
from app.store import keys
from app.store.redis import Store


class Tenants:
    """The tenants in force in this process; `loads` counts reloads.

    `healthy` is false, with the `mistakes` to tell, while the file on disk is not the one in force.
    """

    def __init__(
        self, path: Path | None, variants: Mapping[str, frozenset[str]], *, built_in: Mapping[str, Tenant] | None = None
    ) -> None:
        self._path = path
        self._variants = variants
        self._built_in = dict(built_in or {})
        self._stamp: tuple[int, int, int] | None = None
        self._lock = asyncio.Lock()
        self.healthy = True
        self.loads = 0
        self.mistakes: tuple[str, ...] = ()
        self.current = TenantsFile(self._built_in, frozenset())

    def load(self) -> None:
        """Read the file for the first time. Raises TenantsFileError or OSError: a gateway does not start on a bad
        file."""
        if self._path is not None:
            self._stamp = _stamp(self._path)
            self.current = self._merged(load(_read(self._path), file=str(self._path), variants=self._variants))

    async def refresh(self) -> TenantsFile:
        """The tenants in force now, after a look at the file."""
        if self._path is None or self._unchanged():
            return self.current
        async with self._lock:
            if not self._unchanged():
                await asyncio.to_thread(self._reload, self._path)
        return self.current

    def _unchanged(self) -> bool:
        try:
            return self._path is not None and _stamp(self._path) == self._stamp
        except OSError:
            self.healthy, self.mistakes = False, (f"{self._path}:1: the file cannot be read",)
            self._stamp = None  # the very same file may come back
            return True

    def _reload(self, path: Path) -> None:
        try:
            stamp = _stamp(path)
            found = load(_read(path), file=str(path), variants=self._variants)
        except TenantsFileError as error:
            self.healthy, self.mistakes, self._stamp = False, tuple(str(mistake) for mistake in error.mistakes), stamp
        except OSError:
            self.healthy, self.mistakes = False, (f"{path}:1: the file cannot be read",)
        else:
            self.current, self.healthy, self.mistakes, self._stamp = self._merged(found), True, (), stamp
            self.loads += 1

    def _merged(self, found: TenantsFile) -> TenantsFile:
        return replace(found, tenants={**self._built_in, **found.tenants})


def _stamp(path: Path) -> tuple[int, int, int]:
    status = os.stat(path)
    return (status.st_mtime_ns, status.st_size, status.st_ino)


def _read(path: Path) -> str:
    return path.read_bytes().decode("utf-8", "replace").replace("\ufffd", "\x00")


@dataclass(frozen=True, slots=True)
class KeyRecord:
    """A key as listings show it; times in Unix seconds, 0 for never. The token itself is known to nobody."""

    tenant: str
    id: str
    name: str
    created: int
    expires: int
    revoked: int
    shown: str
    policy: KeyPolicy


@dataclass(frozen=True, slots=True)
class Bearer:
    """Whose a token is: tenant, key, the digest by which that key is valid, and the client token, if it is one."""

    tenant: str
    key_id: str
    digest: str
    client: ClientToken | None = None


class Keyring:
    """API keys: create, list, rotate, revoke, and find a token's tenant and key id."""

    def __init__(self, store: Store, pepper: bytes) -> None:
        self._store = store
        self._pepper = pepper
        self._known: dict[str, tuple[str, str]] = {}

    async def resolve(self, token: str) -> Bearer:
        """Whose a key or client token is; whether the key is still valid is the admit script's to say.

        Raises:
            Refused: unauthenticated, in one constant shape for whatever is wrong.
            LedgerUnavailable: no answer.
        """
        if not tokens.well_formed(token):
            raise Refused("unauthenticated", "This is not a key of this gateway.")
        digest = tokens.digest(token, self._pepper)
        if token.startswith(tokens.CLIENT):
            return await self._client(digest)
        known = self._known.get(digest)
        if known is None:
            found = await self._store.command("GET", keys.token(digest))
            if found is None:
                raise Refused("unauthenticated", "This key is unknown.")
            tenant, _, key_id = found.decode().partition("/")
            if len(self._known) >= 100_000:
                self._known.clear()
            known = self._known[digest] = (tenant, key_id)
        return Bearer(*known, digest)

    async def _client(self, digest: str) -> Bearer:
        """A client token is looked up at every call: it is gone when Redis, by its own clock, says so."""
        found = await self._store.command("GET", keys.token(digest))
        if found is None:
            raise Refused("unauthenticated", "This client token is unknown, or has expired.")
        client = ClientToken.from_json(found)
        return Bearer(client.tenant, client.key_id, client.minted_by, client)

    async def lend(self, client: ClientToken, seconds: int) -> str:
        """A new client token, good for so many seconds. It is returned once and never stored. Raises
        LedgerUnavailable."""
        token = tokens.mint(tokens.CLIENT)
        digest = tokens.digest(token, self._pepper)
        await self._store.command("SET", keys.token(digest), client.to_json(), "EX", seconds)
        return token

    async def lifetime(self, tenant: str, key_id: str, digest: str) -> tuple[int, int]:
        """Now by the server's clock, and when a key, or the token of it that has this digest, ends; in Unix seconds, 0
        for never. Raises LedgerUnavailable."""
        now, ends = await self._store.commands(("TIME",), ("HMGET", keys.key(tenant, key_id), f"d:{digest}", "expires"))
        return int(now[0]), min((int(end) // 1000 for end in ends if end and int(end)), default=0)

    async def valid(self, tenant: str, key_id: str) -> bool:
        """Whether a key exists, is not revoked and has not expired. Raises LedgerUnavailable."""
        revoked, expires = await self._store.command("HMGET", keys.key(tenant, key_id), "revoked", "expires")
        return revoked == b"0" and (expires == b"0" or int(expires) > time.time() * 1000)

    async def policy(self, tenant: str, key_id: str) -> KeyPolicy:
        """What a key narrows now; nothing for one that is not there. Raises LedgerUnavailable."""
        found = await self._store.command("HGET", keys.key(tenant, key_id), "policy")
        return KeyPolicy.from_json(found.decode()) if found else KeyPolicy()

    async def create(self, tenant: str, name: str, *, expires: int = 0, policy: KeyPolicy) -> tuple[str, str]:
        """A new key: (key id, token). The token is returned once and never stored."""
        key_id, token = "key_" + secrets.token_hex(6), tokens.mint()
        digest = tokens.digest(token, self._pepper)
        await self._store.command(
            "HSET", keys.key(tenant, key_id), "name", name, "created", int(time.time()), "expires", expires * 1000,
            "revoked", 0, "policy", policy.to_json(), "version", secrets.token_hex(4), f"d:{digest}", 0,
            "shown", tokens.shown(token),
        )  # fmt: skip
        await self._store.command("SADD", keys.key_ids(tenant), key_id)
        await self._store.command("SET", keys.token(digest), f"{tenant}/{key_id}")
        return key_id, token

    async def rotate(self, tenant: str, key_id: str, *, overlap: int) -> str:
        """A new token for a key; the old ones go on for `overlap` seconds. Its id, limits and spend stay."""
        record = await self._record(tenant, key_id)
        token, now = tokens.mint(), int(time.time())
        digest, until = tokens.digest(token, self._pepper), max(1, (now + overlap) * 1000)
        changes: list[Any] = [f"d:{digest}", 0, "shown", tokens.shown(token)]
        for name, value in record.items():
            if name.startswith("d:") and (value == b"0" or int(value) > until):
                changes += [name, until]
        await self._store.command("SET", keys.token(digest), f"{tenant}/{key_id}")
        await self._store.command("HSET", keys.key(tenant, key_id), *changes)
        return token

    async def revoke(self, tenant: str, key_id: str) -> None:
        """End a key and all its tokens from the next request on."""
        await self._record(tenant, key_id)
        await self._store.command("HSET", keys.key(tenant, key_id), "revoked", int(time.time()))

    async def list(self, tenant: str) -> list[KeyRecord]:
        """A tenant's keys, oldest first."""
        found = []
        for name in await self._store.command("SMEMBERS", keys.key_ids(tenant)):
            record = await self._record(tenant, name.decode())
            text = {field: value.decode() for field, value in record.items() if not field.startswith("d:")}
            found.append(
                KeyRecord(
                    tenant, name.decode(), text["name"], int(text["created"]), int(text["expires"]) // 1000,
                    int(text["revoked"]), text["shown"], KeyPolicy.from_json(text["policy"]),
                )
            )  # fmt: skip
        return sorted(found, key=lambda key: (key.created, key.id))

    async def _record(self, tenant: str, key_id: str) -> dict[str, bytes]:
        record = await self._store.command("HGETALL", keys.key(tenant, key_id))
        if not record:
            raise KeyError(key_id)
        return {name.decode(): value for name, value in record.items()}
