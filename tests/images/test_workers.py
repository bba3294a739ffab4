"""Decode processes may crash, hang, be killed or be left waiting: one picture is refused, and nothing else notices."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path

import pytest

from app.errors import GatewayError, InvalidImage
from app.images import worker
from app.images.gate import Gate, InputRule, Prepared, inspect
from tests.images.pictures import drawn, encoded, noise, picture

RULE = InputRule()
ROOT = Path(__file__).parents[2]
SMALL = picture("jpeg", 200, 300)


async def prepare(gate: Gate, data: bytes = SMALL) -> Prepared:
    return await gate.prepare(data, inspect(data, RULE), RULE)


@asynccontextmanager
async def opened(workers: int = 1, timeout: float = 20.0) -> AsyncIterator[tuple[Gate, list[int]]]:
    """A gate of its own with all its processes started, and their pids."""
    others = {process.pid for process in multiprocessing.active_children()}
    gate = Gate(workers=workers, timeout=timeout)
    try:
        await asyncio.gather(*(prepare(gate) for _ in range(workers)))
        yield gate, [pid for p in multiprocessing.active_children() if (pid := p.pid) and pid not in others]
    finally:
        await gate.aclose()


def gone(pid: int) -> bool:
    """Whether all threads of the process have ended, even if nobody has waited for it yet."""
    try:
        return ") Z " in Path(f"/proc/{pid}/stat").read_text() and len(os.listdir(f"/proc/{pid}/task")) == 1
    except (FileNotFoundError, ProcessLookupError):
        return True


def ends(pid: int) -> bool:
    """Whether the process ends within ten seconds."""
    deadline = time.monotonic() + 10
    while not gone(pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    return gone(pid)


async def test_no_process_starts_before_a_picture_needs_one() -> None:
    before = multiprocessing.active_children()
    gate = Gate()
    data = picture("png")
    await gate.prepare(data, inspect(data, RULE), RULE)
    assert multiprocessing.active_children() == before
    await gate.aclose()


async def test_a_quiet_gate_uses_one_process_and_ends_it() -> None:
    async with opened() as (gate, pids):
        for _ in range(3):
            await prepare(gate)
        assert len(pids) == 1
        assert not gone(pids[0])
    assert gone(pids[0])


async def test_a_crash_refuses_that_picture_and_no_other() -> None:
    async with opened(workers=2) as (gate, pids):
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        both = [asyncio.create_task(prepare(gate)) for _ in range(2)]
        waiting = [asyncio.create_task(prepare(gate)) for _ in range(3)]
        await asyncio.sleep(0.1)
        os.kill(pids[0], signal.SIGSEGV)
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
        results = await asyncio.gather(*both, *waiting, return_exceptions=True)
        failures = [result for result in results if isinstance(result, BaseException)]
        assert len(failures) == 1
        assert isinstance(failures[0], InvalidImage)
        assert failures[0].code == "invalid_image"
        assert results[2:].count(failures[0]) == 0
        assert (await prepare(gate)).height == 384


async def test_a_process_killed_while_idle_costs_no_picture() -> None:
    async with opened() as (gate, pids):
        os.kill(pids[0], signal.SIGKILL)
        assert await asyncio.to_thread(ends, pids[0])
        assert (await prepare(gate)).height == 384


async def test_a_hanging_decode_is_refused_in_time_and_its_process_killed() -> None:
    async with opened(timeout=1.0) as (gate, pids):
        os.kill(pids[0], signal.SIGSTOP)
        started = time.monotonic()
        with pytest.raises(InvalidImage, match="too long"):
            await prepare(gate)
        assert time.monotonic() - started < 3
        assert await asyncio.to_thread(ends, pids[0])
        assert (await prepare(gate)).height == 384


async def test_a_caller_who_leaves_takes_nobody_along() -> None:
    async with opened(workers=2) as (gate, pids):
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        running = [asyncio.create_task(prepare(gate)) for _ in range(2)]
        waiting = [asyncio.create_task(prepare(gate)) for _ in range(4)]
        await asyncio.sleep(0.1)
        running[0].cancel()
        waiting[0].cancel()
        await asyncio.sleep(0)
        for pid in pids:
            with suppress(ProcessLookupError):  # one of them is being killed
                os.kill(pid, signal.SIGCONT)
        results = await asyncio.gather(*running, *waiting, return_exceptions=True)
        assert [isinstance(result, asyncio.CancelledError) for result in results] == [True, False, True] + [False] * 3
        assert all(isinstance(result, (Prepared, asyncio.CancelledError)) for result in results)


async def test_what_nobody_waits_for_any_more_is_ended() -> None:
    async with opened() as (gate, pids):
        os.kill(pids[0], signal.SIGSTOP)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(prepare(gate), 0.1)
        assert await asyncio.to_thread(ends, pids[0])
        assert (await prepare(gate)).height == 384


async def test_closing_ends_what_is_running_and_what_waits() -> None:
    async with opened() as (gate, pids):
        os.kill(pids[0], signal.SIGSTOP)
        tasks = [asyncio.create_task(prepare(gate)) for _ in range(3)]
        await asyncio.sleep(0.1)
        await gate.aclose()
        for result in await asyncio.gather(*tasks, return_exceptions=True):
            assert isinstance(result, GatewayError)
            assert result.code == "draining"
        assert gone(pids[0])
        await gate.aclose()


async def test_a_process_that_cannot_start_is_not_the_pictures_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "start", partial(os._exit, 3))
    gate = Gate(workers=1)
    with pytest.raises(GatewayError) as caught:
        await prepare(gate)
    assert caught.value.code == "internal"
    monkeypatch.undo()
    assert (await prepare(gate)).height == 384
    await gate.aclose()


async def test_the_loop_stays_free_while_four_large_photos_are_fitted() -> None:
    gate = Gate()
    photo = encoded(noise(800, 600).resize((4000, 3000)), "jpeg", quality=92)
    graphic = encoded(drawn(4000, 3000), "png", compress_level=1)
    gaps: list[float] = []

    async def tick() -> None:
        last = time.perf_counter()
        while True:
            await asyncio.sleep(0.005)
            now = time.perf_counter()
            gaps.append(now - last - 0.005)
            last = now

    ticking = asyncio.create_task(tick())
    results = await asyncio.gather(*(prepare(gate, data) for data in (photo, graphic, photo, graphic)))
    ticking.cancel()
    await gate.aclose()
    assert {result.height for result in results} == {1440}
    assert len(gaps) > 10
    assert max(gaps) < 0.25


SCRIPT = """
import asyncio, multiprocessing, sys
from app.images.gate import Gate, InputRule, inspect

async def main():
    gate, rule = Gate(workers=1), InputRule()
    data = bytes.fromhex(sys.stdin.readline())
    result = await gate.prepare(data, inspect(data, rule), rule)
    print(result.height, multiprocessing.active_children()[0].pid, flush=True)
    await asyncio.sleep(60)

if __name__ == "__main__":
    asyncio.run(main())
"""


@pytest.mark.parametrize("started", ["as a module", "as a script"])
def test_processes_work_however_the_gateway_is_started_and_end_when_it_is_killed(tmp_path: Path, started: str) -> None:
    package = tmp_path / "started"
    package.mkdir()
    (package / "__main__.py").write_text(SCRIPT)
    (package / "script.py").write_text(SCRIPT)
    how = ["-m", "started"] if started == "as a module" else [str(package / "script.py")]
    with subprocess.Popen(
        [sys.executable, *how],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as parent:
        assert parent.stdin is not None
        assert parent.stdout is not None
        parent.stdin.write(SMALL.hex() + "\n")
        parent.stdin.flush()
        height, pid = parent.stdout.readline().split()
        assert height == "384"
        assert not gone(int(pid))
        parent.kill()
    assert ends(int(pid))


LIMITS = """
import resource, sys
from app.images import worker
data = bytes.fromhex(sys.stdin.readline())
worker.start()
worker._CPU_SECONDS = 1
made = worker.conform(data, (256, 384), 10_000_000, ("png", "jpeg", "webp"))
assert made.format == "jpeg"
assert resource.getrlimit(resource.RLIMIT_DATA)[0] == 1_500_000_000
assert resource.getrlimit(resource.RLIMIT_CORE) == (0, 0)
assert 1 <= resource.getrlimit(resource.RLIMIT_CPU)[0] <= 4
assert not [name for name in sys.modules if name.startswith("app.") and not name.startswith("app.images")]
plugins = {name for name in sys.modules if name.startswith("PIL.") and name.endswith("Plugin")}
print(*sorted(plugins - {f"PIL.{name}ImagePlugin" for name in ("Bmp", "Gif", "Ppm", "Png", "Jpeg", "WebP")}))
try:
    worker.conform(data, (20_000, 20_000), 10_000_000, ("png", "jpeg", "webp"))
except ValueError as refused:
    print(refused)
while True:
    pass
"""


def test_a_process_has_limits_and_only_the_plugins_it_needs() -> None:
    run = subprocess.run(
        [sys.executable, "-c", LIMITS],
        cwd=ROOT,
        input=SMALL.hex(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert run.stdout.splitlines() == ["", "The picture could not be decoded."], run.stderr
    assert run.returncode == -signal.SIGXCPU
