"""A plain model of what the scripts should do, and a machine that plays both against each other.

Two owners, who are also the workers of a queue, a reaper with a stale look and a reconciler, over a few reservation ids
that are used again, in any order, with any call repeated. After each step the books must balance and agree with the
model.
"""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from app.store import keys
from tests.faults.books import Books, Broken, Violation, over
from tests.scripts.desk import FAR, TENANT, Desk, Limit, job

CAPS = {"tenant": 100, "user": 60}
IMAGES, PLACES = 6, (("all", 5),)
NAMES, OWNERS = st.integers(1, 12).map("r{}".format), st.sampled_from(["a", "b"])
AMOUNTS = st.sampled_from([1, 19, 20, 21, 40])  # sums that meet a cap, and that pass it by one
STRANGER = st.sampled_from([False, False, False, True])  # whether the other owner calls
OFF = st.sampled_from([0, 0, 0, 0, -1, 1])  # how far the fence a caller remembers is off


@dataclass
class Hold:
    """A reservation as the model has it."""

    owner: str
    amount: int
    start: int
    state: str = "RESERVED"
    fence: int = 0
    paid: int = 0
    counted: bool = False
    queue: bool = False  # came by the queue
    seated: bool = True  # has its places; a queued one takes them with its turn


@dataclass(frozen=True)
class Look:
    """What a reaper read some time ago."""

    name: str
    state: str
    fence: int


class Machine(RuleBasedStateMachine):
    """`desk` is set by a subclass."""

    desk: Desk
    asked = Bundle("asked")
    looks = Bundle("looks")

    def __init__(self) -> None:
        super().__init__()
        self.desk.open()
        self.start = self.desk.now - 1_000
        self.holds: dict[str, Hold] = {}

    def limits(self, amount: int) -> list[Limit]:
        dollars = [Limit(level, "usd", cap, amount) for level, cap in CAPS.items()]
        return [*dollars, Limit("tenant", "img", IMAGES, 1)]

    def used(self, level: str, start: int) -> tuple[int, int]:
        """(spent, reserved) dollars of a window, which are the same at both levels."""
        here = [hold for hold in self.holds.values() if hold.start == start]
        return sum(hold.paid for hold in here), sum(hold.amount for hold in here if self.open(hold))

    def images(self, start: int) -> tuple[int, int]:
        here = [hold for hold in self.holds.values() if hold.start == start]
        return sum(hold.counted for hold in here), sum(self.open(hold) for hold in here)

    def fits(self, amount: int) -> bool:
        dollars = all(sum(self.used(level, self.start)) + amount <= cap for level, cap in CAPS.items())
        return dollars and sum(self.images(self.start)) + 1 <= IMAGES

    def taken(self) -> int:
        return sum(self.open(hold) and hold.seated for hold in self.holds.values())

    @staticmethod
    def open(hold: Hold) -> bool:
        return hold.state in ("RESERVED", "DISPATCHING")

    @rule(target=asked)
    def the_window_ends_and_the_next_one_opens(self) -> str:
        self.desk.client.hdel(keys.ledger(TENANT), "w:day")
        self.start += 1
        name = f"first-of-{self.start}"
        self.reserve(name=name, owner="a", amount=1)
        return name

    @rule(target=asked, name=NAMES, owner=OWNERS, amount=AMOUNTS)
    def reserve(self, name: str, owner: str, amount: int) -> str:
        reply = self.desk.reserve(
            name, owner, self.limits(amount), (self.start, self.start + FAR), places=PLACES, amount=amount
        )
        known = self.holds.get(name)
        if known is not None:
            expected = ["ok"] if known.state == "RESERVED" else ["state", known.state]
        elif self.taken() >= PLACES[0][1]:
            expected = ["conc"]
        elif not self.fits(amount):
            expected = ["limit"]
        else:
            expected = ["ok"]
            self.holds[name] = Hold(owner, amount, self.start)
        self.agree(f"reserve {name}", reply[: len(expected)], expected)
        return name

    @rule(target=asked, name=NAMES, amount=AMOUNTS)
    def enter_the_queue(self, name: str, amount: int) -> str:
        """As reserving, but the job itself owns it, and no place is taken."""
        reply = self.desk.reserve(
            name, "a", self.limits(amount), (self.start, self.start + FAR), places=PLACES, amount=amount, queued=True
        )
        known = self.holds.get(name)
        if known is not None:
            expected = ["ok"] if known.state == "RESERVED" else ["state", known.state]
        elif not self.fits(amount):
            expected = ["limit"]
        else:
            expected = ["ok"]
            self.holds[name] = Hold(job(name), amount, self.start, queue=True, seated=False)
        self.agree(f"queue {name}", reply[: len(expected)], expected)
        return name

    @rule(name=asked, worker=OWNERS, handed=st.sampled_from([True, True, True, False]))
    def take_a_seat(self, name: str, worker: str, handed: bool) -> None:
        """By the worker that the job was handed to, or by one that it was handed to before."""
        self.desk.client.hset(keys.job(TENANT, job(name)), "worker", worker if handed else "another")
        reply, hold = self.desk.seat(name, worker, PLACES), self.holds.get(name)
        if hold is None or hold.state != "RESERVED" or not hold.queue or not handed:
            expected = "state"
        elif hold.owner == worker:
            expected = "ok"
        elif hold.owner != job(name):
            expected = "state"
        elif self.taken() >= PLACES[0][1]:
            expected = "conc"
        else:
            expected, hold.owner, hold.fence, hold.seated = "ok", worker, hold.fence + 1, True
        self.agree(f"seat {name}", reply[0], expected)

    @rule(name=NAMES, first=OWNERS, second=OWNERS)
    def hand_a_job_to_two_workers(self, name: str, first: str, second: str) -> None:
        """The first was believed to be dead."""
        self.enter_the_queue(name=name, amount=1)
        self.take_a_seat(name=name, worker=first, handed=True)
        self.take_a_seat(name=name, worker=second, handed=True)

    @rule(name=asked, stranger=STRANGER, off=OFF)
    def give_the_seat_back(self, name: str, stranger: bool, off: int) -> None:
        hold, worker = self.holds.get(name), self.caller(name, stranger)
        fence = max(0, hold.fence + off) if hold else 0
        reply, expected = self.desk.unseat(name, worker, fence), "state"
        if hold and hold.state == "RESERVED" and hold.queue:
            if hold.owner == job(name) and fence + 1 == hold.fence:
                expected = "ok"
            elif worker == hold.owner and fence == hold.fence:
                expected, hold.owner, hold.fence, hold.seated = "ok", job(name), fence + 1, False
        self.agree(f"unseat {name}", reply[0], expected)

    def caller(self, name: str, stranger: bool) -> str:
        """The owner of a reservation, or the other one."""
        owner = self.holds[name].owner if name in self.holds else "a"
        return {"a": "b", "b": "a"}.get(owner, "a") if stranger else owner

    @rule(name=asked, stranger=STRANGER, off=OFF)
    def dispatch(self, name: str, stranger: bool, off: int) -> None:
        hold, owner = self.holds.get(name), self.caller(name, stranger)
        reply = self.desk.dispatch(name, owner, max(0, hold.fence + off) if hold else 0)
        if hold and owner == hold.owner and max(0, hold.fence + off) == hold.fence and self.open(hold):
            hold.state, expected = "DISPATCHING", "ok"
        else:
            expected = "state"
        self.agree(f"dispatch {name}", reply[0], expected)

    @rule(name=asked, stranger=STRANGER, off=OFF)
    def retract(self, name: str, stranger: bool, off: int) -> None:
        hold, owner = self.holds.get(name), self.caller(name, stranger)
        fence = max(0, hold.fence + off) if hold else 0
        reply, expected = self.desk.retract(name, owner, fence), "state"
        if hold and owner == hold.owner:
            if hold.state == "DISPATCHING" and fence == hold.fence:
                hold.state, hold.fence, expected = "RESERVED", fence + 1, "ok"
            elif hold.state == "RESERVED" and fence + 1 == hold.fence:
                expected = "ok"
        self.agree(f"retract {name}", reply[0], expected)

    @rule(name=asked, stranger=STRANGER)
    def find_the_upstream_busy(self, name: str, stranger: bool = False) -> None:
        """Dispatched and taken back: the same state, another fence."""
        self.dispatch(name=name, stranger=False, off=0)
        self.retract(name=name, stranger=stranger, off=0)

    @rule(name=asked, share=st.floats(0, 1))
    def settle_what_was_given_up(self, name: str, share: float) -> None:
        """Dispatched, charged as unknown, and the picture comes after all."""
        self.dispatch(name=name, stranger=False, off=0)
        self.charge_unknown(name=name)
        self.settle(name=name, share=share)

    @rule(name=asked, share=st.floats(0, 1))
    def settle(self, name: str, share: float) -> None:
        """By its owner: of a dispatched one, or late, after a reaper charged it as ambiguous."""
        hold = self.holds.get(name)
        self.end(name, "SETTLED", "DISPATCHING,AMBIGUOUS", paid=round(share * hold.amount) if hold else 0)

    @rule(name=asked)
    def refund(self, name: str) -> None:
        self.end(name, "REFUNDED", "RESERVED,DISPATCHING")

    @rule(name=asked)
    def charge_unknown(self, name: str) -> None:
        self.end(name, "AMBIGUOUS", "DISPATCHING")

    @rule(name=asked, end=st.sampled_from(["SETTLED", "REFUNDED"]), share=st.floats(0, 1))
    def reconcile(self, name: str, end: str, share: float) -> None:
        hold = self.holds.get(name)
        self.end(name, end, "AMBIGUOUS", paid=round(share * hold.amount) if hold and end == "SETTLED" else 0)

    @rule(target=looks, name=asked)
    def look(self, name: str) -> Look:
        hold = self.holds.get(name)
        return Look(name, hold.state, hold.fence) if hold else Look(name, "RESERVED", 0)

    @rule(look=looks)
    def reap(self, look: Look) -> None:
        """On a look that may be stale by now: it must not end what has moved on since."""
        if look.state in ("RESERVED", "DISPATCHING"):
            end = "REFUNDED" if look.state == "RESERVED" else "AMBIGUOUS"
            self.end(look.name, end, look.state, fence=look.fence)

    @rule(name=asked, meanwhile=st.sampled_from(["find_the_upstream_busy", "refund", "charge_unknown"]))
    def reap_on_a_stale_look(self, name: str, meanwhile: str) -> None:
        look = self.look(name=name)
        getattr(self, meanwhile)(name=name)
        self.reap(look=look)

    def end(self, name: str, end: str, sources: str, *, paid: int = 0, fence: int | None = None) -> None:
        hold = self.holds.get(name)
        reply = self.desk.finish(name, end, sources, paid=paid, fence="" if fence is None else str(fence))
        if hold is None:
            expected = "state"
        elif hold.state == end:
            expected = "already"
        elif hold.state not in sources.split(",") or fence not in (None, hold.fence):
            expected = "state"
        else:
            expected = "done"
            hold.counted = hold.counted or hold.state == "DISPATCHING"
            hold.state = end
            hold.paid = {"SETTLED": paid, "AMBIGUOUS": hold.amount}.get(end, 0)
        self.agree(f"{end} {name}", reply[0], expected)

    @invariant()
    def the_books_balance_and_agree_with_the_model(self) -> None:
        books = Books.read(self.desk.client, TENANT)
        found = books.violations()
        found += [broken for name, window in books.windows.items() for broken in over(name, window, CAPS)]
        if found:
            raise Broken(found)
        windows: dict[str, tuple[int, int]] = {}
        for start in {hold.start for hold in self.holds.values()}:
            windows |= {Limit(level, "usd", 0, 0).key(start): self.used(level, start) for level in CAPS}
            windows[Limit("tenant", "img", 0, 0).key(start)] = self.images(start)
        self.agree("windows", books.windows, windows)
        self.agree("charged", books.delta, sum(hold.paid for hold in self.holds.values()))
        states = {name: (hold.state, str(hold.fence), hold.owner) for name, hold in self.holds.items()}
        self.agree("states", {n: (h["state"], h["fence"], h["owner"]) for n, h in books.holds.items()}, states)

    @staticmethod
    def agree(what: str, found: object, expected: object) -> None:
        if found != expected:
            raise Broken([Violation("model", f"{what}: {found} where the model says {expected}")])


def play(desk: Desk, *, examples: int, shrink: bool = True, draws: int | None = None) -> None:
    """Play this many games of up to 40 calls; `shrink` looks for the shortest that goes wrong, `draws` is a seed.
    Raises Broken."""
    played = type("Played", (Machine,), {"desk": desk})
    if draws is not None:
        seed(draws)(played)
    depth = settings(
        max_examples=examples, stateful_step_count=40, deadline=None, database=None, print_blob=False,
        phases=[Phase.generate, *([Phase.shrink] if shrink else [])], report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    run_state_machine_as_test(played, settings=depth)
