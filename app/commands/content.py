"""The `content` command: delete what a tenant made, sent and was answered, and leave its books as they are.

Registered by `cli.py`; `app.erasure` does it. It goes through the stores twice, with the time between that a process
keeps copies of pictures for: when it ends, nothing that was stored when it began is served by anybody.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from typing import Annotated

import typer

from app.cache.hot import KEEP
from app.commands.access import fail, read_settings, with_store
from app.domain.tenants_file import ID
from app.erasure import erase, running
from app.settings import LedgerSettings
from app.store.redis import Store

cli = typer.Typer(no_args_is_help=True, help="Delete a tenant's content.")


@cli.callback()
def content() -> None:
    """Delete a tenant's content."""


@cli.command("delete")
def delete(
    tenant: Annotated[str, typer.Option("--tenant", help="Tenant id; it may have left the tenants file.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Delete all pictures, lineage, waiting uploads, webhooks and kept answers of a tenant; the ledger stays."""
    if not ID.fullmatch(tenant):
        fail("--tenant: is not the id of a tenant")
    settings = read_settings(LedgerSettings)

    async def work(ledger: Store) -> tuple[Counter[str], int]:
        url = settings.cache_redis_url
        other = None if url is None else Store(
            url.get_secret_value(), timeout=2, connect_timeout=2, observe=lambda *_: None
        )  # fmt: skip
        cache = other or ledger
        try:
            gone = await erase(tenant, ledger=ledger, cache=cache)
            await asyncio.sleep(KEEP)
            left = await running(tenant, ledger)  # what ends from here on may store behind the second time
            gone += await erase(tenant, ledger=ledger, cache=cache)
            return gone, max(left, await running(tenant, ledger))
        finally:
            if other is not None:
                await other.aclose()

    gone, left = with_store(settings, work)
    told = {kind: gone[kind] for kind in ("pictures", "lineage", "uploads", "jobs", "webhooks", "answers")}
    if as_json:
        print(json.dumps({"tenant": tenant, "deleted": told, "running": left}))
    else:
        print(", ".join(f"{count} {kind}" for kind, count in told.items()) + f" deleted of {tenant}")
    if left:
        fail(f"{left} jobs of {tenant} are still running and may store a picture: suspend it, and run this again")
