"""An uploaded picture on its way: its bytes until they are no longer needed, its size and digest for ever.

Pure. Made by the surfaces, released by the pipeline: a job waits for seconds, and its upload must not wait in memory
with it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import cached_property


class Upload:
    """The bytes of one input as they came; `released` is told their number when they are let go of. `image_id` is the
    stored picture that they are, where they were named by id."""

    def __init__(self, data: bytes, image_id: str | None = None) -> None:
        self._data: bytes | None = data
        self.image_id = image_id
        self.released: Callable[[int], None] | None = None
        self.size = len(data)

    @property
    def data(self) -> bytes:
        """The bytes. Raises RuntimeError after `release`."""
        if self._data is None:
            raise RuntimeError("this upload was released")
        return self._data

    @cached_property
    def sha256(self) -> str:
        """Hex digest; computed once, and before the bytes are released."""
        return hashlib.sha256(self.data).hexdigest()

    def release(self) -> None:
        """Let go of the bytes; the digest stays."""
        _ = self.sha256
        if self._data is not None and self.released is not None:
            self.released(self.size)
        self._data = None
