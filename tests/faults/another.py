"""`python -m tests.faults.another serve`: the gateway as a replica of another version is to its neighbours, as far as
scripts go. Every script has another text, and so another name in Redis; what they do is the same."""

from __future__ import annotations

import hashlib
from dataclasses import replace

from app.store import redis
from app.store.redis import Script

shipped = redis.script


def another(package: str, name: str) -> Script:
    """A script of this version with a comment at its end."""
    found = shipped(package, name)
    text = found.text + "-- of another version\n"
    return replace(found, text=text, sha=hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())


if __name__ == "__main__":
    redis.script = another  # before the modules are imported that read theirs
    from app.__main__ import main

    main()
