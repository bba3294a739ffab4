"""API keys and client tokens as text: minted once, recognised by their checksum without a look-up, stored only as a
keyed hash.

Pure. Called by the key commands, the admin surface and the minting of client tokens to mint, by authentication to keep
garbage away from Redis.
"""

from __future__ import annotations

import hmac
import re
import secrets
import string
import zlib

PREFIX = "kgw_live_"
CLIENT = "kgw_client_"  # prefix of what a browser may hold
ALPHABET = string.digits + string.ascii_uppercase + string.ascii_lowercase
_SECRET, _CHECK, _SHOWN = 32, 6, 4
_FORM = re.compile(rf"(?:{PREFIX}|{CLIENT})([0-9A-Za-z]{{{_SECRET}}})([0-9A-Za-z]{{{_CHECK}}})")


def mint(prefix: str = PREFIX) -> str:
    """A new key: `kgw_live_`, 32 random base62 characters (190 bits), and their checksum.

    The checksum is the CRC-32 (as in zlib) of exactly those 32 characters as ASCII bytes, without the prefix, written
    as six base62 digits (0-9, A-Z, a-z), most significant first, padded with `0`.
    """
    secret = "".join(secrets.choice(ALPHABET) for _ in range(_SECRET))
    return prefix + secret + _checksum(secret)


def well_formed(token: str) -> bool:
    """Whether a text can be a key or client token at all: prefix, length, alphabet, checksum. Never looks past its
    length."""
    found = _FORM.fullmatch(token)
    return found is not None and hmac.compare_digest(_checksum(found[1]), found[2])


def digest(token: str, pepper: bytes) -> str:
    """What is stored of a key: its HMAC-SHA256 under the pepper, in hex.

    Raises:
        ValueError: an empty pepper.
    """
    if not pepper:
        raise ValueError("the pepper is empty")
    return hmac.digest(pepper, token.encode("utf-8", "surrogatepass"), "sha256").hex()


def shown(token: str) -> str:
    """A key as listings may show it: `kgw_live_AbCd…`, four of its characters; nothing of a text that is not a key."""
    return token[: len(PREFIX) + _SHOWN] + "…" if well_formed(token) else "…"


def _checksum(secret: str) -> str:
    value, digits = zlib.crc32(secret.encode("ascii")), ""
    for _ in range(_CHECK):
        value, digit = divmod(value, len(ALPHABET))
        digits = ALPHABET[digit] + digits
    return digits
