"""A queued job's reservation in the hands of the worker whose turn it is.

Made by `app.jobs` from the record that `Hold.enter_queue` left in Redis. The queue's entry owns the money; the worker
owns it from the moment it takes its seat, with the places of the job, and gives it back when the job cannot be sent
now. Whatever it ends, it ends under its fence: a worker that slept may have been replaced. When Redis is away,
`LedgerUnavailable` is raised, and a seat that could not be given back is `owed`: its worker does it later, and where
that dies, the reaper.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from app.domain.job import Job
from app.errors import GatewayError, LedgerUnavailable
from app.quota.hold import Hold
from app.quota.ledger import End, Finish, Ledger
from app.quota.limits import places
from app.quota.names import Claim
from app.quota.refusals import place_refusal
from app.store import keys
from app.store.redis import Store, script

SEAT = script("app.quota", "seat")
UNSEAT = script("app.quota", "unseat")
FIELDS = ("state", "owner", "fence", "amount", "windows", "places", "usage", "name", "claim", "queued", "dispatched",
          "paid", "image", "reason")  # fmt: skip
MOST_ASKED = 5  # times that the refund of a queued job is tried while it changes hands
FACTS = ("job", "tenant", "key", "user", "tags", "operation", "variant", "type", "price")


@dataclass(frozen=True, slots=True)
class Held:
    """A reservation as it is found in Redis; text, empty where there is none."""

    tenant: str
    id: str
    record: Mapping[str, str]

    @classmethod
    async def read(cls, store: Store, tenant: str, reservation: str) -> Held:
        """Raises LedgerUnavailable."""
        fields = (*FIELDS, *FACTS)
        found = await store.command("HMGET", keys.reservation(tenant, reservation), *fields)
        return cls(tenant, reservation, {n: (v or b"").decode() for n, v in zip(fields, found, strict=True)})

    @property
    def state(self) -> str:
        """RESERVED, DISPATCHING, SETTLED, REFUNDED, AMBIGUOUS, or empty: forgotten, or never held."""
        return self.record["state"]

    def refund(self, reason: str) -> Finish:
        """The end of a job that is still queued, whoever has it: it loses against a dispatch."""
        call = Finish.from_record(
            self.tenant, self.id, {name: value.encode() for name, value in self.record.items()}, facts=FACTS
        )
        call.end, call.sources, call.fence, call.by = "REFUNDED", "RESERVED", "", "owner"
        call.row = {**call.row, "reason": reason}
        return call


class Seat(Hold):
    """The hold of a queued job: `new` until the worker has its seat, and again when it gave it back."""

    def __init__(self, ledger: Ledger, job: Job, held: Held, claim: Claim | None) -> None:
        super().__init__(ledger, job, held.record["job"], claim=claim)
        self.id, self.job_id = held.id, held.record["job"]
        self._usage, self._fence = held.record["usage"], int(held.record["fence"])
        self._windows = tuple(window[0] for window in json.loads(held.record["windows"] or "[]"))
        self._taken = (*json.loads(held.record["places"] or "[]"), *self._windows)
        self._places: tuple[str, ...] = ()
        self.owed = False

    async def _reserve(self) -> None:
        """Take the seat. Raises Refused: concurrency_limited, every place is taken; LedgerUnavailable."""
        ledger, tenant = self._ledger, self._tenant.id
        seats = places(self._job.caller, self._job.request.user)
        taken = tuple(keys.concurrency(tenant, seat.level, seat.subject) for seat in seats)
        reply = await self._ask(
            SEAT,
            [keys.ledger(tenant), keys.reservation(tenant, self.id), keys.job(tenant, self.job_id),
             keys.waiting(tenant), *taken],
            [ledger.epoch.check(), ledger.epoch.mark(tenant), self.id, ledger.owner, self.job_id,
             *(seat.cap for seat in seats)],
        )  # fmt: skip
        match reply[0]:
            case b"ok":
                ledger.active.add(self.id)
                ledger.epoch.saw(tenant, reply[1])
                self._fence, self._places, self.state = int(reply[2]), taken, "reserved"
                self._taken = (*taken, *self._windows)
            case b"conc":
                raise place_refusal(seats[int(reply[1]) - 1], self._job.type)
            case b"epoch":
                await ledger.epoch.mismatch(tenant, reply[1])
                raise LedgerUnavailable()
            case _:
                raise LedgerUnavailable("This job is over, or another worker has it; nothing was dispatched here.")

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if self.state in ("reserved", "cleared") and (not isinstance(error, GatewayError) or comes_again(error)):
            await asyncio.shield(self.leave())
        elif self.state != "new":
            await super().__aexit__(kind, error, trace)

    async def _left(self) -> None:
        await self.leave()

    async def leave(self) -> None:
        """Give the seat back: not sent, and to be sent later. Where the ledger is away, it is `owed` from here on."""
        self.owed = True
        with suppress(LedgerUnavailable):
            await self.give_back()
        self.state = "new"

    async def give_back(self) -> None:
        """Give back what is owed. Raises LedgerUnavailable: it still is, and no reaper of this process touches it."""
        if not self.owed:
            return
        for _ in range(2):
            if await unseat(self._ledger, self._tenant.id, self.id, self._fence, self.job_id, self._places):
                self.state, self._fence, self._taken, self._places = "new", self._fence + 1, self._windows, ()
                break
            # A dispatch may have been acknowledged though its reply was lost.
            if not await self._retracted():
                await self._over()
                break
        else:
            raise LedgerUnavailable
        self.owed = False
        self._ledger.active.discard(self.id)

    async def _over(self) -> None:
        """It is not ours any more. Another replica may have taken it for sent, under the fence of our dispatch."""
        self.state = "cleared"
        await self._ledger.finish(self._finish("REFUNDED", "AMBIGUOUS", 0, {"reason": "ledger_unavailable"}))
        self.state = "new"

    def _finish(self, end: End, sources: str, paid: int, row: Mapping[str, Any]) -> Finish:
        call = super()._finish(end, "RESERVED" if self.state == "new" else sources, paid, row)
        call.fence = str(self._fence)
        return call


def comes_again(error: GatewayError) -> bool:
    """Whether a queued job that met this error before it was sent only has to wait."""
    return error.kind.retryable and error.charged == "no"


async def refund_queued(ledger: Ledger, held: Held, reason: str) -> Held:
    """Refund what is still queued; what is held then. It may change hands meanwhile, and loses against a dispatch.

    Raises LedgerUnavailable: whether it was refunded is unknown, and nothing is left that would do it later.
    """
    for _ in range(MOST_ASKED):
        if held.state != "RESERVED":
            return held
        call = held.refund(reason)
        word = await ledger.finish(call, keep=False)
        held = await Held.read(ledger.store, held.tenant, held.id)
        if word == "unwritten" and held.state == "REFUNDED":
            await ledger.finish(call, keep=False)  # who did it is asked once more, for it is counted once
    raise LedgerUnavailable


async def unseat(
    ledger: Ledger, tenant: str, reservation: str, fence: int, job_id: str, taken: tuple[str, ...], owner: str = ""
) -> bool:
    """Give a reservation that was not sent back to the queue; False where it moved on. Raises LedgerUnavailable."""
    reply = await ledger.store.run(
        UNSEAT,
        [keys.ledger(tenant), keys.reservation(tenant, reservation), keys.waiting(tenant), *taken],
        [reservation, owner or ledger.owner, fence, job_id],
    )
    if reply[0] == b"ok":
        ledger.epoch.saw(tenant, reply[1])
    return bool(reply[0] == b"ok")
