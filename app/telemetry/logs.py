"""Structured logs: one JSON line per request and per change of state, on standard output, from allow-listed fields
only.

Nothing that a caller wrote gets here but ids the gateway made and names from the configuration.
"""

from __future__ import annotations

import logging
import sys
from typing import TextIO

import orjson
import structlog

from app.telemetry.outcome import Outcome


def configure(*, level: str = "INFO", stream: TextIO | None = None) -> structlog.typing.FilteringBoundLogger:
    """The process's logger. Libraries' own logs are shown from warnings on, without tracebacks' local values."""
    out = stream or sys.stdout
    logging.basicConfig(
        level=logging.WARNING, stream=sys.stderr, format='{"level":"%(levelname)s","logger":"%(name)s"}'
    )
    for noisy in ("asyncio", "uvicorn", "uvicorn.error", "uvicorn.access", "aiohttp", "httpx2"):
        logging.getLogger(noisy).setLevel(logging.CRITICAL)
    return structlog.wrap_logger(  # type: ignore[no-any-return]
        structlog.BytesLoggerFactory(out.buffer)() if hasattr(out, "buffer") else structlog.PrintLogger(out),
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.JSONRenderer(serializer=_dump if hasattr(out, "buffer") else _dump_text),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level)),
    )


def request_line(outcome: Outcome, method: str, status: int, seconds: float) -> dict[str, object]:
    """The fields of one request's line; empty ones are left out."""
    line: dict[str, object] = {
        "request_id": outcome.request_id,
        "method": method if method in ("GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH") else "_other",
        "route": outcome.route,
        "surface": outcome.surface,
        "status": status,
        "outcome": outcome.code,
        "seconds": round(seconds, 4),
        "tenant": outcome.tenant,
        "key_id": outcome.key_id,
        "operation": outcome.operation,
        "variant": outcome.variant,
        "source": outcome.source,
        "job_id": outcome.job_id,
        "safety": outcome.safety_action,
        "charged": outcome.charged,
    }
    if outcome.source:
        line |= {"cost_micro_usd": outcome.cost, "saved_micro_usd": outcome.saved}
    if outcome.attempts:
        line |= {
            "attempts": outcome.attempts,
            "upstream_seconds": round(outcome.upstream, 4),
            "waited_seconds": round(outcome.waited, 4),
        }
    return {name: value for name, value in line.items() if value is not None}


def _dump(record: object, **_: object) -> bytes:
    return orjson.dumps(record, default=str)


def _dump_text(record: object, **_: object) -> str:
    return _dump(record).decode()
