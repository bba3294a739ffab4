"""The ops listener's own routes: metrics, liveness and readiness. Bound to loopback by default; no key is needed.

Liveness is constant. Readiness answers from what the heartbeat last saw, so that a probe costs no round trip. Metrics
read the money gauges from Redis, and leave them as they were when it is away.
"""

from __future__ import annotations

from fastapi import APIRouter, Request
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import JSONResponse, PlainTextResponse, Response

from app.surfaces.deps import OPEN

router = APIRouter()


@router.get("/metrics", response_class=PlainTextResponse, openapi_extra=OPEN)
async def metrics(request: Request) -> Response:
    """Prometheus exposition."""
    await request.app.state.health.read_gauges()
    return Response(request.app.state.gateway.metrics.render(), headers={"Content-Type": CONTENT_TYPE_LATEST})


@router.get("/healthz", openapi_extra=OPEN)
async def healthz(request: Request) -> Response:
    """Whether the process lives."""
    return JSONResponse({"status": "ok"})


@router.get("/readyz", responses={503: {"description": "Not ready, with the reason"}}, openapi_extra=OPEN)
async def readyz(request: Request) -> Response:
    """Whether to send requests here: 200, or 503 with the reason."""
    reason: str | None = request.app.state.health.not_ready
    return JSONResponse(
        {"status": "ready" if reason is None else "not_ready", "reason": reason}, 200 if reason is None else 503
    )
