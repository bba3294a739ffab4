"""What a command works with: settings, tenants, the ledger; and how it says what is wrong.

Called by `cli.py` and `ledger.py`. A mistake is a line on standard error with its place and exit code 1, never a
traceback; a Redis that does not answer is one too.
"""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, NoReturn, TypeVar

import typer
import uvloop
from pydantic import ValidationError

from app.domain.catalog import CatalogError
from app.domain.tenants_file import TenantsFileError, load
from app.errors import LedgerUnavailable
from app.installation import DEMO, load_catalog, offered
from app.settings import Settings
from app.store.embedded import Embedded
from app.store.redis import Store

A = TypeVar("A")
T = TypeVar("T")


def read_settings(read: Callable[[], T]) -> T:
    try:
        return read()
    except ValidationError as error:
        lines = [
            f"{'.'.join(map(str, e['loc'])).upper()}{': ' if e['loc'] else ''}{e['msg'].removeprefix('Value error, ')}"
            for e in error.errors()
        ]
        fail("\n".join(f"settings: {line}" for line in lines))


def tenants_of(settings: Settings) -> Any:
    path = settings.gateway_tenants_file
    own = {"demo": DEMO} if settings.redis_url is None else {}  # the sandbox has a tenant of its own
    if path is None:
        return own
    text = path.read_bytes().decode("utf-8", "replace").replace("\ufffd", "\x00")
    return {**own, **load(text, file=str(path), variants=offered(load_catalog(settings))).tenants}


def with_store(settings: Settings, work: Callable[[Store], Awaitable[T]]) -> T:
    """Run something on the ledger: REDIS_URL, or the sandbox's embedded server where that is running."""
    url = settings.redis_url.get_secret_value() if settings.redis_url else Embedded(settings.gateway_data_dir).running()
    if url is None:
        fail("REDIS_URL is not set, and no sandbox is running on GATEWAY_DATA_DIR")

    async def go() -> T:
        store = Store(url, timeout=2, connect_timeout=2, observe=lambda *_: None)
        try:
            return await work(store)
        finally:
            await store.aclose()

    try:
        return loop(go())
    except LedgerUnavailable:
        fail("the ledger's Redis does not answer")


def checked(work: Callable[[], T]) -> T:
    try:
        return work()
    except (TenantsFileError, CatalogError, OSError, ValueError) as error:
        fail(why(error))


def option(name: str, read: Callable[[A], T], given: A) -> T:
    """What an option says; a mistake is told under its name."""
    try:
        return read(given)
    except ValueError as error:
        fail(f"{name}: {error}")


def loop(work: Coroutine[Any, Any, T]) -> T:
    return uvloop.run(work)


def why(error: Exception) -> str:
    """An error in plain words, with its file where it has one."""
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {error.strerror}"
    return str(error)


def fail(text: str) -> NoReturn:
    print(text, file=sys.stderr)
    raise typer.Exit(1)
