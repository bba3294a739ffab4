"""`python -m tests.bench`: CPU per request and added latency of the gateway beside a bare pass-through, in one run.

Starts everything itself on loopback: a canned 200 KB upstream without delay, a Valkey with an append-only file, the
gateway with key, limits, budget and cache on and distinct seeds, and two bare FastAPI pass-throughs. Rounds
alternate, and figures are medians over rounds; on a noisy machine only the ratios mean something.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import aiohttp

from tests.fleet import ROOT, fleet, free_port, wait_until

TENANTS = """
version: 1
tenants:
  bench:
    limits:
      requests: {rate: 1000000/1m, burst: 1000000}
      images: [{max: 100000000, per: day}]
      concurrency: 1000
      budgets: [{usd: "1000000.00", per: day}, {usd: "10000000.00", per: month}]
"""
TICK = os.sysconf("SC_CLK_TCK")


def cpu(pid: int) -> float:
    """User and system seconds of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICK


async def load(url: str, key: str, requests: int, concurrency: int, seed: int) -> list[float]:
    """Latencies in seconds of `requests` generate calls with distinct seeds."""
    taken: list[float] = []
    numbers = iter(range(requests))

    async def worker(session: aiohttp.ClientSession) -> None:
        for number in numbers:
            began = time.perf_counter()
            async with session.post(
                url + "/v1/generate",
                json={"prompt": "a lighthouse at dawn", "seed": seed + number},
                headers={"Authorization": f"Bearer {key}"},
            ) as answer:
                await answer.read()
                if answer.status != 200:
                    raise RuntimeError(f"{answer.status}")
            taken.append(time.perf_counter() - began)

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        await asyncio.gather(*(worker(session) for _ in range(concurrency)))
    return taken


def serve(module: str, **environment: str) -> tuple[subprocess.Popen[bytes], str]:
    """A uvicorn process like the gateway's own."""
    port = free_port()
    command = [sys.executable, "-m", "uvicorn", module, "--port", str(port), "--no-access-log", "--log-level", "error"]
    return subprocess.Popen(command, cwd=ROOT, env=os.environ | environment), f"http://127.0.0.1:{port}"


def main() -> None:
    """Run and print the table."""
    rounds, requests = int(os.environ.get("BENCH_ROUNDS", "5")), int(os.environ.get("BENCH_REQUESTS", "400"))
    upstream, upstream_url = serve("tests.bench.upstream:app")
    pool, pool_url = serve("tests.bench.bare:app", BENCH_UPSTREAM=upstream_url, BENCH_TRANSPORT="pool")
    bare, bare_url = serve("tests.bench.bare:app", BENCH_UPSTREAM=upstream_url, BENCH_TRANSPORT="aiohttp")
    try:
        with (
            tempfile.TemporaryDirectory() as folder,
            fleet(
                Path(folder), TENANTS, PRODIA_BASE_URL=upstream_url + "/v2", GATEWAY_UPSTREAM_CONCURRENCY="1000",
                GATEWAY_REDIS_TIMEOUT="1s",
            ) as running,
        ):  # fmt: skip
            gateway, key = running.replicas[0], running.key("bench")
            redis_pid = int(running.redis.info("server")["process_id"])
            targets = {
                "bare, httpx2 pool": (pool.pid, pool_url),
                "bare, aiohttp": (bare.pid, bare_url),
                "gateway": (gateway.process.pid, gateway.url),
            }
            wait_until(lambda: all(_listens(url) for _, url in targets.values()), 20)
            print(f"{rounds} rounds of {requests} requests, 200 KB replies; medians; ratios to the bare httpx2 pool")
            print(
                f"{'':22}{'in flight':>10}{'CPU ms':>9}{'ratio':>7}{'p50 ms':>9}{'ratio':>7}"
                f"{'p99 ms':>9}{'Redis CPU ms':>14}"
            )
            for concurrency in (1, 16, 64):
                table: dict[str, list[tuple[float, float, float, float]]] = {name: [] for name in targets}
                for turn in range(rounds + 1):
                    for name, (pid, url) in targets.items():
                        before, redis_before = cpu(pid), cpu(redis_pid)
                        seed = (turn * 3 + concurrency * 1000) * 1_000_000
                        taken = sorted(asyncio.run(load(url, key, requests, concurrency, seed)))
                        used = (cpu(pid) - before) / requests * 1000
                        redis_used = (cpu(redis_pid) - redis_before) / requests * 1000
                        if turn:  # the first round warms up
                            table[name].append(
                                (
                                    used,
                                    statistics.median(taken) * 1000,
                                    taken[int(len(taken) * 0.99)] * 1000,
                                    redis_used,
                                )
                            )
                base = [statistics.median(column) for column in zip(*table["bare, httpx2 pool"], strict=True)]
                for name, samples in table.items():
                    used, p50, p99, redis_used = (statistics.median(column) for column in zip(*samples, strict=True))
                    print(
                        f"{name:22}{concurrency:>10}{used:>9.2f}{used / base[0]:>7.2f}{p50:>9.2f}{p50 / base[1]:>7.2f}"
                        f"{p99:>9.2f}{redis_used if name == 'gateway' else 0:>14.2f}"
                    )
    finally:
        for process in (upstream, pool, bare):
            process.terminate()
            process.wait()


def _listens(url: str) -> bool:
    import socket

    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", int(url.rsplit(":", 1)[1]))) == 0


if __name__ == "__main__":
    main()
