"""Table c: many edits in flight at once, each with an upload of 1 MB, at an upstream that takes seconds. What does a
waiting job hold, and how late is its answer beyond the upstream's time?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from tests.fleet import Replica

from . import meter, picture
from .load import Load, edit
from .stand import Stand
from .table import Figure, Table


def measure(stand: Stand, *, jobs: Sequence[int], seconds: float = 6.0, arrivals: float = 4.0) -> Table:
    """One row for each number of jobs, on a gateway process of its own that has just been warmed up."""
    table = Table(f"c. Edits in flight: {seconds:g} s upstream, uploads of 1 MB, arrivals over {arrivals:g} s")
    for count in jobs:
        replica = stand.fleet.start(PRODIA_BASE_URL=f"{stand.upstream}/after/{seconds:g}/v2")
        row, failed = _row(stand, replica, count, seconds, arrivals)
        table.rows.append(row)
        table.failed += failed
        replica.stop()
        stand.fleet.replicas.remove(replica)
    table.notes.append("Memory per job: peak RSS of the gateway's processes and the peak of its spool, above idle.")
    return table


def _row(
    stand: Stand, replica: Replica, count: int, seconds: float, arrivals: float
) -> tuple[dict[str, Figure], Counter[str]]:
    body, pids, urls = edit(picture.upload()), (replica.process.pid,), (replica.url + "/v1/edit",)
    warm = stand.generator.run(
        Load(urls=urls, seeds=stand.seeds(10), headers=stand.headers, body=body, concurrency=10)
    )  # fmt: skip
    before, valkey = meter.cpu(pids), meter.cpu([stand.valkey])
    with meter.Watch(pids, stand.folder / "data" / "spool") as watch:
        taken = stand.generator.run(
            Load(urls=urls, seeds=stand.seeds(count), headers=stand.headers, body=body, arrivals=arrivals)
        )
    failed = taken.failed + warm.failed
    row: dict[str, Figure] = {
        "": "gateway",
        "jobs": count,
        "most at once": taken.most,
        "failed": failed.total(),
        "p50 added ms": (taken.p50 - seconds) * 1000,
        "p99 added ms": (taken.p99 - seconds) * 1000,
        "idle MB": watch.idle / 1e6,
        "RSS KB/job": (watch.memory - watch.idle) / count / 1000,
        "spool KB/job": watch.spool / count / 1000,
        "KB/job": (watch.memory + watch.spool - watch.idle) / count / 1000,
        "CPU ms": (meter.cpu(pids) - before) / count * 1000,
        "Valkey CPU ms": (meter.cpu([stand.valkey]) - valkey) / count * 1000,
    }
    return row, failed
