"""The `/sandbox/` endpoints: the bill, the log, the counters, the faults, the switches. No token, but loopback callers
only."""

import ipaddress
import json
from collections.abc import Awaitable, Callable

import orjson
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from .bill import as_csv
from .faults import FaultError
from .job import JobEndpoint
from .log import Entry
from .scenario import staged, switched, switches_of

SCRIPT_LIMIT = 1_000_000
Handler = Callable[[Request], Awaitable[Response]]


def control_routes(jobs: JobEndpoint) -> list[Route]:
    """Routes over the state of one sandbox."""

    async def bill(request: Request) -> Response:
        rows = [] if request.query_params.get("rows") == "false" else jobs.bill.rows()
        totals: dict[str, object] = {
            "jobs": jobs.bill.jobs,
            "micro_usd": jobs.bill.micro_usd,
            "dollars": jobs.bill.micro_usd / 1_000_000,
        }
        return await run_in_threadpool(_listing, totals, "rows", rows)

    async def bill_csv(request: Request) -> Response:
        text = await run_in_threadpool(as_csv, jobs.bill.rows())
        return Response(text, media_type="text/csv")

    async def received(request: Request) -> Response:
        after, limit = (_count(request, name) for name in ("after", "limit"))
        rows = jobs.log.rows(after or 0, limit)
        encoded = [row.row() if isinstance(row, Entry) else row for row in rows]
        return await run_in_threadpool(_listing, {"received": jobs.log.counts.received}, "jobs", encoded)

    async def stats(request: Request) -> Response:
        return Response(orjson.dumps(jobs.log.counts), media_type="application/json")

    async def reset(request: Request) -> Response:
        jobs.log.reset()
        jobs.bill.reset()
        return Response(status_code=204)

    async def read_faults(request: Request) -> Response:
        return JSONResponse([fault.as_data() for fault in jobs.script.faults])

    async def replace_faults(request: Request) -> Response:
        try:
            jobs.play(staged(jobs.switches, await _sent(request, "faults")))
        except FaultError as error:
            return _refused(error)
        return await read_faults(request)

    async def read_switches(request: Request) -> Response:
        return JSONResponse(switches_of(jobs.switches))

    async def change_switches(request: Request) -> Response:
        try:
            wanted = await _sent(request, "switches")
            changed = switched(jobs.switches, wanted)
        except FaultError as error:
            return _refused(error)
        if isinstance(wanted, dict) and "seed" in wanted:
            jobs.play(changed)  # the same seed begins the same draws anew
        jobs.switches = changed
        return await read_switches(request)

    return [
        Route("/sandbox/bill", loopback_only(bill)),
        Route("/sandbox/bill.csv", loopback_only(bill_csv)),
        Route("/sandbox/jobs", loopback_only(received)),
        Route("/sandbox/stats", loopback_only(stats)),
        Route("/sandbox/reset", loopback_only(reset), methods=["POST"]),
        Route("/sandbox/faults", loopback_only(read_faults)),
        Route("/sandbox/faults", loopback_only(replace_faults), methods=["PUT"]),
        Route("/sandbox/switches", loopback_only(read_switches)),
        Route("/sandbox/switches", loopback_only(change_switches), methods=["PATCH"]),
    ]


async def _sent(request: Request, name: str) -> object:
    """The body as JSON data. Raises FaultError."""
    raw = bytearray()
    async for chunk in request.stream():
        raw += chunk
        if len(raw) > SCRIPT_LIMIT:
            raise FaultError(name, "must be at most 1 MB")
    try:
        return json.loads(raw)
    except (ValueError, RecursionError):
        raise FaultError(name, "must be JSON") from None


def loopback_only(handler: Handler) -> Handler:
    async def guarded(request: Request) -> Response:
        if not is_loopback(None if request.client is None else request.client.host):
            return PlainTextResponse("only for callers on this machine\n", 403)
        return await handler(request)

    return guarded


def is_loopback(host: str | None) -> bool:
    """Whether a peer's address is one of this machine's loopback addresses; an unknown peer is not."""
    try:
        address = ipaddress.ip_address(host or "")
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback


def _count(request: Request, name: str) -> int | None:
    text = request.query_params.get(name, "")
    return int(text) if text.isdecimal() and len(text) < 18 else None


def _listing(head: dict[str, object], name: str, rows: list[bytes]) -> Response:
    opening = orjson.dumps(head)[:-1] + f',"{name}":['.encode()
    return Response(opening + b",\n".join(row.rstrip() for row in rows) + b"]}", media_type="application/json")


def _refused(error: FaultError) -> Response:
    return JSONResponse({"error": {"field": error.field, "message": error.message}}, 422)
