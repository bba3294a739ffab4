"""How much memory the request bodies of one process may take, over both listeners.

`body` takes room before it reads anything and as more comes; the pipeline gives an upload's part back when it lets go
of it, `telemetry.access` the rest when the request ends. Where there is no room, a request is refused as `overloaded`.
"""

from __future__ import annotations

from app.errors import GatewayError

SMALL = 64 * 1024  # a body up to this size may also use the part that is kept free of uploads
KEPT = 8  # that part: one in so many bytes


class Intake:
    """Room for `limit` bytes."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self.held = 0

    def charge(self) -> Charge:
        """What one request holds; nothing yet."""
        return Charge(self)

    def take(self, size: int, total: int) -> None:
        """Room for `size` more bytes of a request that then holds `total`. Raises GatewayError: overloaded."""
        if self.held + size > self._limit - (self._limit // KEPT if total > SMALL else 0):
            raise GatewayError("overloaded", "Too much is being uploaded at the moment.", retry_after=2)
        self.held += size


class Charge:
    """The bytes that one request holds. Closed more than once without harm."""

    __slots__ = ("_intake", "_size")

    def __init__(self, intake: Intake) -> None:
        self._intake, self._size = intake, 0

    def grow(self, total: int) -> None:
        """Hold at least `total` bytes from now on. Raises GatewayError: overloaded."""
        if total > self._size:
            self._intake.take(total - self._size, total)
            self._size = total

    def shrink(self, total: int) -> None:
        """Hold at most `total` bytes from now on."""
        self.give(max(0, self._size - total))

    def give(self, size: int) -> None:
        """Hold so many bytes less."""
        given = min(size, self._size)
        self._size -= given
        self._intake.held -= given

    def close(self) -> None:
        """Hold nothing."""
        self.give(self._size)
