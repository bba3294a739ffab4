"""Signed, expiring links to stored pictures: whoever holds one may read that picture until it expires.

Pure. A link names the tenant and the key it was made for; both are checked again when it is read. Two secrets can be
live at a time, so that one can be exchanged for another while links of both work.
"""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from urllib.parse import urlencode


def sign(secret: bytes, image_id: str, tenant: str, key_id: str, expires: int) -> str:
    """Hex HMAC-SHA256 over everything that the link claims; `expires` in Unix seconds."""
    claim = f"{image_id}\n{tenant}\n{key_id}\n{expires}"
    return hmac.digest(secret, b"kontext-gateway/image-url\n" + claim.encode(), "sha256").hex()


def link(secret: bytes, image_id: str, tenant: str, key_id: str, expires: int) -> str:
    """The path and query of a signed link."""
    query = {"t": tenant, "k": key_id, "e": expires, "s": sign(secret, image_id, tenant, key_id, expires)}
    return f"/v1/images/{image_id}?{urlencode(query)}"


def verify(
    secrets: Sequence[bytes], image_id: str, tenant: str, key_id: str, expires: int, signature: str, *, now: float
) -> bool:
    """Whether a link is genuine under one of the secrets and has not expired; compared in constant time."""
    made = [sign(secret, image_id, tenant, key_id, expires).encode() for secret in secrets]
    genuine = [hmac.compare_digest(one, signature.encode()) for one in made]
    return any(genuine) and now < expires
