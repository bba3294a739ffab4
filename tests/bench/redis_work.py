"""What a request asks of Redis, counted on the wire while some are made one after the other."""

from __future__ import annotations

from collections import Counter

from .stand import Stand, Target

REQUESTS = 20  # what other things do meanwhile, such as a heartbeat, is less than one for each


def commands(stand: Stand, target: Target) -> Counter[str]:
    """Commands of a warm request by name, to the nearest whole; those that scripts run are part of their script."""
    seen: Counter[str] = Counter()
    client = stand.fleet.redis
    client.ping()  # connected before anything is counted
    with stand.fleet.redis.monitor() as monitor:
        taken = stand.load(target, stand.seeds(REQUESTS), 1)
        if taken.failed:
            raise RuntimeError(f"a request failed: {dict(taken.failed)}")
        client.echo("over")
        while (found := monitor.next_command())["command"] != "ECHO over":
            if found["client_type"] != "lua":
                seen[found["command"].split(" ", 1)[0].upper()] += 1
    return Counter({name: each for name, count in seen.items() if (each := round(count / REQUESTS))})
