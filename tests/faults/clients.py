"""Many callers at once: what they send, and what each of them was answered."""

from __future__ import annotations

import asyncio
import hashlib
import json
import resource
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import aiohttp

# The statuses a caller of /v1/generate may be answered while the upstream misbehaves, with their codes.
DOCUMENTED = {
    (200, "ok"),
    (402, "budget_exhausted"),
    (429, "budget_reserved"),
    (422, "content_moderated"),
    (502, "upstream_failed"),
    (502, "upstream_invalid"),
    (503, "upstream_busy"),
    (503, "upstream_unavailable"),
    (503, "ledger_unavailable"),
    (504, "upstream_timeout"),
}


@dataclass(frozen=True)
class Answer:
    """One answer. `digest` is of the body's bytes; `charged` is what an error said of the money."""

    status: int
    code: str
    source: str
    charged: str
    seed: int | None
    digest: str
    cost: str


async def ask(session: aiohttp.ClientSession, url: str, token: str, **fields: Any) -> Answer:
    """One `POST /v1/generate`; fields that are None are left out."""
    body = {"prompt": "a lighthouse at dawn"} | {name: value for name, value in fields.items() if value is not None}
    headers = {"Authorization": f"Bearer {token}"}
    async with session.post(f"{url}/v1/generate", json=body, headers=headers) as answer:
        data = await answer.read()
        told = json.loads(data) if answer.status >= 400 else {}
        seed = answer.headers.get("Gateway-Seed")
        return Answer(
            answer.status,
            told.get("code", "ok"),
            answer.headers.get("Gateway-Source", ""),
            told.get("charged", ""),
            None if seed is None else int(seed),
            hashlib.sha256(data).hexdigest(),
            answer.headers.get("Gateway-Cost-Usd", ""),
        )


async def ask_or_lose(session: aiohttp.ClientSession, url: str, token: str, **fields: Any) -> Answer | None:
    """As `ask`, or nothing when the replica died under it."""
    try:
        return await ask(session, url, token, **fields)
    except aiohttp.ClientError:
        return None


async def ask_after(seconds: float, session: aiohttp.ClientSession, url: str, token: str, **fields: Any) -> Answer:
    """As `ask`, a little later."""
    await asyncio.sleep(seconds)
    return await ask(session, url, token, **fields)


Work = Callable[[aiohttp.ClientSession], Awaitable[Any]]


def together(work: Sequence[Work]) -> list[Any]:
    """Start everything at once, each on a connection of its own; the results in order."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))

    async def run() -> list[Any]:
        connector = aiohttp.TCPConnector(limit=0)
        timeout = aiohttp.ClientTimeout(total=120, connect=60)
        async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
            return list(await asyncio.gather(*(one(session) for one in work)))

    return asyncio.run(run())


def statuses(answers: Iterable[Answer]) -> dict[str, int]:
    """How many callers were answered what."""
    return dict(sorted(Counter(f"{answer.status} {answer.code}" for answer in answers).items()))


def midday() -> str:
    """A time zone in which it is about noon, so that no calendar day ends while a test runs."""
    ahead = 12 - datetime.now(UTC).hour
    return "Etc/GMT" if not ahead else f"Etc/GMT{-ahead:+d}"
