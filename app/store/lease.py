"""One lease per process incarnation, renewed once a second, covers all its holds, flights and upstream slots.

Used by the reaper, by flights and by the fair queue to tell whether an owner still lives. A process that was frozen for
longer than its lease is not told here: it finds out by the fence of whatever it touches next.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable

from app.store import keys
from app.store.redis import Store, script

_BEAT = script("app.store", "beat")
_ALIVE = script("app.store", "alive")


class Incarnation:
    """This process's life: a random id, and what is known of others' lives."""

    def __init__(self, store: Store) -> None:
        self.id = "inc_" + secrets.token_hex(8)
        self._store = store

    async def beat(self) -> None:
        """Renew the lease for `keys.LEASE_MS`. Raises LedgerUnavailable."""
        await self._store.run(_BEAT, [keys.LEASES], [self.id, keys.LEASE_MS], first=True)

    async def leave(self) -> None:
        """Give the lease up at the end of an orderly shutdown. Raises LedgerUnavailable."""
        await self._store.command("ZREM", keys.LEASES, self.id)

    async def alive(self, owners: Iterable[str]) -> set[str]:
        """Those of the given incarnations whose lease has not run out. Raises LedgerUnavailable."""
        asked = sorted(set(owners))
        if not asked:
            return set()
        found = await self._store.run(_ALIVE, [keys.LEASES], asked)
        return {owner for owner, lives in zip(asked, found, strict=True) if lives}
