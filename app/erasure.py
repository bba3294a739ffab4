"""A tenant's content, deleted: pictures, how they came to be, uploads and jobs that wait, and kept answers.

Called by `kontext-gateway content delete`. The books stay as they are: keys, counters, rows and roll-ups hold no
content. When Redis is away, `LedgerUnavailable` is raised, and what was deleted stays deleted: run it again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator

from app.cache import results
from app.cache.lineage import steps
from app.quota.names import blank
from app.store import keys
from app.store.redis import Store

AT_ONCE = 100  # keys that are read and deleted in one round trip


async def erase(tenant: str, *, ledger: Store, cache: Store) -> Counter[str]:
    """Delete all content of a tenant that is stored now; how many of each kind there were."""
    gone = Counter[str](pictures=0, lineage=0, uploads=0, jobs=0, webhooks=0, answers=0)
    async for names in _found(ledger, keys.every("line", tenant)):
        images = [name.decode().rpartition(":")[2] for name in names]
        for step in (await steps(ledger, tenant, images)).values():
            if step.made and step.scope.startswith("pool:"):  # what it bought for its pool is nobody else's content
                gone["pictures"] += await results.delete(cache, step.scope, step.image)
        gone["lineage"] += await ledger.command("DEL", *names)
    async for names in _found(cache, keys.every("result", tenant)):
        gone["pictures"] += await cache.command("DEL", *names)
    async for names in _found(ledger, keys.every("in", tenant)):
        # What one asks that waits is forgotten: its worker gives the money back.
        gone["jobs"] += sum(await ledger.commands(*(("HDEL", name, "ticket") for name in names)))
        gone["uploads"] += await ledger.command("DEL", *names)
    async for names in _found(ledger, keys.every("job", tenant)):
        gone["jobs"] += sum([await _untell(ledger, name) for name in names])
    async for names in _found(ledger, keys.every("hook", tenant)):
        gone["webhooks"] += await ledger.command("UNLINK", *names)
    async for names in _found(ledger, keys.every("idem", tenant)):
        gone["answers"] += sum([await blank(ledger, name.decode()) for name in names])
    return gone


async def running(tenant: str, ledger: Store) -> int:
    """Jobs that may still store a picture. Raises LedgerUnavailable."""
    return int(await ledger.command("ZCARD", keys.outstanding(tenant)))


async def _untell(ledger: Store, name: bytes) -> bool:
    """Forget an asynchronous job that has ended."""
    if await ledger.command("HGET", name, "state") in (b"new", b"queued"):
        return False
    return bool(await ledger.command("UNLINK", name))


async def _found(store: Store, pattern: str) -> AsyncIterator[list[bytes]]:
    cursor: bytes | int = 0
    while True:
        cursor, names = await store.command("SCAN", cursor, "MATCH", pattern, "COUNT", AT_ONCE * 10)
        for at in range(0, len(names), AT_ONCE):
            yield names[at : at + AT_ONCE]
        if int(cursor) == 0:
            return
