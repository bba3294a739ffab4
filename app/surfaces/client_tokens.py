"""`POST /v1/client-tokens`: what a back end asks for before it lets a browser call.

Thin: `app.minting` decides what a token may be bound to, and the keyring keeps it.
"""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from app.domain.client_token import ClientToken
from app.domain.pricing import usd
from app.errors import InvalidRequest
from app.minting import mint
from app.surfaces import native_schema
from app.surfaces.body import JSON_SLACK, media_type, read_json
from app.surfaces.deps import KeyCaller, gateway_of
from app.surfaces.dialect import json_response

router = APIRouter()


@router.post("/v1/client-tokens", status_code=201, **native_schema.client_tokens())
async def client_tokens(request: Request, caller: KeyCaller) -> Response:
    """A token for a browser: minutes long, and never wider than the key that mints it."""
    if media_type(request)[0] != "application/json":
        raise InvalidRequest("Send application/json.", code="unsupported_type", accepted=["application/json"])
    gateway = gateway_of(request)
    token, client, seconds = await mint(gateway, caller, await read_json(request, JSON_SLACK))
    answer = json_response(_document(token, client, seconds))
    answer.status_code = 201
    return answer


def _document(token: str, client: ClientToken, seconds: int) -> dict[str, Any]:
    return {
        "object": "kontext.client_token", "id": client.id, "token": token, "expires": client.expires,
        "expires_in": seconds,
        "operations": client.operations, "variants": client.variants, "ceiling": client.ceiling,
        "images": client.images, "usd": None if client.micro_usd is None else usd(client.micro_usd),
        "origins": client.origins, "user": client.user,
    }  # fmt: skip
