"""Has this picture been made? Finished results with their record, in the cache Redis, under the digest of what makes
their pixels.

Called by the pipeline. Fails open: an unreadable cache is a miss, counted, and a picture that cannot be stored is
still delivered. The bytes of a picture are sealed together with their record, so that a damaged value, or one
of another pepper, is a miss and never served.
"""

from __future__ import annotations

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
from app.store.seal import EXTRA, Seal


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

    def __init__(self, store: Store, seal: Seal, *, hot: int = 0) -> None:
        self._store, self._seal = store, seal
        self._hot: Hot[Result] = Hot(hot)

    async def find(self, scope: str, digest: str) -> Result | None:
        """The stored result of a digest, or None when there is none, it is damaged, or the cache is away."""
        name = keys.result(scope, digest[:40])
        try:
            return decode(name, await self._store.command("GET", name), self._seal)
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
                heads.setdefault(record.image_id, (record, length - end - EXTRA))
        return heads

    async def store(self, digest: str, result: Result, ttl: int) -> bool:
        """Keep a result for `ttl` seconds; False when the cache did not acknowledge it."""
        name = keys.result(result.scope, digest[:40])
        self._hot.drop(name)
        try:
            await self._store.command("SET", name, encode(name, result, self._seal), "EX", ttl)
        except LedgerUnavailable:
            return False
        return True

    async def delete(self, scope: str, wanted: str) -> bool:
        """Delete the picture of an image id; whether it was there. Raises LedgerUnavailable.

        A copy that another process keeps for repeats lives for at most `hot.KEEP` seconds more.
        """
        self._hot.drop(keys.result(scope, wanted.removeprefix("img_")[:40]))
        return await delete(self._store, scope, wanted)


async def delete(store: Store, scope: str, wanted: str) -> bool:
    """Delete the picture of an image id where no process keeps copies; whether it was there. Raises
    LedgerUnavailable."""
    name = keys.result(scope, wanted.removeprefix("img_")[:40])
    record, _ = _record(memoryview(await store.command("GETRANGE", name, 0, HEAD - 1)))
    if record is None or record.image_id != wanted:
        return False
    return bool(await store.command("DEL", name))


def encode(name: str, result: Result, seal: Seal) -> memoryview:
    """CRC32 of the rest but the image (4 bytes), length of the record (4 bytes), record as JSON, sealed image."""
    record = orjson.dumps({field: getattr(result, field) for field in _RECORD})
    length = len(record).to_bytes(4, "big")
    crc = zlib.crc32(record, zlib.crc32(length))
    return seal.close(name, result.image, after=b"".join((crc.to_bytes(4, "big"), length, record)))


def decode(name: str, value: bytes | None, seal: Seal) -> Result | None:
    """The result in a stored value; None for none and for one that is damaged."""
    if value is None or len(value) < 8:
        return None
    view = memoryview(value)
    record, end = _record(view)
    if record is None:
        return None
    image = seal.open(name, view[end:], after=value[:end])
    return None if image is None else replace(record, image=image)


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
