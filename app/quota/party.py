"""Jobs that start together or not at all: the n pictures of one call, each with a reservation of its own.

Made by `app.series`, and used by each leader between its reservation and its dispatch. Nobody is sent before all of
them hold their money or need none; one that is refused gives everything back. Concurrency is not part of that: one
place is enough to begin, and whoever has none waits for a place until its deadline. Touches no keys itself.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine
from time import monotonic
from typing import Any, Generic, TypeVar

from app.errors import GatewayError, Refused
from app.quota.hold import Hold

LOOK = 0.5  # seconds after which one that stands looks for a place that nobody told it of
T = TypeVar("T")


class Party(Generic[T]):
    """`size` jobs of one call; `T` is what making their common input conform comes to."""

    def __init__(self, size: int) -> None:
        self.guests = tuple(Guest(self) for _ in range(size))
        self.refusal: GatewayError | None = None
        self._missing = size
        self._asking = 0
        self._standing: list[Refused] = []
        self._holding = 0
        self._begun = asyncio.Event()
        self._waiting: deque[asyncio.Event] = deque()
        self._input: asyncio.Task[T] | None = None

    def asks(self) -> None:
        self._asking += 1

    def abreast(self) -> int:
        return 1 if self._begun.is_set() else self._asking

    def arrive(self, hold: Hold | None, error: BaseException | None) -> None:
        self._missing -= 1
        if hold is not None:
            self._holding += 1
            if hold.standing is not None:
                self._standing.append(hold.standing)
        if error is not None:
            own = error if isinstance(error, GatewayError) else Refused("overloaded", "The call was given up.")
            self._begin(own)
        elif self._missing == 0:
            self._begin(self._standing[0] if self._standing and len(self._standing) == self._holding else None)

    async def begin(self) -> None:
        await self._begun.wait()
        if self.refusal is not None:
            raise self.refusal

    async def place(self, until: float) -> None:
        """Wait until a place may be free."""
        told = asyncio.Event()
        self._waiting.append(told)
        try:
            async with asyncio.timeout(min(LOOK, max(0.0, until - monotonic()))):
                await told.wait()
        except TimeoutError:
            self._waiting.remove(told)

    def freed(self) -> None:
        if self._waiting:
            self._waiting.popleft().set()

    async def input(self, make: Callable[[], Coroutine[Any, Any, T]]) -> T:
        if self._input is None:
            self._input = asyncio.create_task(make())
        return await asyncio.shield(self._input)

    def _begin(self, refusal: GatewayError | None) -> None:
        if not self._begun.is_set():
            self.refusal = refusal
            self._begun.set()


class Guest(Generic[T]):
    """One job of a party."""

    def __init__(self, party: Party[T]) -> None:
        self._party = party
        self._asked = self._arrived = False

    def needs_nothing(self) -> None:
        """It holds no money: its picture is there, or is made for somebody else."""
        self._arrive(None, None)

    def failed(self, error: BaseException) -> None:
        """It cannot be had; before the others begin, that is the end of all of them."""
        self._arrive(None, error)

    def asks(self) -> Callable[[], int]:
        """It is about to ask for its money; how many of them do so together is what a refusal must reckon with."""
        if not self._asked:
            self._asked = True
            self._party.asks()
        return self._party.abreast

    async def begin(self, hold: Hold, until: float) -> None:
        """Wait for the others, and for a concurrency place until the deadline (monotonic).

        Raises GatewayError: the refusal of one of them, or at the deadline its own.
        """
        self._arrive(hold, None)
        await self._party.begin()
        while not await hold.sit():
            if monotonic() >= until and hold.standing is not None:
                raise hold.standing
            await self._party.place(until)

    def left(self) -> None:
        """Its job has ended, and its place is free."""
        self._party.freed()

    async def input(self, make: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """What the first of them makes of their common input."""
        return await self._party.input(make)

    def _arrive(self, hold: Hold | None, error: BaseException | None) -> None:
        if not self._arrived:
            self._arrived = True
            self._party.arrive(hold, error)
