"""Many callers at once: what they send, and what each of them was answered."""

from __future__ import annotations

import asyncio
import hashlib
import json
import resource
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import Any, Literal

import aiohttp

PROMPT = "a lighthouse at dawn"

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

# The answers that a name keeps: a picture, or how a job ended that was sent.
KEPT = {
    (200, "ok"),
    (422, "content_moderated"),
    (502, "upstream_failed"),
    (502, "upstream_invalid"),
    (504, "upstream_timeout"),
}

Outcome = Literal["ok", "fail", "unknown"]


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
    job: str = ""
    retry_after: str = ""
    text: str = ""  # headers, and the body of an error


async def ask(
    session: aiohttp.ClientSession, url: str, token: str, *, name: str = "", accept: str = "*/*", **fields: Any
) -> Answer:
    """One `POST /v1/generate`, under a name if it has one; fields that are None are left out."""
    body = {"prompt": PROMPT} | {name: value for name, value in fields.items() if value is not None}
    headers = {"Authorization": f"Bearer {token}", "Accept": accept} | ({"Idempotency-Key": name} if name else {})
    async with session.post(f"{url}/v1/generate", json=body, headers=headers) as answer:
        data = await answer.read()
        ours = "json" in answer.headers.get("Content-Type", "")  # what stands in front of a gateway answers otherwise
        told = json.loads(data) if answer.status >= 400 and ours else {}
        seed = answer.headers.get("Gateway-Seed")
        return Answer(
            answer.status,
            told.get("code", "ok" if answer.status < 400 else "not a gateway's"),
            answer.headers.get("Gateway-Source", ""),
            told.get("charged", ""),
            None if seed is None else int(seed),
            hashlib.sha256(data).hexdigest(),
            answer.headers.get("Gateway-Cost-Usd", ""),
            answer.headers.get("Gateway-Job-Id", ""),
            answer.headers.get("Retry-After", ""),
            f"{answer.headers}{told}",
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


@dataclass(frozen=True)
class Call:
    """One request as its client saw it: `answer` is None where none came. Seconds on the monotonic clock."""

    tenant: str
    seed: int | None
    began: float
    ended: float
    answer: Answer | None
    name: str = ""  # what the call is called under, with its key
    wish: str = ""  # what it asked for

    @property
    def outcome(self) -> Outcome:
        """ok: a picture. fail: told that nothing was charged. unknown: told so, or not told anything."""
        if self.answer is None or self.answer.charged in ("unknown", "yes"):
            return "unknown"
        return "ok" if self.answer.status == 200 else "fail"

    @property
    def seconds(self) -> float:
        """How long it took."""
        return self.ended - self.began


@dataclass
class History:
    """Everything that the clients of a run asked and were told."""

    calls: list[Call] = field(default_factory=list)

    async def ask(
        self,
        session: aiohttp.ClientSession,
        url: str,
        token: str,
        *,
        tenant: str = "acme",
        patience: float = 120,
        **fields: Any,
    ) -> Call:
        """As `ask`; a client that loses its connection, or its patience after so many seconds, has no answer."""
        began, answer = time.monotonic(), None
        with suppress(aiohttp.ClientError, TimeoutError, OSError):
            answer = await asyncio.wait_for(ask(session, url, token, **fields), patience)
        name = f"{token} {fields.pop('name')}" if fields.get("name") else ""
        call = Call(tenant, fields.get("seed"), began, time.monotonic(), answer, name, repr(sorted(fields.items())))
        self.calls.append(call)
        return call

    def send(
        self,
        urls: Sequence[str],
        token: str,
        seeds: Iterable[int],
        *,
        rate: float = 0,
        each: Callable[[int], Mapping[str, Any]] = lambda seed: {},
        **fields: Any,
    ) -> None:
        """One request per seed over all replicas in turn: all at once, or so many a second; `each` adds fields by
        seed."""

        async def one(session: aiohttp.ClientSession, at: int, seed: int) -> None:
            await asyncio.sleep(at / rate if rate else 0)
            await self.ask(session, urls[seed % len(urls)], token, **{"seed": seed, **fields, **each(seed)})

        together([partial(one, at=at, seed=seed) for at, seed in enumerate(seeds)])

    @property
    def answers(self) -> list[Answer]:
        """Every answer that came."""
        return [call.answer for call in self.calls if call.answer is not None]

    @property
    def texts(self) -> list[str]:
        """What the answers said in words."""
        return [answer.text for answer in self.answers]

    @property
    def cost(self) -> int:
        """What clients were told that their pictures cost, in micro-dollars."""
        return sum(round(float(answer.cost) * 1_000_000) for answer in self.answers if answer.cost)

    def outcomes(self) -> dict[str, int]:
        """How many requests came to what."""
        return dict(sorted(Counter(call.outcome for call in self.calls).items()))

    def statuses(self) -> dict[str, int]:
        """How many requests were answered what."""
        return statuses(self.answers)

    def __str__(self) -> str:
        return ", ".join(f"{n} {word}" for word, n in self.outcomes().items())


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
