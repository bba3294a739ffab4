"""Puts one sandbox together: the job endpoint, the control endpoints, and plain answers for everything else."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from .bill import Bill
from .config import SandboxConfig
from .control import control_routes
from .job import JobEndpoint
from .log import Log


def create_sandbox(config: SandboxConfig) -> Starlette:
    """The sandbox as an ASGI app.

    Opens the bill at once: raises OSError when it cannot be written and ValueError when it holds something else. Faults
    that cut connections are cleanest under `serve_sandbox`; see `delivery.py`.
    """
    bill = Bill(config.bill_path, config.log_limit)
    jobs = JobEndpoint(config, bill, Log(config.log_limit))

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        jobs.close()
        await bill.close()

    return Starlette(
        routes=[Route("/v2/job", jobs, methods=["POST"]), *control_routes(jobs)],
        exception_handlers={404: _not_found, 405: _not_allowed},
        lifespan=lifespan,
    )


async def _not_found(request: Request, error: Exception) -> Response:
    return PlainTextResponse("404 page not found\n", 404)


async def _not_allowed(request: Request, error: Exception) -> Response:
    headers = error.headers if isinstance(error, HTTPException) else None
    return PlainTextResponse("Method Not Allowed\n", 405, headers)
