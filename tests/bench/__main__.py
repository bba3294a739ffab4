"""`python -m tests.bench`: the gateway's cost beside references, measured side by side in one run.

Starts everything itself on loopback, prints what it ran under and one table after the other. On a noisy machine only
the ratios mean something.
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

from . import forward, hits, nginx, replicas, waiting
from .stand import SETTINGS, Stand, stand
from .table import Table

FILES = 20_000  # sockets and spool files of 3,000 jobs, with room
PACKAGES = ("kontext-gateway", "fastapi", "uvicorn", "httpx2", "aiohttp", "redis")


def parser() -> argparse.ArgumentParser:
    """The options, each within its bounds."""

    def bounded(least: int, most: int) -> Callable[[str], int]:
        def count(text: str) -> int:
            if not least <= int(text) <= most:
                raise argparse.ArgumentTypeError(f"must be {least} to {most}")
            return int(text)

        return count

    def tables(text: str) -> list[str]:
        names = text.split(",")
        if unknown := set(names) - set("abcd"):
            raise argparse.ArgumentTypeError(f"there is no table {', '.join(sorted(unknown))}")
        return names

    made = argparse.ArgumentParser(prog="python -m tests.bench", description="Measure the gateway beside references.")
    made.add_argument("--only", type=tables, default="a,b,c,d", help="tables, such as a,c (default: all)")
    made.add_argument("--rounds", type=bounded(1, 50), default=5, help="rounds that count (default: 5)")
    made.add_argument("--requests", type=bounded(1, 5000), default=300, help="requests of one round (default: 300)")
    made.add_argument("--quick", action="store_true", help="one round of 60 requests, 100 and 300 jobs in flight")
    made.add_argument("--peers", type=Path, metavar="DIR", help="also LiteLLM and Portkey, installed into DIR")
    return made


def configuration(running: Stand, options: argparse.Namespace) -> str:
    """What a figure depends on."""
    server = running.fleet.redis.info("server")
    fsync = running.fleet.redis.config_get("appendfsync")["appendfsync"]
    return "\n".join(
        (
            f"Python {platform.python_version()}, {', '.join(f'{name} {version(name)}' for name in PACKAGES)}",
            f"Valkey {server.get('valkey_version', server['redis_version'])}, append-only file, fsync {fsync}; "
            f"nginx {nginx.version()}; {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the start",
            "Gateway: key check, rate, images, concurrency and budgets of the tenant on, cache on, metrics on; "
            + ", ".join(f"{name}={value}" for name, value in SETTINGS.items()),
            f"Rounds: {options.rounds} of {options.requests} requests each, medians; replies of 200 KB, each different",
            "",
        )
    )


def main() -> None:
    """Run the tables that were asked for."""
    options = parser().parse_args()
    if options.quick:
        options.rounds, options.requests = 1, 60
    levels, counts = (1, 16, 64), {"rounds": options.rounds, "requests": options.requests}
    jobs = (100, 300) if options.quick else (1000, 3000)
    tables: dict[str, Callable[[Stand], Table]] = {
        "a": lambda on: forward.measure(on, levels=levels, peers_in=options.peers, **counts),
        "b": lambda on: hits.measure(on, levels=levels, **counts),
        "c": lambda on: waiting.measure(on, jobs=jobs),
        "d": lambda on: replicas.measure(on, rate=40, **counts),
    }
    if "c" in options.only:
        _more_files()
    for number, name in enumerate(options.only):
        with stand(replicas=3 if name == "d" else 1) as running:
            if number == 0:
                print(configuration(running, options))
            print(tables[name](running), flush=True)


def _more_files() -> None:
    """Let the servers open as many files as table c needs; they inherit it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < FILES:
        sys.exit(f"the limit of open files is {hard}, and {FILES} are needed: raise it with `ulimit -Hn {FILES}`")
    if soft < FILES:
        resource.setrlimit(resource.RLIMIT_NOFILE, (FILES, hard))


if __name__ == "__main__":
    main()
