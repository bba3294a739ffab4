"""Plain ASGI around every listener: request ids, limits on headers, the Host, CORS, the last line of defence, and one
event per request.

It makes the request's `Outcome` (scope["state"]["record"]), adds the headers that every answer carries, and when the
answer is out, hands the record to metrics and log. An exception that nobody translated becomes a constant 500 here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable, MutableMapping
from functools import lru_cache
from time import perf_counter
from typing import Any

import structlog

from app.errors import CODES
from app.telemetry.logs import request_line
from app.telemetry.metrics import Metrics
from app.telemetry.outcome import Outcome

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

MAX_HEADERS = 100
MAX_HEADER_BYTES = 16 * 1024
_EXPOSED = ", ".join(
    ("X-Request-Id", "RateLimit", "RateLimit-Policy", "Retry-After", "Server-Timing", "Cache-Status", "ETag",
     "Repr-Digest",
     "Gateway-Job-Id", "Gateway-Image-Id", "Gateway-Seed", "Gateway-Variant", "Gateway-Source", "Gateway-Cost-Usd",
     "Gateway-Safety", "Gateway-Auto", "Gateway-Left-Out", "Gateway-Missing", "Idempotency-Replayed", "Location",
     "Preference-Applied")
)  # fmt: skip
_HOST = re.compile(rb"([A-Za-z0-9._-]{1,255}|\[[0-9A-Fa-f:.]{2,45}\])(:[0-9]{1,5})?")
_ALLOWED = (
    "Authorization, Content-Type, Accept, Cache-Control, Prefer, Idempotency-Key, Gateway-User, Gateway-Tags, "
    "Last-Event-ID, If-None-Match, "
    # What OpenAI's client and the AI SDK send of themselves, also in a browser.
    "User-Agent, X-Stainless-Arch, X-Stainless-Helper-Method, X-Stainless-Lang, X-Stainless-OS, "
    "X-Stainless-Package-Version, X-Stainless-Retry-Count, X-Stainless-Runtime, X-Stainless-Runtime-Version, "
    "X-Stainless-Timeout"
)


class Access:
    """ASGI middleware.

    Args:
        origins: gives the union of tenants' CORS origins, for preflights and unauthenticated errors.
        hosts: the names it is called by, in lower case; empty for any.
        quiet: routes whose requests are not logged.
    """

    def __init__(
        self,
        app: App,
        *,
        metrics: Metrics,
        log: structlog.typing.FilteringBoundLogger,
        origins: Callable[[], frozenset[str]],
        new_id: Callable[[], str],
        hosts: frozenset[str] = frozenset(),
        quiet: frozenset[str] = frozenset(),
    ) -> None:
        self._app = app
        self._metrics = metrics
        self._log = log
        self._origins = origins
        self._new_id = new_id
        self._quiet = quiet
        self._named = bool(hosts)
        self._host = lru_cache(256)(lambda host: _judge_host(host, hosts))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        record = Outcome(self._new_id())
        state = scope.setdefault("state", {})
        state["record"] = record
        origin = _header(scope, b"origin")
        status = 0

        async def answer(message: MutableMapping[str, Any]) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), *self._headers(record, state, origin)]
            await send(message)

        try:
            if wrong := self._wrong(scope):
                record.code = wrong
                await _refuse(answer, wrong, record.request_id, 400 if wrong == "invalid_request" else None)
            elif origin and scope["method"] == "OPTIONS" and _header(scope, b"access-control-request-method"):
                record.route = "preflight"
                await _preflight(answer, origin in self._origins())
            else:
                await self._app(scope, receive, answer)
        except Exception as error:
            record.code = "internal"
            self._log.error("unhandled", request_id=record.request_id, kind=type(error).__name__, where=_where(error))
            if status == 0:
                await _refuse(answer, "internal", record.request_id)
        finally:
            if charge := state.pop("charge", None):
                charge.close()
            route = scope.get("route")
            record.route = getattr(route, "path", record.route)
            record.surface = getattr(route, "surface", record.surface)
            seconds = perf_counter() - record.began
            self._metrics.finished(record, _method(scope), status or 499, seconds)
            if record.route not in self._quiet:
                self._log.info("request", **request_line(record, scope["method"], status or 499, seconds))

    def _headers(self, record: Outcome, state: dict[str, Any], origin: str | None) -> list[tuple[bytes, bytes]]:
        total = (perf_counter() - record.began) * 1000
        timing = f"total;dur={total:.1f}"
        if record.attempts:
            timing += f", upstream;dur={record.upstream * 1000:.1f}, wait;dur={record.waited * 1000:.1f}"
        headers = [
            (b"x-request-id", record.request_id.encode()),
            (b"server-timing", timing.encode()),
            (b"x-content-type-options", b"nosniff"),
            *_rate_headers(record.rates),
            # Also without one: what a browser kept of a picture that a page showed, its scripts may not read.
            (b"vary", b"Origin"),
        ]
        if origin and origin in state.get("origins", self._origins()):
            headers += [
                (b"access-control-allow-origin", origin.encode()),
                (b"access-control-expose-headers", _EXPOSED.encode()),
            ]
        return headers

    def _wrong(self, scope: Scope) -> str | None:
        """The error code of a head that no application is to see."""
        headers, hosts = scope["headers"], 0
        size = len(scope.get("raw_path") or b"") + len(scope["query_string"])
        wrong = None
        for name, value in headers:
            size += len(name) + len(value)
            if name == b"host":
                hosts += 1
                wrong = self._host(value)
        if len(headers) > MAX_HEADERS or size > MAX_HEADER_BYTES:
            return "headers_too_large"
        if hosts == 0 and scope["http_version"] == "1.0" and not self._named:
            return None  # a load balancer's check of readiness: HTTP/1.0 has no Host
        return wrong if hosts == 1 else "invalid_request"


def _judge_host(host: bytes, served: frozenset[str]) -> str | None:
    """The error code of a Host that cannot be one, or is not one of ours."""
    found = _HOST.fullmatch(host)
    if found is None:
        return "invalid_request"
    known = not served or found[1].decode().lower().rstrip(".") in served
    return None if known else "unknown_host"


def _header(scope: Scope, wanted: bytes) -> str | None:
    return next((value.decode("latin-1") for name, value in scope["headers"] if name == wanted), None)


def _method(scope: Scope) -> str:
    known = ("GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH")
    return scope["method"] if scope["method"] in known else "_other"


def _where(error: BaseException) -> str:
    """File and line of the innermost frame: enough to find the fault, and free of values."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return "" if trace is None else f"{trace.tb_frame.f_code.co_filename.rsplit('/app/', 1)[-1]}:{trace.tb_lineno}"


def _rate_headers(rates: list[Any]) -> list[tuple[bytes, bytes]]:
    """RateLimit-Policy and RateLimit, in the form of the IETF draft's eleventh revision; one place, as the next
    renames parameters."""
    if not rates:
        return []
    names = {"tenant": "requests", "key": "requests-key", "user": "requests-user"}
    policy = ", ".join(f'"{names[r.level]}";q={r.rate.count};w={r.rate.seconds}' for r in rates)
    state = ", ".join(f'"{names[r.level]}";r={r.remaining};t={r.reset_seconds}' for r in rates)
    return [(b"ratelimit-policy", policy.encode()), (b"ratelimit", state.encode())]


async def _preflight(send: Send, allowed: bool) -> None:
    headers = [(b"content-length", b"0")]
    if allowed:
        headers += [
            (b"access-control-allow-methods", b"GET, POST, DELETE"),
            (b"access-control-allow-headers", _ALLOWED.encode()),
            (b"access-control-max-age", b"600"),
        ]
    await send({"type": "http.response.start", "status": 204, "headers": headers})
    await send({"type": "http.response.body", "body": b""})


def refusal(
    code: str, status: int | None = None, request_id: str | None = None
) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
    """Status, headers and problem document of an error that no surface can answer."""
    kind = CODES[code]
    status = status or kind.status
    problem = {
        "type": f"urn:kontext-gateway:error:{code}", "title": kind.title, "status": status, "detail": kind.title + ".",
        "code": code, "charged": "no" if code != "internal" else "unknown", "request_id": request_id,
    }  # fmt: skip
    body = json.dumps({name: value for name, value in problem.items() if value is not None}).encode()
    headers = [
        (b"content-type", b"application/problem+json"),
        (b"content-length", b"%d" % len(body)),
        (b"cache-control", b"no-store"),
    ]
    return status, [*headers, (b"retry-after", b"1")] if status in (408, 503) else headers, body


async def _refuse(send: Send, code: str, request_id: str, status: int | None = None) -> None:
    found, headers, body = refusal(code, status, request_id)
    await send({"type": "http.response.start", "status": found, "headers": headers})
    await send({"type": "http.response.body", "body": body})
