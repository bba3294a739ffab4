"""What one request asks of Redis, counted on the wire while one is made."""

from __future__ import annotations

import operator
import time
from collections import Counter
from functools import reduce

from .stand import Stand, Target

PROBES = 5  # what other things do meanwhile, such as a heartbeat, is not in all of them
SETTLE = 0.2  # seconds for what a request asks after its answer


def commands(stand: Stand, target: Target) -> Counter[str]:
    """Commands of one warm request by name; those that scripts run are part of their script."""
    return reduce(operator.and_, (_one(stand, target) for _ in range(PROBES)))


def _one(stand: Stand, target: Target) -> Counter[str]:
    seen: Counter[str] = Counter()
    client = stand.fleet.redis
    client.ping()  # connected before anything is counted
    with stand.fleet.redis.monitor() as monitor:
        taken = stand.load(target, stand.seeds(1), 1)
        if taken.failed:
            raise RuntimeError(f"a request failed: {dict(taken.failed)}")
        time.sleep(SETTLE)
        client.echo("over")
        while (found := monitor.next_command())["command"] != "ECHO over":
            if found["client_type"] != "lua":
                seen[found["command"].split(" ", 1)[0].upper()] += 1
    return seen
