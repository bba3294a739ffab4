"""The public application: FastAPI, with a short way to the routes that are called most.

A `Dialect` route that has no parameters in its path, and takes the request and its caller only, is found by method and
path and called at once. FastAPI's own way there, eight layers and a look at one route after the other, costs more than
what the gateway decides; everything else, and whatever is not found, goes that way.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from app.errors import GatewayError
from app.surfaces.dialect import Dialect, on_crash, on_error, on_http_error


class Direct(FastAPI):
    """One listener's application; `short` are the routes that are called directly. Errors are answered alike on both
    ways."""

    short: dict[tuple[str, str], Dialect]

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.add_exception_handler(GatewayError, on_error)
        self.add_exception_handler(HTTPException, on_http_error)
        self.add_exception_handler(Exception, on_crash)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        route = self.short.get((scope["method"], scope["path"])) if scope["type"] == "http" else None
        if route is None or route.direct is None:
            return await super().__call__(scope, receive, send)
        scope.update(app=self, route=route, endpoint=route.endpoint, path_params={})
        request = Request(scope, receive, send)
        try:
            response = await route.direct(request)
        except GatewayError as error:
            response = await on_error(request, error)
        except HTTPException as error:
            response = await on_http_error(request, error)
        except Exception as error:
            response = await on_crash(request, error)
            await response(scope, receive, send)
            raise
        return await response(scope, receive, send)


def short(routes: Iterable[Any]) -> dict[tuple[str, str], Dialect]:
    """Of routes in their order, those that can be called directly, by method and path."""
    found: dict[tuple[str, str], Dialect] = {}
    before: list[Any] = []
    for route in routes:
        if isinstance(route, Dialect) and route.direct and not route.param_convertors:
            for method in route.methods or ():
                if not any(method in one.methods and one.path_regex.match(route.path) for one in before):
                    found[method, route.path] = route
        before.append(route)
    return found
