"""One decode process that can be given up at any time. Called by `gate`; runs the functions of `worker`.

A lane is a pool of a single process and runs one job at a time, so that a crash, a hang or a caller who leaves concerns
exactly one picture: the process is killed, and the lane's next job gets a new one. Processes start at the first job.
"""

from __future__ import annotations

import asyncio
import multiprocessing
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait
from typing import ParamSpec, TypeVar

from app.images import worker

_START_SECONDS = 60.0  # a process takes 0.3 s to start on an idle machine; only a broken one takes this long

P = ParamSpec("P")
T = TypeVar("T")


class NotStarted(Exception):
    """The process ended, or hung, before it was given any picture: the machine's fault, never the picture's."""


class Lane:
    """One process, started lazily, replaced after every failure. Not for concurrent use."""

    def __init__(self) -> None:
        self._pool: ProcessPoolExecutor | None = None
        self._ending: set[asyncio.Future[None]] = set()

    async def run(self, timeout: float, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """The function's result from the process; whatever it raises.

        Raises:
            TimeoutError: it took longer than `timeout` seconds.
            BrokenProcessPool: the process died on it.
            NotStarted: there is no process to run it.
        """
        try:
            pool = self._pool if self._pool is not None and _alive(self._pool) else await self._start()
            return await _result(pool.submit(function, *args, **kwargs), timeout)
        except (TimeoutError, BrokenProcessPool, NotStarted, asyncio.CancelledError):
            self.drop()
            raise

    async def _start(self) -> ProcessPoolExecutor:
        self.drop()
        context = multiprocessing.get_context("spawn")
        self._pool = pool = ProcessPoolExecutor(1, mp_context=context, initializer=worker.start)
        try:
            await _result(pool.submit(worker.ready), _START_SECONDS)
        except (TimeoutError, BrokenProcessPool) as failure:
            raise NotStarted from failure
        return pool

    def drop(self) -> None:
        """Kill the process, if there is one; what it was doing ends with BrokenProcessPool."""
        pool, self._pool = self._pool, None
        if pool is None:
            return
        for process in list(pool._processes.values()):  # public from Python 3.14 on, as kill_workers
            process.kill()
        ending = asyncio.get_running_loop().run_in_executor(None, pool.shutdown)
        self._ending.add(ending)
        ending.add_done_callback(self._ending.discard)

    async def aclose(self) -> None:
        """Kill the process and wait until it, and those dropped before, are gone."""
        self.drop()
        await asyncio.gather(*self._ending)


def _alive(pool: ProcessPoolExecutor) -> bool:
    """Whether an idle pool still has its process: the system may have killed it in the meantime.

    Asked of the pipe that closes with the process, for `is_alive` can say yes while another thread collects the dead.
    """
    return not wait([process.sentinel for process in list(pool._processes.values())], timeout=0)


async def _result(job: Future[T], timeout: float) -> T:
    """Wait without ever cancelling the job: a cancelled one breaks the pool's own clean-up when its process dies."""
    future = asyncio.wrap_future(job)
    future.add_done_callback(lambda done: done.cancelled() or done.exception())
    await asyncio.wait((future,), timeout=timeout)
    if not future.done():
        raise TimeoutError
    return future.result()
