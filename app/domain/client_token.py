"""Client tokens: what one is bound to, minted by a key for a browser that must never hold the key.

Pure. Made by `app.minting`, stored by the keyring, read at every call: a `Caller` with one can do nothing that its key
could not, because it is the key's caller, narrowed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from pydantic import ConfigDict, TypeAdapter


@dataclass(frozen=True, slots=True)
class ClientToken:
    """What a token may do until `expires` (Unix seconds), over its whole life.

    Args:
        minted_by: digest of the key it was minted with: when that is rotated out or revoked, the token ends.
        ceiling: highest `safety_tolerance`, whatever the tenant's own is.
        images, micro_usd: what it may use in all; no dollars of its own where that is None.
        origins: pages that may send it, and then nothing else may; empty where it is bound to none.
        user: the end user that it stands for; None where calls with it have none.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(strict=True, extra="forbid")

    id: str
    tenant: str
    key_id: str
    minted_by: str
    expires: int
    operations: tuple[str, ...]
    variants: tuple[str, ...]
    ceiling: int
    images: int
    micro_usd: int | None
    origins: tuple[str, ...]
    user: str | None

    def to_json(self) -> bytes:
        """As it is stored."""
        return _STORED.dump_json(self)

    @classmethod
    def from_json(cls, text: bytes) -> ClientToken:
        """What `to_json` wrote. Raises ValueError."""
        return _STORED.validate_json(text)


_STORED = TypeAdapter(ClientToken)
