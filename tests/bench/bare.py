"""What the gateway is measured against: FastAPI routes that pass a body on and an answer back, and check nothing.

BENCH_UPSTREAM is the upstream's URL, BENCH_REDIS that of the Redis; BENCH_TRANSPORT is `pool` (httpx2's own) or
`aiohttp` (the gateway's transport). Redis is used as an ordinary careful developer would: one client, one call after
the other.
"""

from __future__ import annotations

import itertools
import os
from functools import cache

import aiohttp
import httpx2
from fastapi import FastAPI, Request, Response
from httpx_aiohttp.httpx2 import AiohttpTransport
from redis.asyncio import Redis
from redis.commands.core import AsyncScript

app = FastAPI(openapi_url=None)
numbers = itertools.count()


@cache
def client() -> httpx2.AsyncClient:
    """One client per process, made inside the loop."""
    if os.environ["BENCH_TRANSPORT"] == "aiohttp":
        connector = aiohttp.TCPConnector(limit=1000, keepalive_timeout=4)
        transport = AiohttpTransport(client=lambda: aiohttp.ClientSession(connector=connector))
        return httpx2.AsyncClient(transport=transport, timeout=60)
    return httpx2.AsyncClient(timeout=60, limits=httpx2.Limits(max_connections=1000, keepalive_expiry=4))


@cache
def redis() -> Redis:
    """One client per process."""
    return Redis.from_url(os.environ["BENCH_REDIS"])


@cache
def empty() -> AsyncScript:
    """A script that does nothing."""
    return redis().register_script("return 0")


async def forwarded(request: Request) -> tuple[bytes, str]:
    """The upstream's answer to this body, and its content type."""
    answer = await client().post(
        os.environ["BENCH_UPSTREAM"] + "/v2/job?price=true",
        content=await request.body(),
        headers={"content-type": "application/json", "authorization": "Bearer x"},
    )
    return answer.content, answer.headers["content-type"]


@app.post("/pass")
async def forward(request: Request) -> Response:
    """Pass it on, pass it back."""
    body, content_type = await forwarded(request)
    return Response(body, media_type=content_type)


@app.post("/pass/{scripts}")
async def forward_with_redis(request: Request, scripts: int) -> Response:
    """The same with so many empty scripts before, and the answer stored after."""
    for _ in range(scripts):
        await empty()()
    body, content_type = await forwarded(request)
    await redis().set(f"bench:passed:{next(numbers) % 64}", body, ex=3600)
    return Response(body, media_type=content_type)


@app.post("/stored")
async def stored(request: Request) -> Response:
    """The picture that Redis has for the seed."""
    seed = (await request.json())["seed"]
    return Response(await redis().get(f"bench:stored:{seed}"), media_type="image/jpeg")
