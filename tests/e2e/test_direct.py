"""The short way to a route leads where FastAPI's own way does."""

from __future__ import annotations

import re
from pathlib import Path

import httpx2
from fastapi import APIRouter, Request
from starlette.responses import Response

from app.main import Application, create_app
from app.surfaces.deps import AnyCaller
from app.surfaces.dialect import Dialect
from app.surfaces.direct import Direct, short
from tests.e2e.routes import settings

PAID = {
    ("POST", path)
    for path in ("/v1/generate", "/v1/edit", "/v1/images/generations", "/v1/images/edits", "/v2/job", "/v1/quote")
}


async def refused(made: Application) -> dict[tuple[str, str], tuple[int, str, str]]:
    """Every route that has a short way, asked without a key."""
    found = {}
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app=made.public), base_url="http://x") as client:
        for method, path in PAID | {("GET", "/v1/me"), ("GET", "/v1/models"), ("GET", "/v1/images/edits")}:
            answer = await client.request(method, path)
            text = re.sub(r"req_\w{26}|[0-9a-f-]{36}", "ID", answer.text)
            headers = answer.headers
            del headers["server-timing"], headers["x-request-id"]
            found[method, path] = (answer.status_code, text, str(headers))
    return found


async def test_it_answers_as_the_long_way_does(tmp_path: Path) -> None:
    made = create_app(settings(tmp_path, {"acme": {}}))
    public = made.public._app
    assert isinstance(public, Direct)
    assert public.short.keys() >= PAID
    directly = await refused(made)
    public.short = {}
    assert directly == await refused(made)
    assert {status for status, *_ in directly.values()} == {401}


def test_a_route_that_an_earlier_one_hides_has_none() -> None:
    router = APIRouter(route_class=Dialect)

    @router.get("/a/{name}")
    async def first(request: Request, name: str, caller: AnyCaller) -> Response:
        return Response()

    @router.get("/a/b")
    @router.post("/a/b")
    async def second(request: Request, caller: AnyCaller) -> Response:
        return Response()

    @router.post("/a/b")
    async def third(request: Request, caller: AnyCaller) -> Response:
        return Response()

    assert [(at, route.endpoint) for at, route in short(router.routes).items()] == [(("POST", "/a/b"), second)]
