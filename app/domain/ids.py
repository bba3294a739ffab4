"""Ids that the gateway makes: sortable by time, unguessable, safe in URLs and logs."""

from __future__ import annotations

import secrets
import time

_ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"  # Crockford base 32, as in the ULID specification
_PAIRS = [first + second for first in _ALPHABET for second in _ALPHABET]


def ulid() -> str:
    """26 characters: 48 bits of Unix milliseconds, then 80 random bits."""
    number = (time.time_ns() // 1_000_000 << 80) | secrets.randbits(80)
    return "".join([_PAIRS[number >> shift & 1023] for shift in range(120, -1, -10)])


def job_id() -> str:
    """Id of one job."""
    return "job_" + ulid()


def request_id() -> str:
    """Id of one request."""
    return "req_" + ulid()
