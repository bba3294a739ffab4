"""The calls: one method each, and one exchange that all of them share.

A call is sent again only when the answer proves that nothing was charged and says when to come back (429 or 503 with
`Retry-After` and `charged: no`). A lost answer is never sent again from here: it may have been paid for.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import random
import re
import time
import uuid
from collections.abc import AsyncIterator, Mapping
from datetime import date
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self
from urllib.parse import urlencode

import httpx2

from app.client.answers import Picture, StoredPicture, picture
from app.client.failures import GatewayUnreachable, refusal, unreadable

IMAGE_ID = re.compile(r"img_[0-9a-f]{48}", re.ASCII)
_CONNECT_SECONDS = 10.0
_CHUNK = 65_536
_NO_CONNECTION = (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.UnsupportedProtocol)


class _Body:
    """The body of a call. Until its last piece is handed over, nobody can have paid for it."""

    def __init__(self, data: bytes) -> None:
        self.length = len(data)
        self.sent = False
        self._data = data

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for at in range(0, self.length, _CHUNK):
            self.sent = at + _CHUNK >= self.length
            yield self._data[at : at + _CHUNK]


class Client:
    """A gateway, as one key sees it: use it with `async with`, in one event loop, for any number of calls at once.

    Args:
        url: the gateway's public address, such as `http://127.0.0.1:8080`.
        key: `kgw_live_...`; sent to that address only, redirects are not followed.
        timeout: seconds for one call in all, re-sends and their pauses included. The gateway itself gives a job 120 s.
        retries: how often a call may be sent again.

    Raises:
        ValueError: an address or key that cannot be used; its text does not repeat them.

    Every method raises GatewayRefused and GatewayUnreachable.
    """

    def __init__(self, url: str, key: str, *, timeout: float = 180.0, retries: int = 2) -> None:
        try:
            address = httpx2.URL(url)
        except httpx2.InvalidURL:
            address = httpx2.URL("")
        if address.scheme not in ("http", "https") or not address.host or address.query or address.fragment:
            raise ValueError("the gateway's address must be http(s)://host[:port]")
        if not (key and key.isascii() and key.isprintable() and " " not in key):
            raise ValueError("the key must be printable ASCII without spaces")
        if timeout <= 0 or retries < 0:
            raise ValueError("timeout must be above 0, and retries not below 0")
        self._address = address.netloc.decode()
        self._timeout = timeout
        self._retries = retries
        self._http = httpx2.AsyncClient(
            base_url=address,
            headers={"Authorization": f"Bearer {key}", "User-Agent": "kontext-gateway-client"},
            timeout=httpx2.Timeout(None, connect=_CONNECT_SECONDS),
            limits=httpx2.Limits(max_connections=None),
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close all connections."""
        await self._http.aclose()

    async def generate(self, /, prompt: str, *, idempotency_key: str | None = None, **parameters: Any) -> Picture:
        """Make a picture from a text.

        Args:
            idempotency_key: names this call; without it a random one is made. The same on all re-sends.
            parameters: any field of `POST /v1/generate` (`variant`, `seed`, `aspect_ratio`, ...); None counts as not
                given. The gateway checks them and refuses what it does not know.
        """
        return await self._make("generate", {"prompt": prompt}, parameters, idempotency_key)

    async def edit(
        self,
        /,
        image: bytes | os.PathLike[str] | str,
        prompt: str,
        *,
        idempotency_key: str | None = None,
        **parameters: Any,
    ) -> Picture:
        """Change a picture as an instruction says.

        Args:
            image: the encoded picture, the path of a file, or the id of an earlier picture (`img_...`).
            parameters: as for `generate`, of `POST /v1/edit`.

        Raises:
            OSError: the file cannot be read.
        """
        return await self._make("edit", {"prompt": prompt, "image": await _image(image)}, parameters, idempotency_key)

    async def quote(
        self,
        /,
        operation: Literal["generate", "edit"],
        prompt: str,
        *,
        image: bytes | os.PathLike[str] | str | None = None,
        **parameters: Any,
    ) -> dict[str, Any]:
        """`POST /v1/quote`: price, policy decision, cache hit and whether it would be admitted now, as parsed JSON.

        Nothing is made, held or paid. What policy or a limit would refuse is an answer with `allowed: false`.

        Args:
            image: of an edit, as `edit` takes it; it may be left out.
            parameters: as for `generate` and `edit`.

        Raises:
            OSError: the file cannot be read.
        """
        fields = {"operation": operation, "prompt": prompt} | _given(parameters)
        if image is not None:
            fields["image"] = await _image(image)
        return await self._read("/v1/quote", json.dumps(fields).encode())

    async def image(self, image_id: str) -> StoredPicture:
        """A stored picture, by its id."""
        if not IMAGE_ID.fullmatch(image_id):
            raise ValueError("an image id is img_ and 48 hexadecimal digits")
        answer = await self._call("GET", f"/v1/images/{image_id}")
        content_type = answer.headers.get("content-type", "")
        if not content_type.startswith("image/"):
            raise unreadable(answer, None)
        return StoredPicture(answer.content, image_id, content_type, answer.headers.get("etag", "").strip('"'))

    async def me(self) -> dict[str, Any]:
        """`GET /v1/me`: the tenant, what it may use, its limits and what remains, as parsed JSON."""
        return await self._read("/v1/me")

    async def models(self) -> list[dict[str, Any]]:
        """`GET /v1/models`: one record per job type, with parameters, prices and typical times, as parsed JSON."""
        return list((await self._read("/v1/models")).get("data") or ())

    async def usage(self, *, from_: date | str | None = None, **query: date | str | None) -> dict[str, Any]:
        """`GET /v1/usage`: what the tenant spent, by window and group, as parsed JSON.

        Args:
            from_: the parameter `from`, whose name is a word of Python.
            query: any other parameter of the call (`to`, `per`, `group_by`, ...); None counts as not given.
        """
        return await self._read("/v1/usage" + _query({"from": from_, **query}))

    async def jobs(self, *, limit: int | None = None) -> list[dict[str, Any]]:
        """`GET /v1/jobs`: the key's recent jobs, newest first, with pictures that are still there, as parsed JSON."""
        return list((await self._read("/v1/jobs" + _query({"limit": limit}))).get("data") or ())

    async def _make(
        self, operation: str, fields: dict[str, Any], parameters: dict[str, Any], idempotency_key: str | None
    ) -> Picture:
        if "response_format" in parameters:
            raise TypeError(f"{operation}() sets response_format itself")
        body = json.dumps(fields | _given(parameters) | {"response_format": "b64_json"}).encode()
        name = str(uuid.uuid4()) if idempotency_key is None else idempotency_key
        if not (name and name.isascii() and name.isprintable()):
            raise ValueError("idempotency_key must be printable ASCII")
        answer = await self._call("POST", f"/v1/{operation}", body, name)
        try:
            return picture(answer.json())
        except (KeyError, TypeError, ValueError, AttributeError):
            failure = unreadable(answer, name)
        raise failure

    async def _read(self, path: str, body: bytes | None = None) -> dict[str, Any]:
        answer = await self._call("GET" if body is None else "POST", path, body)
        try:
            found = answer.json()
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise unreadable(answer, None)
        return found

    async def _call(
        self, method: str, path: str, body: bytes | None = None, idempotency_key: str | None = None
    ) -> httpx2.Response:
        """The answer of a success. `idempotency_key` marks the call as a paid one."""
        until = time.monotonic() + self._timeout
        left = self._retries
        while not (answer := await self._exchange(method, path, body, idempotency_key, until)).is_success:
            refused = refusal(answer, idempotency_key)
            # Callers that were refused together do not come back together.
            pause = (refused.retry_after or 0) * random.uniform(1.0, 1.25)
            late = time.monotonic() + pause >= until or _later(refused.problem, until)
            if not refused.resendable or not left or late:
                raise refused
            left -= 1
            await asyncio.sleep(pause)
        return answer

    async def _exchange(
        self, method: str, path: str, body: bytes | None, idempotency_key: str | None, until: float
    ) -> httpx2.Response:
        headers = {"Accept": "image/*" if path.startswith("/v1/images/") else "application/json"}
        content = None if body is None else _Body(body)
        if content is not None:
            headers |= {"Content-Type": "application/json", "Content-Length": str(content.length)}
        if idempotency_key is not None:
            headers["Idempotency-Key"] = idempotency_key
        try:
            async with asyncio.timeout(until - time.monotonic()):
                return await self._http.request(method, path, content=content, headers=headers)
        except _NO_CONNECTION as error:
            code, text = "unreachable", f"no connection to {self._address}: {error or type(error).__name__}"
        except TimeoutError:
            code, text = "no_answer", f"no answer within {self._timeout:g} s"
        except httpx2.HTTPError:
            code, text = "no_answer", "the connection ended without an answer"
            if content is not None and not content.sent:
                text = "the connection was closed before the whole request was sent; is the picture too large?"
        paid = idempotency_key is not None and content is not None and content.sent
        # Raised outside the handlers: a transport's exception holds the request with the key and must not be chained.
        raise GatewayUnreachable(code, text, "unknown" if paid else "no", idempotency_key)


async def _image(image: bytes | os.PathLike[str] | str) -> dict[str, str]:
    """A picture as a JSON body holds it."""
    if isinstance(image, str) and IMAGE_ID.fullmatch(image):
        return {"image_id": image}
    data = image if isinstance(image, bytes) else await asyncio.to_thread(Path(image).read_bytes)
    return {"b64": base64.b64encode(data).decode()}


def _given(parameters: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in parameters.items() if value is not None}


def _query(parameters: Mapping[str, Any]) -> str:
    given = _given(parameters)
    return "?" + urlencode(given) if given else ""


def _later(problem: dict[str, Any], until: float) -> bool:
    """Whether this is a window that ends after the time is up: its `Retry-After` is cut to a minute."""
    reset = problem.get("reset")
    if problem.get("code") != "image_quota_exhausted" or not isinstance(reset, int):
        return False
    return reset - time.time() > until - time.monotonic()
