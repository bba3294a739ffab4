"""HTTP conventions: Accept and Cache-Control in, problem+json out, and where a surface puts a wire form of its own.

Pure translation; the error table in `app.errors` says everything else.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import orjson
from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.responses import Response

from app.cache.results import Result
from app.errors import GatewayError, InvalidRequest
from app.pipeline import Control
from app.surfaces.deps import record_of

FORMATS = {"image/jpeg": "jpeg", "image/png": "png", "image/webp": "webp"}
PROBLEM = "application/problem+json"
REPLAYED = "Idempotency-Replayed"
MAX_NAME = 255  # characters of an Idempotency-Key
Handler = Callable[[Request], Coroutine[Any, Any, Response]]
_STRING = re.compile(r'"((?:[ !#-\[\]-~]|\\["\\])*)"')  # of RFC 8941


@dataclass(frozen=True, slots=True)
class Accepted:
    """What a caller wants back: JSON or bytes, and the picture's format where one concrete type was named."""

    json: bool
    format: str | None


@lru_cache(256)
def accepted(header: str | None) -> Accepted:
    """Read an Accept header. JSON only where it is preferred to an image; a format only where it is the single image
    type."""
    if not header:
        return Accepted(False, None)
    ranges = _ranges(header)
    json = max((q for kind, q in ranges if kind in ("application/json", "application/*")), default=0.0)
    image = max((q for kind, q in ranges if kind.startswith("image/") or kind == "*/*"), default=0.0)
    concrete = {kind for kind, q in ranges if kind.startswith("image/") and q > 0}
    only = concrete.pop() if len(concrete) == 1 else None
    return Accepted(json > image, FORMATS.get(only or ""))


def prefers_csv(header: str | None) -> bool:
    """Whether an Accept header prefers CSV to JSON; JSON where it names neither, and where it likes them alike."""
    ranges = _ranges(header or "")
    csv = max((q for kind, q in ranges if kind in ("text/csv", "text/*")), default=0.0)
    json = max((q for kind, q in ranges if kind in ("application/json", "application/*")), default=0.0)
    return csv > json


def _ranges(header: str) -> list[tuple[str, float]]:
    """The media ranges of an Accept header with their weights."""
    ranges = []
    for part in header.split(","):
        kind, *options = (piece.strip().lower() for piece in part.split(";"))
        weights = [option[2:] for option in options if option.startswith("q=")]
        ranges.append((kind, _weight(weights[0]) if weights else 1.0))
    return ranges


def _weight(text: str) -> float:
    try:
        return min(1.0, max(0.0, float(text)))
    except ValueError:
        return 0.0


def control(header: str | None) -> Control:
    """Read a Cache-Control header; directives that are not ours are ignored, as RFC 9111 asks."""
    words = {word.strip().lower() for word in (header or "").split(",")}
    store = "no-store" not in words
    return Control(reuse=store and "no-cache" not in words, keep=store, only_if_cached="only-if-cached" in words)


def idempotency_key(headers: list[str]) -> str | None:
    """The name that a caller gives its call: `Idempotency-Key`, a quoted string (RFC 8941) or the bare text.

    Raises:
        InvalidRequest: more than one header (400), or no 1 to 255 printable ASCII characters.
    """
    if not headers:
        return None
    field = "Idempotency-Key"
    if len(headers) > 1:
        raise InvalidRequest(f"Send one `{field}` header.", field=field, status=400)
    name = headers[0].strip(" \t")
    if name.startswith('"'):
        quoted = _STRING.fullmatch(name)
        name = re.sub(r"\\(.)", r"\1", quoted[1]) if quoted else ""
    if not (1 <= len(name) <= MAX_NAME and name.isascii() and name.isprintable()):
        text = f"`{field}` must have 1 to {MAX_NAME} printable ASCII characters, quoted or bare."
        raise InvalidRequest(text, field=field, min_length=1, max_length=MAX_NAME)
    return name


def json_response(body: dict[str, Any]) -> Response:
    """A document that no cache may keep."""
    return Response(orjson.dumps(body), media_type="application/json", headers={"Cache-Control": "no-store"})


def picture_document(result: Result, size: int) -> dict[str, Any]:
    """The members of a stored picture that every JSON reply has; `size` in bytes."""
    return {
        "id": result.image_id, "sha256": result.sha256, "content_type": result.content_type,
        "width": result.width, "height": result.height, "bytes": size,
    }  # fmt: skip


def problem(error: GatewayError, request_id: str) -> dict[str, Any]:
    """The RFC 9457 document of an error."""
    body: dict[str, Any] = {
        "type": f"urn:kontext-gateway:error:{error.code}",
        "title": error.kind.title,
        "status": error.status,
        "detail": error.detail,
        "code": error.code,
        "charged": error.charged,
        "request_id": request_id,
    }
    if error.field is not None:
        body["field"] = error.field
    if error.retry_after is not None:
        body["retry_after"] = error.retry_after
    return body | error.extra


class Dialect(APIRoute):
    """A route of a surface: `surface` is its name in metrics and logs, `refuse` writes an error in its wire form.

    An endpoint that takes the request, and the caller by its role, and nothing else, is handed both without the
    framework's resolution of dependencies, which costs more than all that the gateway decides.
    """

    surface: ClassVar[str] = "native"
    direct: Handler | None = None  # the endpoint with its role before it, where it takes nothing more

    @staticmethod
    def refuse(request: Request, error: GatewayError) -> Response:
        """The answer to an error of this route, whoever raised it."""
        return as_problem(request, error)

    def get_route_handler(self) -> Handler:
        """The endpoint with its role before it; FastAPI's own handler for an endpoint that takes more."""
        found = self.dependant
        more = (found.path_params, found.query_params, found.header_params, found.cookie_params, found.body_params)
        if any(more) or len(found.dependencies) != 1 or found.request_param_name is None:
            return super().get_route_handler()
        (role,), request_name, endpoint = found.dependencies, found.request_param_name, self.endpoint
        authenticate, caller_name = role.call, role.name
        assert authenticate is not None  # noqa: S101
        assert caller_name is not None  # noqa: S101

        async def handle(request: Request) -> Response:
            response: Response = await endpoint(**{request_name: request, caller_name: await authenticate(request)})
            return response

        self.direct = handle
        return handle


def as_problem(request: Request, error: GatewayError) -> Response:
    """An error as the native surface, and whatever has no surface of its own, writes it."""
    headers = {}
    if error.retry_after is not None:
        headers["Retry-After"] = str(error.retry_after)
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    body = orjson.dumps(problem(error, error.replay_of or record_of(request).request_id), default=str)
    return Response(body, error.status, headers, media_type=PROBLEM)


async def on_error(request: Request, error: Exception) -> Response:
    """Exception handler: a GatewayError as the caller sees it, in the words of the surface that was called."""
    assert isinstance(error, GatewayError)  # noqa: S101
    record = record_of(request)
    record.code, record.charged = error.code, error.charged
    response = getattr(request.scope.get("route"), "refuse", as_problem)(request, error)
    response.headers["Cache-Control"] = "no-store"
    if error.replay_of is not None:
        response.headers[REPLAYED] = "true"
    return response


async def on_http_error(request: Request, error: Exception) -> Response:
    """Exception handler: what routing itself refuses (404, 405)."""
    status = getattr(error, "status_code", 404)
    code = {405: "method_not_allowed"}.get(status, "not_found")
    response = await on_error(
        request, GatewayError(code, "There is nothing here." if code == "not_found" else "Not with this method.")
    )
    allow = (getattr(error, "headers", None) or {}).get("Allow")
    if allow:
        path = getattr(request.scope.get("route"), "path", None)
        response.headers["Allow"] = ", ".join(sorted(request.app.state.methods.get(path, {allow})))
    return response


def methods_by_path(routes: Iterable[Any]) -> dict[str, set[str]]:
    """The methods of each path: the router, which stops at the first route of a path, knows only that one's."""
    found: dict[str, set[str]] = {}
    for route in routes:
        if route.include_in_schema:
            found.setdefault(route.path, set()).update(route.methods)
    return found


async def on_crash(request: Request, error: Exception) -> Response:
    """Exception handler of last resort: without it Starlette answers in plain text before `Access` can."""
    return await on_error(request, GatewayError("internal", "The gateway failed.", charged="unknown"))
