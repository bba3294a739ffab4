"""A name server that hangs delays the webhooks that need it, and nothing else."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import uvloop

from app.jobs.address import parse
from app.jobs.lookups import AT_ONCE, OF_A_TENANT, Lookups
from app.jobs.post import post


class NameServer:
    """Names that begin with `slow` are answered when they are let go; others are nobody's."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.let_go = threading.Event()

    def getaddrinfo(self, host: str, port: int, **_: Any) -> list[Any]:
        """In the place of the system's."""
        self.asked.append(host)
        if host.startswith("slow"):
            self.let_go.wait(20)
        raise socket.gaierror(socket.EAI_NONAME, "no such name")


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Iterator[NameServer]:
    found = NameServer()
    monkeypatch.setattr(socket, "getaddrinfo", found.getaddrinfo)
    yield found
    found.let_go.set()


async def _look(lookups: Lookups, tenant: str, host: str, seconds: float) -> str:
    try:
        await asyncio.wait_for(lookups.of(tenant)(host, 443), seconds)
    except TimeoutError:
        return "timeout"
    except OSError:
        return "no such name"
    return "found"


@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def test_a_tenant_whose_names_hang_has_few_places_until_its_threads_return(names: NameServer, loop: Any) -> None:
    async def story() -> None:
        lookups = Lookups()
        late = await asyncio.gather(*(_look(lookups, "acme", f"slow{n}.example", 0.2) for n in range(OF_A_TENANT * 2)))
        assert set(late) == {"timeout"}
        assert await _look(lookups, "acme", "quick.example", 0.2) == "timeout"  # given up, and busy all the same
        assert len(names.asked) == OF_A_TENANT
        assert await _look(lookups, "other", "quick.example", 10) == "no such name"
        names.let_go.set()
        assert await _look(lookups, "acme", "quick.example", 10) == "no such name"

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(story())


def test_all_tenants_together_have_few_places(names: NameServer) -> None:
    async def story() -> None:
        lookups = Lookups()
        tenants = [f"t{n}" for n in range(AT_ONCE)]
        late = await asyncio.gather(
            *(_look(lookups, tenant, f"slow{n}.example", 0.3) for tenant in tenants for n in range(OF_A_TENANT))
        )
        assert set(late) == {"timeout"}
        assert len(names.asked) == AT_ONCE
        names.let_go.set()
        assert await _look(lookups, "another", "quick.example", 10) == "no such name"

    asyncio.run(story())


def test_an_attempt_that_gets_no_place_ends_as_a_timeout(names: NameServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.jobs.post.SECONDS", 0.3)

    async def story() -> str:
        return await post(parse("https://slow.example/"), {}, b"{}", lookup=Lookups().of("acme"))

    assert asyncio.run(story()) == "timeout"


def test_the_system_s_pools_of_threads_stay_free_and_a_process_ends_while_a_name_hangs() -> None:
    """Under uvloop the upstream is resolved in a pool of four threads, and without it in the default executor."""
    program = """
import asyncio, socket, sys, time, uvloop
system = socket.getaddrinfo
socket.getaddrinfo = lambda host, *a, **k: time.sleep(60) if "slow" in str(host) else system(host, *a, **k)
from app.jobs.lookups import Lookups
async def story():
    lookups = Lookups()
    tasks = [asyncio.create_task(lookups.of(str(n))(f"slow{n}.example", 443)) for n in range(8)]
    await asyncio.sleep(0.1)
    await asyncio.get_running_loop().getaddrinfo("localhost", 80)
    await asyncio.get_running_loop().run_in_executor(None, print, "free")
for factory in (asyncio.new_event_loop, uvloop.new_event_loop):
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(story())
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "free\nfree\n", "")
