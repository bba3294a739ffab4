"""May this be spent? Rates, images, places and dollars at tenant, key and end-user level, decided in Redis by atomic
scripts.

Called by the pipeline only. Fails closed: when Redis does not answer, `LedgerUnavailable` is raised and nothing is
dispatched. The end of a reservation that cannot be written now is kept in `unwritten` and written by the heartbeat.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import orjson

from app.domain import windows
from app.domain.job import Caller
from app.domain.tenant import KeyPolicy, Limits, Tenant
from app.domain.windows import Span
from app.errors import LedgerUnavailable
from app.quota.epoch import Epoch
from app.quota.limits import Cap, caps
from app.quota.refusals import RateState, describe_cap, gcra_args, key_refusal, rate_refusal, rate_states, rates_of
from app.store import keys
from app.store.redis import Store, script

ADMIT = script("app.quota", "admit")
FINISH = script("app.quota", "finish")

End = Literal["SETTLED", "REFUNDED", "AMBIGUOUS"]


@dataclass(frozen=True, slots=True)
class Moved:
    """One transition that this process won: what metrics and logs derive from. Amounts in micro-dollars."""

    end: End
    came_from: str
    delta: int
    amount: int
    facts: Mapping[str, Any]


@dataclass(slots=True)
class Finish:
    """A finish call that can be repeated by id until it is written."""

    tenant: str
    reservation: str
    usage: str
    taken: tuple[str, ...]
    end: End
    paid: int
    fence: str
    sources: str
    by: str
    row: Mapping[str, Any]
    amount: int
    unsent: bool = False
    name: str = ""  # key of the call's name, if it has one, and the answer to keep there
    answer: bytes | memoryview = b""
    asked: bool = False  # before, without an answer

    @classmethod
    def from_record(
        cls, tenant: str, reservation: str, record: Mapping[str, bytes | None], *, facts: Sequence[str]
    ) -> Finish:
        """What the reaper does with a reservation found in Redis: never sent is refunded, maybe sent stays charged."""
        text = {name: (value or b"").decode() for name, value in record.items()}
        taken = (*json.loads(text["places"] or "[]"), *(window[0] for window in json.loads(text["windows"] or "[]")))
        return cls(
            tenant, reservation, text["usage"], taken,
            end="REFUNDED" if text["state"] == "RESERVED" else "AMBIGUOUS",
            paid=0, fence=text["fence"], sources=text["state"], by="reaper",
            row={name: text[name] for name in facts} | {"reason": "reaped"}, amount=int(text["amount"] or 0),
            name=text["name"],
        )  # fmt: skip


class Ledger:
    """The quota side of one process."""

    def __init__(self, store: Store, epoch: Epoch, owner: str, *, moved: Callable[[Moved], None]) -> None:
        self.store = store
        self.epoch = epoch
        self.owner = owner
        self._moved = moved
        self.active: set[str] = set()
        self.unwritten: dict[str, Finish] = {}
        self._policies: dict[tuple[str, str], tuple[str, KeyPolicy]] = {}
        self._spans: dict[tuple[str, Span], tuple[int, int]] = {}
        self._clock_offset: float | None = None

    def now(self) -> float:
        """The server's clock as last seen, in Unix seconds; only ever a proposal that a script may correct."""
        return time.time() if self._clock_offset is None else time.monotonic() + self._clock_offset

    async def admit(self, tenant: Tenant, key_id: str, digest: str) -> tuple[Caller, list[RateState]]:
        """Check the key and take one request from the rates of tenant and key.

        Raises:
            Refused: unauthenticated or rate_limited.
            LedgerUnavailable: no answer; nothing is admitted.
        """
        policy_at = (tenant.id, key_id)
        for _ in range(4):
            version, policy = self._policies.get(policy_at, ("", KeyPolicy(Limits(), None, None)))
            caller = Caller(tenant, key_id, digest, policy)
            rates = rates_of(caller, None)
            reply = await self.store.run(
                ADMIT,
                [
                    keys.ledger(tenant.id),
                    keys.key(tenant.id, key_id),
                    *(keys.rate(tenant.id, lv, s) for lv, s, _ in rates),
                ],
                [digest, self.epoch.check(), self.epoch.mark(tenant.id), version, *gcra_args(rates)],
            )
            match reply[0]:
                case b"ok":
                    self._clock_offset = int(reply[1]) / 1e6 - time.monotonic()
                    self.epoch.saw(tenant.id, reply[2])
                    return caller, rate_states(rates, reply[3:])
                case b"rate":
                    raise rate_refusal(rates, reply)
                case b"key":
                    raise key_refusal(reply[1])
                case b"policy":
                    if len(self._policies) > 10_000:
                        self._policies.clear()
                    self._policies[policy_at] = (reply[1].decode(), KeyPolicy.from_json(reply[2].decode()))
                case _:
                    await self.epoch.mismatch(tenant.id, reply[1])
        raise LedgerUnavailable()

    async def admit_user(self, caller: Caller, user: str) -> list[RateState]:
        """Take one request from the end user's own rate, where the tenant has one. Raises like `admit`."""
        rates = rates_of(caller, user)
        if not rates:
            return []
        tenant, (version, _) = caller.tenant.id, self._policies.get((caller.tenant.id, caller.key_id), ("", None))
        reply = await self.store.run(
            ADMIT,
            [keys.ledger(tenant), keys.key(tenant, caller.key_id), *(keys.rate(tenant, lv, s) for lv, s, _ in rates)],
            [caller.token_digest, self.epoch.check(), self.epoch.mark(tenant), version, *gcra_args(rates)],
        )
        match reply[0]:
            case b"rate":
                raise rate_refusal(rates, reply)
            case b"key":
                raise key_refusal(reply[1])
            case b"ok":
                return rate_states(rates, reply[3:])
            case b"policy":
                return []  # the key's policy changed in this very moment; it was admitted under the one before
            case _:
                await self.epoch.mismatch(tenant, reply[1])
                raise LedgerUnavailable()

    def propose_spans(self, tenant: Tenant, periods: set[Span]) -> dict[Span, tuple[int, int]]:
        """The calendar windows believed to be open, [start, end) in Unix seconds."""
        now = self.now()
        spans: dict[Span, tuple[int, int]] = {}
        for per in sorted(periods):
            known = self._spans.get((tenant.id, per))
            # One that was told to be open stays so to its end, also where the clock has stepped back before its start.
            spans[per] = known if known and now < known[1] else windows.window(per, tenant.timezone, now)
        return spans

    async def _open_spans(self, tenant: Tenant, periods: set[Span]) -> dict[Span, tuple[int, int]]:
        """The windows that are open in Redis; where none is, the one that would be opened now."""
        spans = self.propose_spans(tenant, periods)
        if spans:
            found = await self.store.command("HMGET", keys.ledger(tenant.id), *(f"w:{per}" for per in spans))
            for per, value in zip(list(spans), found, strict=True):
                start, _, end = (value or b"").decode().partition(",")
                if end and self.now() < int(end):
                    spans[per] = (int(start), int(end))
        return spans

    def correct_span(self, tenant: Tenant, reply: list[bytes]) -> None:
        """Take over what the reserve script said about a window."""
        per: Span = reply[1].decode()  # type: ignore[assignment]
        now = int(reply[4])
        self._clock_offset = now - time.monotonic()
        if reply[2]:
            self._spans[tenant.id, per] = (int(reply[2]), int(reply[3]))
        else:
            self._spans[tenant.id, per] = windows.window(per, tenant.timezone, now)

    async def finish(self, call: Finish, *, keep: bool = True) -> str:
        """Write the end of a reservation; the state word the script answered, or `unwritten`.

        Args:
            keep: an end that cannot be written now is written later. Without it nothing of it is left behind: for who
                ends a reservation that another is at work on, and asks again.
        """
        try:
            reply = await write(self.store, call, self.owner)
        except LedgerUnavailable:
            call.asked = True
            if keep:
                self.unwritten[call.reservation] = call
            return "unwritten"
        asked = call.asked
        if keep:
            asked = self.unwritten.pop(call.reservation, None) is not None or asked
            self.active.discard(call.reservation)
        if reply[0] == b"done":
            self.epoch.saw(call.tenant, reply[1])
            self._moved(Moved(call.end, reply[3].decode(), int(reply[2]), call.amount, call.row))
        elif reply[0] == b"already" and asked and reply[3].decode() == self.owner:
            # It was this process that won, and the reply that said so was lost: nobody else counts it.
            self._moved(Moved(call.end, reply[5].decode(), int(reply[4]), call.amount, call.row))
        return str(reply[0].decode())

    async def write_unwritten(self) -> None:
        """Try again whatever could not be written; called by the heartbeat. One that fails for a reason of its own
        holds up no other."""
        for call in list(self.unwritten.values()):
            if await self.finish(call) == "unwritten":
                try:
                    await self.store.command("PING")
                except LedgerUnavailable:
                    return

    async def usage(self, caller: Caller, user: str | None) -> list[dict[str, Any]]:
        """Every cap of a caller in public words. Raises LedgerUnavailable."""
        return [describe_cap(*counter) for counter in await self.counters(caller, user)]

    async def counters(self, caller: Caller, user: str | None) -> list[tuple[Cap, tuple[int, int], int, int]]:
        """Every cap of a caller with its open window and what is spent and reserved there. Raises LedgerUnavailable."""
        found = caps(caller, user)
        spans = await self._open_spans(caller.tenant, {cap.per for cap in found})
        names = [window_key(caller.tenant.id, cap, spans) for cap in found]
        values = await self.store.commands(*(("HMGET", name, "spent", "reserved") for name in names))
        return [
            (cap, spans[cap.per], int(value[0] or 0), int(value[1] or 0))
            for cap, value in zip(found, values, strict=True)
        ]

    async def left(self, caller: Caller, user: str | None) -> int | None:
        """Micro-dollars that the tightest of a caller's budgets still pays for; None where there is no budget.

        Raises LedgerUnavailable. By the time of a reservation it may be less.
        """
        if not any(cap.kind == "usd" for cap in caps(caller, user)):
            return None
        found = await self.usage(caller, user)
        return min(int(cap["remaining_micro_usd"]) for cap in found if cap["kind"] == "budget")


def window_key(tenant: str, cap: Cap, spans: Mapping[Span, tuple[int, int]]) -> str:
    """The counter of a cap in the open window."""
    return keys.window(tenant, cap.level, cap.subject, cap.kind, cap.per, spans[cap.per][0])


async def write(store: Store, call: Finish, asker: str) -> list[bytes]:
    """Ask the finish script; its whole reply. Raises LedgerUnavailable: whether it was written is unknown."""
    reply: list[bytes] = await store.run(
        FINISH,
        [
            keys.ledger(call.tenant), keys.reservation(call.tenant, call.reservation), keys.outstanding(call.tenant),
            keys.ambiguous(call.tenant), keys.rows(call.tenant), call.usage, *call.taken,
            *filter(None, (call.name,)),
        ],
        [
            call.reservation, call.end, call.paid, call.fence, call.sources, call.by, orjson.dumps(dict(call.row)),
            keys.TOMBSTONE_MS, int(call.unsent), asker, *((call.answer, keys.IDEMPOTENCY_MS) if call.name else ()),
        ],
    )  # fmt: skip
    return reply
