"""A caller that is gone at the k-th await of its request, for every k: the walk of one process, stepped through.

The gateway runs in this process, on a real ledger and a real upstream, so that its coroutines can be stepped. An await
of the leader's task counts like one of the caller's own. For M-03.
"""

from __future__ import annotations

import asyncio
import random
import types
from collections.abc import AsyncIterator, Coroutine, Generator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from app import named
from app.domain.job import Ask
from app.errors import GatewayError
from app.main import Application, create_app
from app.pipeline import Control
from app.prodia.turns import Turns
from app.purchase import Buyer
from app.settings import Settings
from app.telemetry.outcome import Outcome
from tests.fleet import PEPPER, TOKEN, Fleet

MODES = ("at once", "in line", "named")
FEWEST, MOST = 5, 200  # awaits that a request surely has, and more than it can have


@dataclass
class Steps:
    """Counts awaits, and cancels a task at some of them."""

    at: frozenset[int]
    caller: asyncio.Task[Any] | None = None
    seen: int = 0
    left: list[int] = field(default_factory=list)

    def suspended(self) -> None:
        """One more await."""
        if self.seen in self.at and self.caller is not None and not self.caller.done():
            self.left.append(self.seen)
            asyncio.get_running_loop().call_soon(self.caller.cancel)
        self.seen += 1


@asynccontextmanager
async def inside(fleet: Fleet) -> AsyncIterator[Application]:
    """A gateway of the fleet that runs in this process."""
    settings = Settings(
        _env_file=None, prodia_token=SecretStr(TOKEN), prodia_base_url=fleet.upstream + "/v2",  # type: ignore[call-arg]
        redis_url=SecretStr(fleet.redis_url), gateway_key_pepper=SecretStr(PEPPER), gateway_redis_timeout=2.0,
        gateway_tenants_file=fleet.folder / "tenants.yaml", gateway_data_dir=Path(fleet.folder / "inside"),
    )  # fmt: skip
    app = create_app(settings)
    await app.start()
    try:
        yield app
    finally:
        await app.stop(timeout=10)


@types.coroutine
def counted(work: Coroutine[Any, Any, Any], steps: Steps) -> Generator[Any, Any, Any]:
    """The same coroutine, with its awaits counted."""
    value, error = None, None
    while True:
        try:
            waits_for = work.throw(error) if error is not None else work.send(value)
        except StopIteration as done:
            return done.value
        steps.suspended()
        try:
            value, error = (yield waits_for), None
        except BaseException as thrown:
            error = thrown


async def leave_at_each_await(
    fleet: Fleet, token: str, draw: random.Random, *, twice: bool, first: int
) -> dict[str, int]:
    """In each mode, leave at the first await, at the second, and so on until the request is through without a cancel;
    how many awaits there were.

    Args:
        twice: be cancelled again at a later await, which is drawn.
        first: tells the seeds of one call from those of another.
    """
    lead, slack, found = Buyer.lead, Turns.slack, {}
    async with inside(fleet) as app:
        try:
            for number, mode in enumerate(MODES):
                Turns.slack = slack if mode == "at once" else property(lambda self: False)  # type: ignore[method-assign]
                seed = (3 * first + number) * 1_000
                for at in range(MOST):
                    again = {at + draw.randrange(1, 6)} if twice else set()
                    steps = Steps(frozenset({at} | again))
                    Buyer.lead = lambda self, it, steps=steps: counted(lead(self, it), steps)  # type: ignore[method-assign, misc]
                    await _one(app, token, mode, seed + at, steps)
                    if not steps.left:
                        break
                else:
                    raise AssertionError(f"{mode}: there are more awaits than were tried")
                assert at > FEWEST, f"{mode}: awaits are not counted"
                found[mode] = at
            async with asyncio.timeout(5):  # no slot is left to the living process
                while await app.stores[0].command("HGETALL", "kg:{up}:held"):  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
        finally:
            Buyer.lead, Turns.slack = lead, slack  # type: ignore[method-assign]
        return found


async def _one(app: Application, token: str, mode: str, seed: int, steps: Steps) -> None:
    record = Outcome(f"req_{seed}")

    async def call() -> None:
        caller = await app.gateway.authenticate(token, record)
        ask = Ask("generate", {"prompt": "a lighthouse at dawn", "seed": seed}, {})
        if mode == "named":
            await named.submit(
                app.gateway, caller, ask, Control(), record, route="generate", name=f"name-{seed}",
                tell=lambda delivery: {"job": delivery.result.job_id},
            )  # fmt: skip
        else:
            await app.gateway.submit(caller, ask, Control(), record)

    steps.caller = asyncio.create_task(counted(call(), steps))  # type: ignore[arg-type]
    with suppress(asyncio.CancelledError, GatewayError):
        await steps.caller
    while app.gateway.at_work:
        await asyncio.wait(set(app.gateway.at_work))
    await asyncio.sleep(0)
