"""Finds a secret in whatever a run leaves behind, however it is written there."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from urllib.parse import quote, quote_plus


def spellings(secret: bytes) -> set[bytes]:
    """A secret as it is, in hexadecimal, in base64 at any place of a text, URL-encoded, and as JSON writes it."""
    found = {secret, secret.hex().encode(), secret.hex().upper().encode()}
    found |= {quote(secret, safe="").encode(), quote_plus(secret).encode()}
    found.add(json.dumps(secret.decode("utf-8", "replace"))[1:-1].encode())
    for before in range(3):
        whole = base64.b64encode(bytes(before) + secret + bytes(2))
        # The first and last characters hang on the neighbours.
        inner = whole[-(-before * 4 // 3) : (before + len(secret)) * 4 // 3]
        found |= {inner, inner.replace(b"+", b"-").replace(b"/", b"_")}
    return found


def hits(places: Iterable[tuple[str, bytes]], secrets: Mapping[str, bytes]) -> list[str]:
    """Which secret is in which place."""
    wanted = {name: spellings(secret) for name, secret in secrets.items()}
    return [
        f"the {name} is in {place}"
        for place, text in places
        for name, written in wanted.items()
        if any(one in text for one in written)
    ]


def files(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Every file under a folder, its name included in what is searched."""
    for path in sorted(folder.rglob("*")):
        yield f"the name {path.relative_to(folder)}", str(path.relative_to(folder)).encode()
        if path.is_file() and not path.is_symlink():
            yield str(path.relative_to(folder)), path.read_bytes()
