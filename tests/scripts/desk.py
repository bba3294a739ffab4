"""Calls the money scripts as a gateway does, one at a time, on one tenant; the mutants give it other texts."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

import redis

from app.store import keys

TENANT, KEY, DIGEST, EPOCH = "acme", "key_1", "d1", "led_1"
NAMES = ("admit", "reserve", "dispatch", "retract", "finish", "tally", "claim", "close", "seat", "unseat", "sit")
DATE, USAGE_KEEP, RECENT = "2026-11-24", 400 * 86_400, 5
NAME = keys.idempotency(TENANT, KEY, "generate", "order-1")
DAY_MS = 86_400_000
BYTES = 7  # of a queued job
FAR = 1_000_000  # seconds to the end of a window that is not to end


def texts() -> dict[str, str]:
    """The scripts as they are shipped."""
    return {name: resources.files("app.quota").joinpath(f"{name}.lua").read_text("utf-8") for name in NAMES}


def job(name: str) -> str:
    """The queued job that a reservation is for."""
    return f"job_{name}"


@dataclass(frozen=True)
class Limit:
    """One window of a reservation: which level, what it counts, its cap, and how much of it is asked for."""

    level: str
    kind: str
    cap: int
    add: int

    def key(self, start: int) -> str:
        """The window's counter."""
        return keys.window(TENANT, self.level, "all", self.kind, "day", start)


@dataclass
class Desk:
    """A ledger with one tenant and one key."""

    client: redis.Redis
    text: Mapping[str, str] = field(default_factory=texts)
    epoch: str = EPOCH
    mark: int = 0

    def open(self) -> Desk:
        """Empty the server and make the ledger."""
        self.client.flushall()
        self.client.hset(keys.ledger(TENANT), "epoch", EPOCH)
        self.client.hset(keys.key(TENANT, KEY), mapping={f"d:{DIGEST}": "0", "version": "1"})
        return self

    @property
    def now(self) -> int:
        """The server's clock in Unix seconds."""
        return int(self.client.time()[0])

    def run(self, name: str, names: Sequence[str], args: Sequence[Any]) -> list[Any]:
        """One script; its reply with text in the place of bytes. Raises redis.ResponseError."""
        reply: Any = self.client.eval(self.text[name], len(names), *names, *args)
        return [part.decode() if isinstance(part, bytes) else part for part in reply]

    def admit(self, rates: Sequence[tuple[str, int, int]]) -> list[Any]:
        """Take one request from each rate: (subject, emission interval in microseconds, burst)."""
        names = [
            keys.ledger(TENANT),
            keys.key(TENANT, KEY),
            *(keys.rate(TENANT, "key", subject) for subject, _, _ in rates),
        ]
        return self.run("admit", names, [DIGEST, self.epoch, self.mark, "1", *(n for rate in rates for n in rate[1:])])

    def reserve(
        self,
        name: str,
        owner: str,
        limits: Sequence[Limit],
        span: tuple[int, int],
        *,
        places: Sequence[tuple[str, int]] = (),
        amount: int,
        claim: str = "",
        at_once: bool = False,
        queued: bool = False,
        stand: bool = False,
    ) -> list[Any]:
        """Hold all of it or nothing, with `stand` also without a place. `places` are (subject, cap); with a `claim` the
        call has the name NAME; a `queued` one belongs to its entry in the queue and takes no places."""
        ask = {
            "id": name, "owner": owner, "digest": DIGEST, "epoch": self.epoch, "mark": self.mark, "amount": amount,
            "spans": [["day", *span]], "conc": [cap for _, cap in places],
            "limits": [[limit.cap, limit.add, 1, limit.kind] for limit in limits],
            "keep": 60, "facts": {"tenant": TENANT},
            "day": {"start": span[0], "date": DATE, "keep": USAGE_KEEP, "group": owner},
            "recent": {"max": RECENT, "ms": 60_000},
        }  # fmt: skip
        named = [NAME] if claim else []
        ask |= {"at_once": True} if at_once else {}
        ask |= {"stand": True} if stand else {}
        ask |= {"claim": claim} if claim else {}
        if queued:
            ask |= {"owner": job(name), "conc": [], "queue": {"job": job(name), "bytes": BYTES, "keep": 60_000}}
            named += [keys.queue(TENANT), keys.job(TENANT, job(name)), keys.waiting(TENANT), keys.queued_bytes(TENANT)]
        seats = () if queued else places
        return self.run("reserve", [*self.reserve_keys(name, limits, span[0], seats), *named], [json.dumps(ask)])

    def seat(self, name: str, worker: str, places: Sequence[tuple[str, int]] = ()) -> list[Any]:
        """The turn of a queued job has come."""
        names = [keys.ledger(TENANT), keys.reservation(TENANT, name), keys.job(TENANT, job(name)), keys.waiting(TENANT)]
        seats = [keys.concurrency(TENANT, "tenant", subject) for subject, _ in places]
        args = [self.epoch, self.mark, name, worker, job(name), *(cap for _, cap in places)]
        return self.run("seat", [*names, *seats], args)

    def unseat(self, name: str, worker: str, fence: int) -> list[Any]:
        """Back to the queue."""
        taken = json.loads(self.client.hget(keys.reservation(TENANT, name), "places") or "[]")
        names = [keys.ledger(TENANT), keys.reservation(TENANT, name), keys.waiting(TENANT), *taken]
        return self.run("unseat", names, [name, worker, fence, job(name)])

    def reserve_keys(
        self, name: str, limits: Sequence[Limit], start: int, places: Sequence[tuple[str, int]] = ()
    ) -> list[str]:
        """KEYS of a reservation."""
        fixed = [keys.ledger(TENANT), keys.reservation(TENANT, name), keys.outstanding(TENANT), keys.key(TENANT, KEY)]
        fixed += [keys.usage(TENANT, start), keys.days(TENANT), keys.jobs(TENANT, KEY)]
        seats = [keys.concurrency(TENANT, "tenant", subject) for subject, _ in places]
        return [*fixed, *seats, *(limit.key(start) for limit in limits)]

    def sit(self, name: str, owner: str, places: Sequence[tuple[str, int]]) -> list[Any]:
        """Take the places of a reservation that stands."""
        sets = [keys.concurrency(TENANT, "tenant", subject) for subject, _ in places]
        names = [keys.ledger(TENANT), keys.reservation(TENANT, name), *sets]
        return self.run("sit", names, [name, owner, *(cap for _, cap in places)])

    def dispatch(self, name: str, owner: str, fence: int) -> list[Any]:
        """RESERVED -> DISPATCHING."""
        at, claim = self._named(name)
        names = [keys.ledger(TENANT), keys.reservation(TENANT, name), keys.key(TENANT, KEY), *at]
        return self.run("dispatch", names, [self.epoch, self.mark, owner, fence, DIGEST, *claim])

    def retract(self, name: str, owner: str, fence: int) -> list[Any]:
        """DISPATCHING -> RESERVED."""
        at, claim = self._named(name)
        names = [keys.ledger(TENANT), keys.reservation(TENANT, name), *at]
        return self.run("retract", names, [owner, fence, *claim])

    def finish(
        self,
        name: str,
        end: str,
        sources: str,
        *,
        paid: int = 0,
        fence: str = "",
        by: str = "owner",
        unsent: int = 0,
        answer: str = "",
    ) -> list[Any]:
        """The end of a reservation, over the keys that its own record names; what is settled has a picture."""
        more = json.dumps({"image": f"img_{name}"} if end == "SETTLED" else {"reason": "test"})
        kept = ["a", answer, DAY_MS] if self._named(name)[0] else []
        args = [name, end, paid, fence, sources, by, more, 60_000, unsent, *kept]
        return self.run("finish", self.finish_keys(name), args)

    def claim(
        self, claim: str, owner: str, digest: str = "d", seed: int = 1, *, ms: int = 60_000, dead: str = ""
    ) -> list[Any]:
        """Take the name."""
        return self.run("claim", [NAME], [claim, owner, digest, seed, f"req_{claim}", ms, dead, DAY_MS])

    def close(self, claim: str, answer: str = "") -> list[Any]:
        """Keep an answer that cost nothing, or free the name."""
        return [self.client.eval(self.text["close"], 1, NAME, claim, answer, DAY_MS)]

    def _named(self, name: str) -> tuple[list[str], list[str]]:
        """What a reservation's calls add to KEYS and ARGV where it has a name."""
        at, claim = self.client.hmget(keys.reservation(TENANT, name), "name", "claim")
        return ([at.decode()], [claim.decode()]) if at else ([], [])

    def tally(self, process: str, number: int, day: int, counts: Mapping[str, int]) -> list[Any]:
        """Add counts of free deliveries to a day."""
        pairs = [part for pair in counts.items() for part in pair]
        return [self.client.eval(self.text["tally"], 2, keys.usage(TENANT, day), keys.days(TENANT),
                                 process, number, day, DATE, USAGE_KEEP, *pairs)]  # fmt: skip

    def finish_keys(self, name: str) -> list[str]:
        """KEYS of the end of a reservation."""
        windows, places, usage = self.client.hmget(keys.reservation(TENANT, name), "windows", "places", "usage")
        taken = [*json.loads(places or "[]"), *(window[0] for window in json.loads(windows or "[]"))]
        fixed = [keys.ledger(TENANT), keys.reservation(TENANT, name), keys.outstanding(TENANT)]
        fixed += [keys.ambiguous(TENANT), keys.rows(TENANT), (usage or b"").decode()]
        return [*fixed, *taken, *self._named(name)[0]]

    def everything(self) -> dict[str, object]:
        """The whole server, to see whether anything changed."""
        return {name.decode(): self._value(name) for name in self.client.scan_iter(count=1000)}

    def _value(self, name: bytes) -> object:
        match self.client.type(name):
            case b"hash":
                return self.client.hgetall(name)
            case b"set":
                return self.client.smembers(name)
            case b"zset":
                return self.client.zrange(name, 0, -1, withscores=True)
            case b"stream":
                return self.client.xrange(name)
        return self.client.get(name)
