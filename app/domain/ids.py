"""Ids that the gateway makes: sortable by time, unguessable, safe in URLs and logs."""

from __future__ import annotations

import secrets
import time

_ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"  # Crockford base 32, as in the ULID specification


def ulid() -> str:
    """26 characters: 48 bits of Unix milliseconds, then 80 random bits."""
    number = (time.time_ns() // 1_000_000 << 80) | secrets.randbits(80)
    return "".join(_ALPHABET[number >> shift & 31] for shift in range(125, -1, -5))


def job_id() -> str:
    """Id of one job."""
    return "job_" + ulid()


def request_id() -> str:
    """Id of one request."""
    return "req_" + ulid()
