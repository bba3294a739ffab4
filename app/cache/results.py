"""Has this picture been made? Finished results with their record, in the cache Redis, under the digest of what makes
their pixels.

Called by the pipeline. Fails open: an unreadable cache is a miss, counted, and a picture that cannot be stored is
still delivered. What is read back is checked, so that a damaged value is a miss and never served.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from time import time
from typing import Any

import orjson

from app.cache.hot import Hot
from app.errors import LedgerUnavailable
from app.store import keys
from app.store.redis import Store


@dataclass(frozen=True, slots=True)
class Result:
    """A finished picture: bytes plus what may be said of it. Prices in micro-dollars, times in Unix seconds."""

    image: bytes
    job_id: str
    image_id: str
    sha256: str
    content_type: str
    width: int
    height: int
    seed: int
    job_type: str
    variant: str
    operation: str
    safety_applied: int | None
    price: int
    created: int
    scope: str


HEAD = 2048  # bytes that surely hold a record
_RECORD = tuple(field.name for field in fields(Result) if field.name != "image")


def image_id(digest: str, sha256: str) -> str:
    """The public id of a stored picture: where it is stored, and a check on its content."""
    return f"img_{digest[:40]}{sha256[:8]}"


class Results:
    """The cache of one process. `ttl` values are seconds; `hot` is how many bytes of pictures that are asked for again
    stay in the process."""

    def __init__(self, store: Store, *, hot: int = 0) -> None:
        self._store = store
        self._hot: Hot[Result] = Hot(hot)

    async def find(self, scope: str, digest: str) -> Result | None:
        """The stored result of a digest, or None when there is none, it is damaged, or the cache is away."""
        try:
            return decode(await self._store.command("GET", keys.result(scope, digest[:40])))
        except LedgerUnavailable:
            return None

    async def find_again(self, scope: str, digest: str, ttl: int) -> Result | None:
        """Like `find`, and at once when it was found a moment ago; `ttl` is how long the tenant keeps results."""
        name = keys.result(scope, digest[:40])
        if (known := self._hot.get(name)) is not None:
            return known
        if (found := await self.find(scope, digest)) is not None:
            self._hot.keep(name, found, seconds=found.created + ttl - time())
        return found

    async def by_id(self, scopes: tuple[str, ...], wanted: str) -> Result | None:
        """The picture of an image id in the scopes that a tenant may read; None when it is not there any more."""
        for scope in scopes:
            found = await self.find(scope, wanted.removeprefix("img_")[:40])
            if found is not None and found.image_id == wanted:
                return found
        return None

    async def heads(self, scopes: tuple[str, ...], wanted: Sequence[str]) -> dict[str, tuple[Result, int]]:
        """By image id, those of the wanted pictures that are there, without their bytes, and how many these are.

        Only what a picture's record says is read, in one round trip, so it is not known whether its bytes are whole.
        """
        names = [keys.result(scope, name.removeprefix("img_")[:40]) for scope in scopes for name in wanted]
        reads = [part for name in names for part in (("GETRANGE", name, 0, HEAD - 1), ("STRLEN", name))]
        try:
            found = await self._store.commands(*reads)
        except LedgerUnavailable:
            return {}
        heads: dict[str, tuple[Result, int]] = {}
        for value, length in zip(found[::2], found[1::2], strict=True):
            record, end = _record(memoryview(value))
            if record is not None and record.image_id in wanted:
                heads.setdefault(record.image_id, (record, length - end))
        return heads

    async def store(self, digest: str, result: Result, ttl: int) -> bool:
        """Keep a result for `ttl` seconds; False when the cache did not acknowledge it."""
        self._hot.drop(keys.result(result.scope, digest[:40]))
        try:
            await self._store.command("SET", keys.result(result.scope, digest[:40]), encode(result), "EX", ttl)
        except LedgerUnavailable:
            return False
        return True


def encode(result: Result) -> bytes:
    """CRC32 of the rest but the image (4 bytes), length of the record (4 bytes), record as JSON, image."""
    record = orjson.dumps({name: getattr(result, name) for name in _RECORD})
    length = len(record).to_bytes(4, "big")
    crc = zlib.crc32(record, zlib.crc32(length))
    return b"".join((crc.to_bytes(4, "big"), length, record, result.image))


def decode(value: bytes | None) -> Result | None:
    """The result in a stored value; None for none and for one whose record or image is damaged."""
    if value is None or len(value) < 8:
        return None
    view = memoryview(value)
    record, end = _record(view)
    if record is None:
        return None
    result = replace(record, image=bytes(view[end:]))
    return result if hashlib.sha256(result.image).hexdigest() == result.sha256 else None


def _record(view: memoryview) -> tuple[Result | None, int]:
    """The result at the beginning of a stored value, without its image, and where that begins."""
    end = 8 + int.from_bytes(view[4:8], "big")
    if zlib.crc32(view[4:end]) != int.from_bytes(view[:4], "big"):
        return None, end
    try:
        record: dict[str, Any] = orjson.loads(view[8:end])
        return Result(image=b"", **record), end
    except (ValueError, TypeError):
        return None, end
