"""What the gateway is measured against: a FastAPI route that passes the body on and the answer back, and checks
nothing.

BENCH_UPSTREAM is the upstream's URL; BENCH_TRANSPORT is `pool` (httpx2's own) or `aiohttp` (the gateway's transport).
"""

from __future__ import annotations

import os
from functools import cache

import aiohttp
import httpx2
from fastapi import FastAPI, Request, Response
from httpx_aiohttp.httpx2 import AiohttpTransport

app = FastAPI(openapi_url=None)


@cache
def client() -> httpx2.AsyncClient:
    """One client per process, made inside the loop."""
    if os.environ["BENCH_TRANSPORT"] == "aiohttp":
        connector = aiohttp.TCPConnector(limit=1000, keepalive_timeout=4)
        transport = AiohttpTransport(client=lambda: aiohttp.ClientSession(connector=connector))
        return httpx2.AsyncClient(transport=transport, timeout=60)
    return httpx2.AsyncClient(timeout=60, limits=httpx2.Limits(max_connections=1000, keepalive_expiry=4))


@app.post("/v1/generate")
async def forward(request: Request) -> Response:
    """Pass it on, pass it back."""
    answer = await client().post(
        os.environ["BENCH_UPSTREAM"] + "/v2/job?price=true",
        content=await request.body(),
        headers={"content-type": "application/json", "authorization": "Bearer x"},
    )
    return Response(answer.content, media_type=answer.headers["content-type"])
