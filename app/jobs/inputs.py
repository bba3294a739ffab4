"""What was asked of queued jobs, in the ledger's Redis, sealed, in pieces and with an expiry: their ticket and uploads,
and what their surface says again.

Written by `intake` before any money is held, read by the worker when a job's turn has come, and removed by the script
that ends the job. When Redis is away, `LedgerUnavailable` is raised. Key: `keys.inputs`.
"""

from __future__ import annotations

from collections.abc import Mapping

from app.domain.upload import Upload
from app.store import keys
from app.store.redis import Store, script
from app.store.seal import Seal

KEEP = script("app.jobs", "keep")
PIECE = 512 * 1024  # bytes of one command: other commands go between them
WRITING_MS = 30_000  # from one piece to the next: what nobody goes on with does not take up room for as long as a job


async def keep(
    store: Store,
    seal: Seal,
    tenant: str,
    job_id: str,
    ticket: bytes,
    uploads: Mapping[str, Upload],
    ms: int,
    echo: bytes = b"",
) -> None:
    """Store them for at most so many ms; the ticket last, with which they are whole. Raises LedgerUnavailable."""
    key = keys.inputs(tenant, job_id)
    for name, upload in uploads.items():
        view = memoryview(upload.data)
        for number, at in enumerate(range(0, upload.size, PIECE)):
            piece = f"{name}:{number}"
            kept = seal.close(f"{key}:{piece}", view[at : at + PIECE])
            await store.run(KEEP, [key], [min(ms, WRITING_MS), piece, kept])
    beside = ("echo", seal.close(_echo(tenant, job_id), echo)) if echo else ()
    await store.run(KEEP, [key], [ms, "ticket", seal.close(f"{key}:ticket", ticket), *beside])


def ticket_of(seal: Seal, tenant: str, job_id: str, value: bytes) -> bytes:
    """The ticket in its stored value; empty where it is gone or damaged."""
    return seal.open(f"{keys.inputs(tenant, job_id)}:ticket", value) or b""


def echo_of(seal: Seal, tenant: str, job_id: str, value: bytes) -> bytes:
    """What a job's surface says of it again, in its stored value; empty where there is none."""
    return seal.open(_echo(tenant, job_id), value) or b""


def _echo(tenant: str, job_id: str) -> str:
    """The name that it is sealed under: it moves into the job's record when the job ends."""
    return f"{keys.job(tenant, job_id)}:echo"


async def load(
    store: Store, seal: Seal, tenant: str, job_id: str, sizes: Mapping[str, int]
) -> dict[str, Upload] | None:
    """The uploads again; None where they are not whole. Raises LedgerUnavailable."""
    key, found = keys.inputs(tenant, job_id), {}
    for name, size in sizes.items():
        pieces = []
        for number in range(-(-size // PIECE)):
            piece = f"{name}:{number}"
            pieces.append(seal.open(f"{key}:{piece}", await store.command("HGET", key, piece) or b"") or b"")
        found[name] = Upload(b"".join(pieces))
        if found[name].size != size:
            return None
    return found
