"""How content lies in Redis: under AES-256-GCM, so that a stolen dump, backup or disk gives no picture or prompt away.

Called by whoever stores content: results, inputs of queued jobs, kept answers, webhook URLs. The key is derived from
the pepper, which Redis never sees. A value is bound to the name it is stored under, so that one that was moved, cut or
changed does not open.
"""

from __future__ import annotations

import hmac
import os

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

_NONCE, _TAG = 12, 16
EXTRA = _NONCE + _TAG  # bytes that a sealed value has more


class Seal:
    """Closes and opens under one pepper. Nonces are random: good for 2^32 values, which is 10^8 dollars of pictures."""

    def __init__(self, pepper: bytes) -> None:
        self._aead = AESGCM(hmac.digest(pepper, b"kontext-gateway/content", "sha256"))

    def close(self, name: str, data: bytes | memoryview, *, after: bytes = b"") -> memoryview:
        """`after` as it is, then the data as it may be stored under this name; `open` is given the same `after`."""
        sealed = bytearray(len(after) + EXTRA + len(data))
        at = len(after) + _NONCE
        nonce = os.urandom(_NONCE)
        sealed[: len(after)], sealed[len(after) : at] = after, nonce
        # Into its place: a picture that is copied once more costs more than to encrypt it.
        self._aead.encrypt_into(nonce, data, name.encode() + after, memoryview(sealed)[at:])
        return memoryview(sealed)

    def open(self, name: str, value: bytes | memoryview, *, after: bytes = b"") -> bytes | None:
        """The data that was closed; None where it was not closed under this name and key, or is damaged."""
        try:
            return self._aead.decrypt(value[:_NONCE], value[_NONCE:], name.encode() + after)
        except (InvalidTag, ValueError):
            return None
