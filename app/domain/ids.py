"""Ids that the gateway makes: sortable by time, unguessable, safe in URLs and logs."""

from __future__ import annotations

import re
import secrets
import time
import uuid

_ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"  # Crockford base 32, as in the ULID specification
_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")
_PAIRS = [first + second for first in _ALPHABET for second in _ALPHABET]


def ulid() -> str:
    """26 characters: 48 bits of Unix milliseconds, then 80 random bits."""
    return _spelled((time.time_ns() // 1_000_000 << 80) | secrets.randbits(80))


def job_id() -> str:
    """Id of one job: six of its random bits are those by which a version 4 UUID is known, so that it is one, too."""
    return job_of(as_uuid("job_" + ulid()))


def request_id() -> str:
    """Id of one request."""
    return "req_" + ulid()


def as_uuid(name: str) -> str:
    """The id of a job or request as a version 4 UUID: the id itself, written otherwise, where it is a job's."""
    number = 0
    for letter in name.rpartition("_")[2]:
        number = number << 5 | _ALPHABET.index(letter)
    return str(uuid.UUID(int=number, version=4))


def job_of(text: str) -> str:
    """The id of the job that a UUID stands for; empty where it can be none's."""
    if not _UUID.fullmatch(text):
        return ""
    return "job_" + _spelled(uuid.UUID(text).int)


def _spelled(number: int) -> str:
    return "".join([_PAIRS[number >> shift & 1023] for shift in range(120, -1, -10)])
