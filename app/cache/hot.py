"""Pictures that were asked for again, kept in the process for a few seconds: a repeat then costs no transfer and no
check.

Used by `Results` only. Bounded in bytes, and in time, so that what was deleted or replaced in Redis is not served for
longer than `KEEP` seconds. Tenancy and policy are the callers' to check, as for what Redis holds; the key names the
scope.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from time import monotonic
from typing import Generic, Protocol, TypeVar

KEEP = 10.0


class _Sized(Protocol):
    @property
    def image(self) -> bytes: ...


T = TypeVar("T", bound=_Sized)


@dataclass(slots=True)
class Hot(Generic[T]):
    """At most `room` bytes of pictures, the least recently used leave first."""

    room: int
    clock: Callable[[], float] = monotonic
    _kept: OrderedDict[str, tuple[float, T]] = field(default_factory=OrderedDict)
    _size: int = 0

    def get(self, name: str) -> T | None:
        """What is kept under a name and not too old."""
        found = self._kept.get(name)
        if found is None:
            return None
        if found[0] < self.clock():
            self.drop(name)
            return None
        self._kept.move_to_end(name)
        return found[1]

    def keep(self, name: str, value: T, *, seconds: float) -> None:
        """Keep it for `seconds`, at most `KEEP`."""
        self.drop(name)
        if len(value.image) > self.room // 4 or seconds <= 0:
            return
        self._kept[name] = (self.clock() + min(seconds, KEEP), value)
        self._size += len(value.image)
        while self._size > self.room:
            self.drop(next(iter(self._kept)))

    def drop(self, name: str) -> None:
        """Forget it."""
        if (found := self._kept.pop(name, None)) is not None:
            self._size -= len(found[1].image)
