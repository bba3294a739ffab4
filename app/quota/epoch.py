"""The ledger's identity: an id in Redis and a sequence mark per tenant in memory, so that a lost ledger is never read
as "nothing spent". The heartbeat keeps the marks fresh, also of tenants that only other replicas serve.

Every money script is given the id and the mark and refuses when the ledger it finds is another one or older. Then
this process stops admitting until an operator runs `kontext-gateway ledger release`. A failover whose sequence is at
least the mark goes on by itself. A release is known by its moment: an older one that comes back is no release. Who
finds the ledger older says so in it (`doubted`): others may remember less, and who starts later remembers nothing.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass

from app.errors import LedgerUnavailable
from app.store import keys
from app.store.redis import Store


class NoLedger(Exception):
    """The Redis holds no ledger; `kontext-gateway ledger init` makes one."""


_ROOT = ("id", "released", "doubted", "latest")


@dataclass(frozen=True, slots=True)
class _Root:
    """What the ledger says of itself: its id, when it was released (ms of the server's clock, 0: never), whether a
    replica has found it older than it remembers since, and the latest release that such a replica knew of."""

    id: str | None
    released: int
    doubted: bool
    latest: int


def _root(found: Sequence[bytes | None]) -> _Root:
    ledger_id, released, doubted, latest = found
    return _Root(
        ledger_id.decode() if ledger_id else None,
        int(released or 0),
        doubted is not None and doubted == ledger_id,
        int(latest or 0),
    )


class Epoch:
    """What this process remembers of the ledger it works on."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.id: str | None = None
        self.frozen = False
        self._released = 0  # when the ledger that is known was released (ms of the server's clock), 0: never
        self._marks: dict[str, int] = {}

    async def open(self) -> None:
        """Learn the ledger's id at start.

        Raises:
            NoLedger: the Redis is empty.
            LedgerUnavailable: no answer.
        """
        found = _root(await self._store.command("HMGET", keys.ROOT, *_ROOT))
        if found.id is None:
            raise NoLedger
        self._adopt(found)

    def check(self) -> str:
        """The id for the scripts. Raises LedgerUnavailable while frozen or not opened."""
        if self.frozen:
            raise LedgerUnavailable(
                "The ledger was lost or rolled back; an operator must release it.", code="ledger_frozen", retry_after=30
            )
        if self.id is None:
            raise LedgerUnavailable()
        return self.id

    def mark(self, tenant: str) -> int:
        """The highest sequence number seen of a tenant's ledger."""
        return self._marks.get(tenant, 0)

    def saw(self, tenant: str, sequence: bytes) -> None:
        """Remember a sequence number that a script returned."""
        self._marks[tenant] = max(self.mark(tenant), int(sequence))

    async def mismatch(self, tenant: str, found: bytes) -> None:
        """A script refused for its epoch: enrol a tenant the ledger has never seen, follow a release, or freeze.

        Returns normally when the caller may ask again. Raises LedgerUnavailable otherwise.
        """
        mark = self.mark(tenant)  # before the look: what others learn meanwhile is newer than what is found
        root, known, now = await self._store.commands(
            ("HMGET", keys.ROOT, *_ROOT),
            ("SISMEMBER", keys.TENANTS, tenant),
            ("HMGET", keys.ledger(tenant), "epoch", "seq"),
        )
        ledger = _root(root)
        if (current := ledger.id) == self.id and current is not None and not ledger.doubted:
            if now[0] == root[0] and int(now[1] or 0) >= mark:
                return  # enrolled or released by another request since the script looked
            if not found and not known and not mark:
                # The tenant's epoch first: a crash in between leaves a ledger that can be used, not one that looks
                # lost.
                await self._store.commands(
                    ("HSETNX", keys.ledger(tenant), "epoch", current), ("SADD", keys.TENANTS, tenant)
                )
                return
        if current is not None and ledger.released > self._released:
            return self._adopt(ledger)
        await self._freeze(ledger)
        self.check()

    async def watch(self) -> None:
        """Called by the heartbeat: freeze when the ledger has gone, thaw when an operator released it."""
        found = _root(await self._store.command("HMGET", keys.ROOT, *_ROOT))
        if found.id is not None and (self.id is None or found.released > self._released):
            self._adopt(found)
        # The id alone does not thaw: a rolled back ledger has it too.
        elif self.frozen or found.id != self.id or found.doubted or await self._rolled_back():
            await self._freeze(found)

    async def _freeze(self, found: _Root) -> None:
        """Stop, and say so to the others. Raises LedgerUnavailable: they are told at the next beat."""
        self.frozen = True
        if found.id is not None and (not found.doubted or found.latest < self._released):
            latest = max(found.latest, self._released)
            await self._store.command("HSET", keys.ROOT, "doubted", found.id, "latest", latest)

    async def _rolled_back(self) -> bool:
        """Learn every tenant's sequence, also of those that other replicas serve; whether one is behind its mark."""
        marks = dict(self._marks)  # before the look: what requests learn meanwhile is newer than what is found
        names = {name.decode() for name in await self._store.command("SMEMBERS", keys.TENANTS)} | marks.keys()
        found = await self._store.commands(*(("HMGET", keys.ledger(name), "epoch", "seq") for name in names))
        behind = False
        for name, (epoch, sequence) in zip(names, found, strict=True):
            if epoch is None or epoch.decode() == self.id:
                behind = behind or int(sequence or 0) < marks.get(name, 0)
                self.saw(name, sequence or b"0")
        return behind

    def _adopt(self, found: _Root) -> None:
        self.id, self._released, self.frozen = found.id, found.released, found.doubted
        self._marks.clear()


async def initialise(store: Store) -> str:
    """Make a new ledger in an empty Redis; its id. Raises FileExistsError when there is one already."""
    ledger_id = "led_" + secrets.token_hex(8)
    if not await store.command("HSETNX", keys.ROOT, "id", ledger_id):
        raise FileExistsError
    await store.command("HSET", keys.ROOT, "created", int(time.time()))
    return ledger_id


async def release(store: Store) -> str:
    """Accept the ledger as it now is under a new id, which every replica follows; the new id.

    Counters stay as they are found. Raises NoLedger when there is nothing to accept: run `ledger init` first.
    """
    found = _root(await store.command("HMGET", keys.ROOT, *_ROOT))
    if found.id is None:
        raise NoLedger
    # Also where the clock was set back, or is that of another server than the one that was lost.
    moment = max(await store.now_ms(), found.released + 1, found.latest + 1)
    ledger_id = "led_" + secrets.token_hex(8)
    for tenant in await store.command("SMEMBERS", keys.TENANTS):
        await store.command("HSET", keys.ledger(tenant.decode()), "epoch", ledger_id)
    await store.command("HSET", keys.ROOT, "id", ledger_id, "released", moment)
    return ledger_id
