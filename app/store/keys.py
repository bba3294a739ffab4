"""The whole key schema of both Redis roles, and every time-to-live, in one file.

Keys of one tenant share the hash tag {t:<tenant>}, so one script may touch them on a cluster; the upstream's shared
state is under {up}, the ledger's own identity under {ledger}, a shared cache pool's flights under {pool:<name>}.
Tenant ids come from the configuration and are plain; whatever a caller writes (an end user's name) is hashed before
it becomes part of a key.
"""

from __future__ import annotations

import hashlib
from typing import Literal

LEASE_MS = 10_000  # how long a process may be silent before its holds are reaped
TOMBSTONE_MS = 48 * 3_600_000  # a finished reservation stays known for longer than any retry can take
WINDOW_KEEP_S = 35 * 86_400  # a window stays readable after its end, for late settlements and reports
FLIGHT_MS = 15 * 60_000  # longer than any deadline
LANDED_MS = 60_000  # a finished flight stays visible for callers that looked into the cache just before
USAGE_KEEP_S = 400 * 86_400  # a day's roll-up, counted from its start
RECENT, RECENT_MS = 100, 48 * 3_600_000  # how many jobs of a key are listed, and for how long
IDEMPOTENCY_MS = 24 * 3_600_000  # how long a name stands for its call, from its end on
JOB_MS = 24 * 3_600_000  # how long an asynchronous job is told of, from its end on
HOOK_MS = 7 * 86_400_000  # how long a webhook that was delivered, or given up, can be sent again
CLIENT_KEEP_S = 3600  # how long the counters of a client token outlive it, for jobs that still run
CLAIM_S = 600  # how long a result that must not be reused waits for those it was made for

ROOT = "kg:{ledger}"
TENANTS = "kg:{ledger}:tenants"
QUEUES = "kg:{ledger}:queues"  # set of the tenants that ever queued a job
LEASES = "kg:{up}:leases"
HELD = "kg:{up}:held"
WANTED = "kg:{up}:wanted"
GATES = "kg:{up}:gates"


def token(digest: str) -> str:
    """String: which tenant and key a key's digest belongs to, as "<tenant>/<key id>"; of a client token's, what it is
    bound to, as JSON, expiring with it."""
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
    """Hash: spent and reserved, in micro-dollars (kind usd) or images (kind img), of one calendar window, or of a
    client token's life."""
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


def jobs(tenant: str, holder: str) -> str:
    """Sorted set: ids of the last RECENT reservations of a key or client token, by creation time in ms."""
    return f"kg:{{t:{tenant}}}:jobs:{holder}"


def queue(tenant: str) -> str:
    """Stream of a tenant's asynchronous jobs that have not ended, with one group of workers."""
    return f"kg:{{t:{tenant}}}:queue"


def waiting(tenant: str) -> str:
    """Sorted set: ids of queued jobs that no worker has seated, by the time in ms at which they were queued."""
    return f"kg:{{t:{tenant}}}:waiting"


def queued_bytes(tenant: str) -> str:
    """String: bytes that a tenant's jobs hold until they end."""
    return f"kg:{{t:{tenant}}}:queued-bytes"


def job(tenant: str, job_id: str) -> str:
    """Hash: an asynchronous job: state, who works on it, what it came to (sealed); no content while it is queued,
    when it stays; expires before that, and from its end on."""
    return f"kg:{{t:{tenant}}}:job:{job_id}"


def inputs(tenant: str, job_id: str) -> str:
    """Hash: what is asked of a job that has not ended: ticket, uploads in pieces "<input>:<number>", and echo, what its
    surface says again, each sealed; expires."""
    return f"kg:{{t:{tenant}}}:in:{job_id}"


def hook_secrets(tenant: str) -> str:
    """Hash: salts of a tenant's webhook secrets: current, previous, and until when (Unix s) that one signs too."""
    return f"kg:{{t:{tenant}}}:hook-salts"


def hooks(tenant: str, state: str) -> str:
    """Sorted set of webhook ids: `due` by when they are sent next, `done` and `dead` by when they became so, in ms."""
    return f"kg:{{t:{tenant}}}:hooks:{state}"


def hook(tenant: str, hook_id: str) -> str:
    """Hash: one webhook: url (sealed), type, body, job, attempts, last (how the last attempt went); expires HOOK_MS
    after its end."""
    return f"kg:{{t:{tenant}}}:hook:{hook_id}"


def idempotency(tenant: str, holder: str, route: str, name: str) -> str:
    """Hash: what became of the call that a key or client token made under a name on a route; its answer is sealed."""
    return f"kg:{{t:{tenant}}}:idem:{subject(chr(31).join((holder, route, name)))}"


def flight(scope: str, fingerprint: str) -> str:
    """Hash: one picture in the making; scope is "t:<tenant>" or "pool:<name>"."""
    return f"kg:{{{scope}}}:flight:{fingerprint}"


def result(scope: str, digest: str) -> str:
    """String in the cache Redis: one finished picture, sealed, behind its record."""
    return f"kg:{{{scope}}}:result:{digest}"


def lineage(tenant: str, image_id: str) -> str:
    """String: how a picture of a tenant came to be, as JSON; expires."""
    return f"kg:{{t:{tenant}}}:line:{image_id}"


def subject(user: str) -> str:
    """An end user's name as a part of a key."""
    return hashlib.blake2b(user.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def every(kind: Literal["result", "line", "idem", "in", "job", "hook"], tenant: str) -> str:
    """Pattern of all keys of one kind of a tenant, whose id is plain; for commands, never in a request's path."""
    return f"kg:{{t:{tenant}}}:{kind}:*"
