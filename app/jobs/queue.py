"""The queue of asynchronous jobs: one stream for each tenant, one group of workers, one record for each job.

Called by `intake` (in), the worker (out) and the surfaces (look, cancel). What is in the stream has not ended; a worker
that dies leaves its entries pending, and another adopts them. When Redis is away, `LedgerUnavailable` is raised, and
what could not be ended is ended by whoever finds it. Keys: `queue`, `waiting`, `queued_bytes`, `job`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import orjson

from app.jobs import inputs
from app.quota.ledger import Ledger
from app.quota.seat import Held
from app.store import keys
from app.store.lease import Incarnation
from app.store.redis import Store, script
from app.store.seal import Seal

NEXT = script("app.jobs", "next")
PENDING = script("app.jobs", "pending")
ADOPT = script("app.jobs", "adopt")
START = script("app.jobs", "start")
REST = script("app.jobs", "rest")
END = script("app.jobs", "end")
GROUP = "workers"
IDLE_MS = 3_000  # an entry that was handed on so lately is not adopted: two would do it at once
MOST = 1_000  # pending entries of a tenant that are looked at in one pass

State = Literal["queued", "running", "succeeded", "failed", "cancelled"]
FIELDS = ("state", "reservation", "holder", "key", "digest", "request", "hook", "worker", "sizes", "name",
          "created", "ended", "answer", "operation", "variant", "type", "seed", "price", "typical", "echo")  # fmt: skip


@dataclass(frozen=True, slots=True)
class Queued:
    """What the record of a job says; text, empty where there is none. Times in Unix ms."""

    tenant: str
    id: str
    state: str
    reservation: str
    holder: str  # whose job it is: a key, or a client token
    key: str
    digest: str
    request: str
    hooked: bool
    worker: str
    ticket: bytes
    sizes: str
    name: str
    created: int
    ended: int
    answer: dict[str, Any]
    operation: str
    variant: str
    type: str
    seed: int
    price: int
    typical: float
    echo: bytes  # what the surface that it came by says of it again

    @property
    def over(self) -> bool:
        """Whether it has ended."""
        return self.state != "queued"


@dataclass(frozen=True, slots=True)
class Backlog:
    """A tenant's queue at one moment: jobs that wait, since when the first does (Unix ms, 0: none), bytes held."""

    waiting: int
    oldest: int
    size: int


class Queue:
    """The queues of all tenants, as one process sees them."""

    def __init__(self, ledger: Ledger, incarnation: Incarnation, seal: Seal) -> None:
        self.ledger, self.seal = ledger, seal
        self.store: Store = ledger.store
        self._incarnation = incarnation

    async def find(self, tenant: str, job_id: str) -> Queued | None:
        """The record of a job; None where there is none, or where it was never queued."""
        found, (ticket, echo) = await self.store.commands(
            ("HMGET", keys.job(tenant, job_id), *FIELDS), ("HMGET", keys.inputs(tenant, job_id), "ticket", "echo")
        )
        if found[0] in (None, b"new"):
            return None
        told = dict(zip(FIELDS, found, strict=True))
        hooked, echo = bool(told.pop("hook")), told.pop("echo") or echo or b""
        answer = self.seal.open(keys.job(tenant, job_id), told.pop("answer") or b"") or b"{}"
        text = {name: (value or b"").decode() for name, value in told.items()}
        return Queued(
            tenant, job_id, text["state"], text["reservation"], text["holder"], text["key"], text["digest"],
            text["request"], hooked, text["worker"], inputs.ticket_of(self.seal, tenant, job_id, ticket or b""),
            text["sizes"], text["name"],
            int(text["created"]), int(text["ended"] or 0), orjson.loads(answer), text["operation"],
            text["variant"], text["type"], int(text["seed"]), int(text["price"]), float(text["typical"]),
            inputs.echo_of(self.seal, tenant, job_id, echo),
        )  # fmt: skip

    async def tenants(self) -> list[str]:
        """Those that ever queued a job."""
        return sorted(name.decode() for name in await self.store.command("SMEMBERS", keys.QUEUES))

    async def backlog(self, tenant: str) -> Backlog:
        """How much a tenant has in the queue."""
        count, first, size = await self.store.commands(
            ("ZCARD", keys.waiting(tenant)),
            ("ZRANGEBYSCORE", keys.waiting(tenant), "-inf", "+inf", "WITHSCORES", "LIMIT", 0, 1),
            ("GET", keys.queued_bytes(tenant)),
        )
        return Backlog(count, int(first[1]) if first else 0, int(size or 0))

    async def place(self, job: Queued) -> int | None:
        """How many jobs of the tenant go before this one; None for one whose turn has come."""
        rank: int | None = await self.store.command("ZRANK", keys.waiting(job.tenant), job.id)
        return rank

    async def waits_since(self, tenant: str, until_ms: int) -> list[str]:
        """Ids of jobs that were queued before a moment of the server's clock and have no seat."""
        found = await self.store.command("ZRANGEBYSCORE", keys.waiting(tenant), "-inf", until_ms, "LIMIT", 0, MOST)
        return [name.decode() for name in found]

    async def take(self, tenant: str, count: int) -> list[tuple[str, str]]:
        """The next jobs of a tenant, handed to this process: entry and job of each."""
        return _pairs(await self.store.run(NEXT, [keys.queue(tenant)], [GROUP, self._incarnation.id, count]))

    async def adopt(self, tenant: str) -> list[tuple[str, str]]:
        """Jobs that dead processes were handed, handed to this one; also those of its own that it was never told of."""
        pending = [(entry, name.decode()) for entry, name in await self.store.run(PENDING, [keys.queue(tenant)],
                                                                                  [GROUP, MOST])]  # fmt: skip
        alive = await self._incarnation.alive({name for _, name in pending}) - {self._incarnation.id}
        orphans = [entry for entry, name in pending if name not in alive]
        if not orphans:
            return []
        args = [GROUP, self._incarnation.id, IDLE_MS, *orphans]
        return _pairs(await self.store.run(ADOPT, [keys.queue(tenant)], args))

    async def drop(self, tenant: str, entry: str) -> None:
        """Take an entry out whose job is over, or is not known: it came twice."""
        await self.store.commands(("XACK", keys.queue(tenant), GROUP, entry), ("XDEL", keys.queue(tenant), entry))

    async def start(self, job: Queued) -> tuple[str, int | str]:
        """Begin with a job: ("ok", starts so far), ("over", state) or ("taken", worker)."""
        dead = job.worker
        if dead and dead != self._incarnation.id and await self._incarnation.alive([dead]):
            return "taken", dead
        reply = await self.store.run(
            START, [keys.job(job.tenant, job.id)], [self._incarnation.id, "" if dead == self._incarnation.id else dead]
        )
        word, value = reply[0].decode(), reply[1].decode()
        return (word, int(value)) if word == "ok" else (word, value)

    async def rest(self, tenant: str, job_id: str, *, broken: bool) -> None:
        """Begin with a job anew later: unless it was `broken` off by a mistake, this beginning does not count."""
        await self.store.run(REST, [keys.job(tenant, job_id)], [self._incarnation.id, int(broken)])

    async def held(self, job: Queued) -> Held:
        """What is held for a job."""
        return await Held.read(self.store, job.tenant, job.reservation)

    async def end(self, job: Queued, state: State, answer: bytes, event: str = "", body: bytes = b"") -> bool:
        """The end of a job, once; whether it was this one that counts."""
        tenant, hook_id = job.tenant, hook_of(job.id)
        reply: int = await self.store.run(
            END,
            [keys.job(tenant, job.id), keys.queue(tenant), keys.waiting(tenant), keys.queued_bytes(tenant),
             keys.inputs(tenant, job.id), keys.hooks(tenant, "due"), keys.hook(tenant, hook_id)],
            [job.id, state, self.seal.close(keys.job(tenant, job.id), answer), keys.JOB_MS, GROUP, event, body,
             hook_id],
        )  # fmt: skip
        return bool(reply)


def hook_of(job_id: str) -> str:
    """The id of the webhook that tells of a job's end."""
    return f"msg_{job_id.removeprefix('job_')}"


def _pairs(flat: list[bytes]) -> list[tuple[str, str]]:
    names = [name.decode() for name in flat]
    return list(zip(names[::2], names[1::2], strict=True))
