"""The whole key schema of both Redis roles, and every time-to-live, in one file.

Keys of one tenant share the hash tag {t:<tenant>}, so one script may touch them on a cluster; the upstream's shared
state is under {up}, the ledger's own identity under {ledger}, a shared cache pool's flights under {pool:<name>}.
Tenant ids come from the configuration and are plain; whatever a caller writes (an end user's name) is hashed before
it becomes part of a key.
"""

from __future__ import annotations

import hashlib

LEASE_MS = 10_000  # how long a process may be silent before its holds are reaped
TOMBSTONE_MS = 48 * 3_600_000  # a finished reservation stays known for longer than any retry can take
WINDOW_KEEP_S = 35 * 86_400  # a window stays readable after its end, for late settlements and reports
FLIGHT_MS = 15 * 60_000  # longer than any deadline
LANDED_MS = 60_000  # a finished flight stays visible for callers that looked into the cache just before
USAGE_KEEP_S = 400 * 86_400  # a day's roll-up, counted from its start
RECENT, RECENT_MS = 100, 48 * 3_600_000  # how many jobs of a key are listed, and for how long
IDEMPOTENCY_MS = 24 * 3_600_000  # how long a name stands for its call, from its end on
CLAIM_S = 600  # how long a result that must not be reused waits for those it was made for

ROOT = "kg:{ledger}"
TENANTS = "kg:{ledger}:tenants"
LEASES = "kg:{up}:leases"
HELD = "kg:{up}:held"
WANTED = "kg:{up}:wanted"
GATES = "kg:{up}:gates"


def token(digest: str) -> str:
    """String: which tenant and key a token digest belongs to, as "<tenant>/<key id>"."""
    return f"kg:token:{digest}"


def ledger(tenant: str) -> str:
    """Hash: epoch (the ledger's id), seq (raised by every money script), w:<per> (the open window's start,end)."""
    return f"kg:{{t:{tenant}}}:ledger"


def key(tenant: str, key_id: str) -> str:
    """Hash: name, created, expires, revoked (Unix ms), policy (JSON), version, d:<token digest> -> expiry in ms or
    0."""
    return f"kg:{{t:{tenant}}}:key:{key_id}"


def key_ids(tenant: str) -> str:
    """Set of a tenant's key ids."""
    return f"kg:{{t:{tenant}}}:keys"


def rate(tenant: str, level: str, subject: str) -> str:
    """String: GCRA's theoretical arrival time in microseconds; expires when the limit is at rest."""
    return f"kg:{{t:{tenant}}}:rate:{level}:{subject}"


def concurrency(tenant: str, level: str, subject: str) -> str:
    """Set of the reservation ids that a tenant, key or user has outstanding."""
    return f"kg:{{t:{tenant}}}:conc:{level}:{subject}"


def window(tenant: str, level: str, subject: str, kind: str, per: str, start: int) -> str:
    """Hash: spent and reserved, in micro-dollars (kind usd) or images (kind img), of one calendar window."""
    return f"kg:{{t:{tenant}}}:win:{level}:{subject}:{kind}:{per}:{start}"


def reservation(tenant: str, reservation_id: str) -> str:
    """Hash: one reservation; expires TOMBSTONE_MS after it was settled or refunded."""
    return f"kg:{{t:{tenant}}}:res:{reservation_id}"


def outstanding(tenant: str) -> str:
    """Sorted set: ids of reservations that are RESERVED or DISPATCHING, by creation time in ms."""
    return f"kg:{{t:{tenant}}}:open"


def ambiguous(tenant: str) -> str:
    """Sorted set: ids of reservations whose outcome is unknown, by the time they became so."""
    return f"kg:{{t:{tenant}}}:ambiguous"


def rows(tenant: str) -> str:
    """Stream: the append-only ledger; the sum of `delta` equals the spent dollars. Never trimmed."""
    return f"kg:{{t:{tenant}}}:rows"


def usage(tenant: str, day: int) -> str:
    """Hash: the roll-up of one local day, by its start in Unix seconds: date, and "<measure>\\x1f<group>" -> integer.

    A group is key id, end user, tags, variant and operation as the tenant sent them (`app.domain.usage`).
    """
    return f"kg:{{t:{tenant}}}:use:{day}"


def days(tenant: str) -> str:
    """Sorted set: starts of the days that have a roll-up."""
    return f"kg:{{t:{tenant}}}:days"


def jobs(tenant: str, key_id: str) -> str:
    """Sorted set: ids of a key's last RECENT reservations, by creation time in ms."""
    return f"kg:{{t:{tenant}}}:jobs:{key_id}"


def idempotency(tenant: str, key_id: str, route: str, name: str) -> str:
    """Hash: what became of the call that a key made under a name on a route."""
    return f"kg:{{t:{tenant}}}:idem:{subject(chr(31).join((key_id, route, name)))}"


def flight(scope: str, fingerprint: str) -> str:
    """Hash: one picture in the making; scope is "t:<tenant>" or "pool:<name>"."""
    return f"kg:{{{scope}}}:flight:{fingerprint}"


def result(scope: str, digest: str) -> str:
    """String in the cache Redis: one finished picture with its record."""
    return f"kg:{{{scope}}}:result:{digest}"


def subject(user: str) -> str:
    """An end user's name as a part of a key."""
    return hashlib.blake2b(user.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
