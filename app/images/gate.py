"""The input gate: judges an upload by its headers before any money is spent, and makes it conform.

Called by the pipeline: `inspect` on every edit, `Gate.prepare` only when a job will really be sent. The pixels of a
picture that conforms are never decoded, for that costs more than all the rest: it is forwarded byte for byte, but for
metadata. Pictures that must change are decoded in processes of their own, whose failure refuses that one picture.
"""

from __future__ import annotations

import asyncio
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass

from app.domain.inputs import InputRule
from app.errors import GatewayError
from app.images import worker
from app.images.header import Malformed
from app.images.lanes import Lane, NotStarted
from app.images.plan import UPLOAD_MAX_BYTES, UPLOAD_MAX_PIXELS, Plan, inspect, refusal
from app.images.probe import CONTENT_TYPES, read_header

__all__ = [
    "GATE_VERSION",
    "UPLOAD_MAX_BYTES",
    "UPLOAD_MAX_PIXELS",
    "Gate",
    "InputRule",
    "Plan",
    "Prepared",
    "inspect",
]

GATE_VERSION: int = 1  # part of the cache digest; bump when the output of the gate changes

_INLINE_BYTES = 1_000_000  # cutting metadata out of more than this leaves the event loop


@dataclass(frozen=True, slots=True)
class Prepared:
    """The bytes to forward, their type and size in pixels, and in plain words what was done to get there."""

    data: bytes
    format: str
    content_type: str
    width: int
    height: int
    notes: tuple[str, ...]


class Gate:
    """Owns the decode processes; one per gateway process.

    Args:
        workers: decode processes at most; each starts when first needed and takes about 30 MB, 1.1 GB at the worst.
        timeout: seconds one picture may take in its process.
    """

    def __init__(self, *, workers: int = 2, timeout: float = 20.0) -> None:
        self._lanes = [Lane() for _ in range(workers)]
        self._idle = list(self._lanes)  # the last one used is taken first, so that a quiet gateway starts only one
        self._free = asyncio.Semaphore(workers)
        self._timeout = timeout
        self._closed = False

    async def prepare(self, data: bytes, plan: Plan, rule: InputRule) -> Prepared:
        """Carry out what `inspect` planned for these bytes; the result has exactly `plan.target` pixels.

        Raises:
            InvalidImage: the picture cannot be decoded, or is too much for a decode process.
            GatewayError: `draining` after `aclose`, `internal` when no decode process can be started.
        """
        try:
            if plan.reencoded:
                return await self._conform(data, plan, rule)
            if len(data) <= _INLINE_BYTES:
                return _forward(data, plan)
            return await asyncio.to_thread(_forward, data, plan)
        except Malformed as wrong:
            raise refusal(wrong.code, str(wrong), rule, plan.oriented) from None
        except TimeoutError:
            raise refusal("invalid_image", "The picture takes too long to decode.", rule, plan.oriented) from None

    async def aclose(self) -> None:
        """End the decode processes; what they were doing fails with `draining`."""
        self._closed = True
        await asyncio.gather(*(lane.aclose() for lane in self._lanes))

    async def _conform(self, data: bytes, plan: Plan, rule: InputRule) -> Prepared:
        async with self._free:
            lane = self._idle.pop()
            try:
                self._check_open()
                made = await lane.run(self._timeout, worker.conform, data, plan.target, rule.max_bytes, rule.formats)
            except BrokenProcessPool:
                self._check_open()
                raise Malformed("The picture could not be decoded.") from None
            except NotStarted as failure:
                self._check_open()
                raise GatewayError("internal", "No process could be started to decode the picture.") from failure
            finally:
                self._idle.append(lane)
        return Prepared(made.data, made.format, CONTENT_TYPES[made.format], *plan.target, _notes(plan, made.format))

    def _check_open(self) -> None:
        if self._closed:
            raise GatewayError("draining", "This replica is shutting down.")


def _forward(data: bytes, plan: Plan) -> Prepared:
    """The file as it came, by now searched to its end, without its metadata unless that is kept."""
    header = plan.header if plan.header.complete else read_header(data)
    notes: tuple[str, ...] = ()
    if header.cuts and not plan.keep_metadata:
        data, notes = header.without_metadata(data), ("metadata removed",)
    return Prepared(data, plan.format, CONTENT_TYPES[plan.format], plan.width, plan.height, notes)


def _notes(plan: Plan, format: str) -> tuple[str, ...]:
    done = {
        "metadata": "metadata removed",
        "orientation": "rotated upright",
        "fit": f"{'reduced' if plan.target < plan.oriented else 'enlarged'} to {plan.fitted}",
        "recompress": "compressed again to meet the byte limit",
    }
    notes = [done[action] for action in plan.actions]
    if format != plan.format:
        notes.append(f"converted from {plan.format.upper()} to {format.upper()}")
    return tuple(notes)
