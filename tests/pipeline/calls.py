"""Plain calls to a running gateway, keys made in its ledger, and tenants files that change while it runs."""

from __future__ import annotations

import asyncio
import http.client
import json
import secrets
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from typing import Any, TypeVar
from urllib.parse import urlsplit

from PIL import Image

from app.domain.tenant import KeyPolicy
from app.store.redis import Store
from app.tenants import Keyring
from tests.fleet import PEPPER, Fleet, get_json

T = TypeVar("T")


@dataclass(frozen=True)
class Answer:
    """One answer of the gateway."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)

    @property
    def code(self) -> str:
        """ok, or the code of an error."""
        return "ok" if self.status < 400 else str(self.json["code"])

    @property
    def source(self) -> str:
        """upstream, cache or coalesced."""
        return self.headers["gateway-source"]

    @property
    def refusal(self) -> tuple[int, str, str]:
        """Status, code and what it says of the money."""
        return self.status, self.code, self.json["charged"]


def call(
    url: str,
    path: str,
    token: str,
    *,
    body: bytes | None = None,
    headers: Mapping[str, str] | None = None,
    method: str | None = None,
) -> Answer:
    """One exchange on a connection of its own."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=60)
    try:
        wanted = method or ("GET" if body is None else "POST")
        connection.request(wanted, path, body, {"Authorization": f"Bearer {token}"} | dict(headers or {}))
        answer = connection.getresponse()
        return Answer(answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read())
    finally:
        connection.close()


def generate(url: str, token: str, headers: Mapping[str, str] | None = None, **fields: Any) -> Answer:
    """`POST /v1/generate`."""
    body = json.dumps({"prompt": "a lighthouse at dawn"} | fields).encode()
    return call(
        url, "/v1/generate", token, body=body, headers={"Content-Type": "application/json"} | dict(headers or {})
    )


def edit(
    url: str, token: str, files: Mapping[str, bytes], headers: Mapping[str, str] | None = None, **fields: Any
) -> Answer:
    """`POST /v1/edit` as a form."""
    boundary = secrets.token_hex(16)
    body = BytesIO()
    for name, value in ({"prompt": "make the sky stormy"} | fields).items():
        text = str(value).lower() if isinstance(value, bool) else str(value)
        body.write(f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{text}\r\n'.encode())
    for name, data in files.items():
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"; filename="photo"\r\n'
        body.write(head.encode() + b"Content-Type: image/png\r\n\r\n" + data + b"\r\n")
    body.write(f"--{boundary}--\r\n".encode())
    kind = {"Content-Type": f"multipart/form-data; boundary={boundary}"}
    return call(url, "/v1/edit", token, body=body.getvalue(), headers=kind | dict(headers or {}))


def picture(colour: tuple[int, int, int] = (20, 40, 60), side: int = 320) -> bytes:
    """A PNG that conforms and has no metadata, so that it is forwarded byte for byte."""
    written = BytesIO()
    Image.new("RGB", (side, side), colour).save(written, "PNG")
    return written.getvalue()


def together(work: Sequence[Callable[[], T]]) -> list[T]:
    """Start everything at once; the results in order."""
    with ThreadPoolExecutor(len(work)) as pool:
        return [future.result() for future in [pool.submit(one) for one in work]]


def jobs(fleet: Fleet, after: int = 0) -> list[dict[str, Any]]:
    """What the stand-in for the upstream received, oldest first."""
    found: list[dict[str, Any]] = get_json(f"{fleet.upstream}/sandbox/jobs?after={after}")["jobs"]
    return found


def rows(fleet: Fleet, tenant: str) -> list[dict[str, str]]:
    """A tenant's ledger rows, oldest first."""
    client: Any = fleet.redis
    found = client.xrange(f"kg:{{t:{tenant}}}:rows")
    client.close()
    return [{name.decode(): value.decode() for name, value in row.items()} for _, row in found]


def keyring(fleet: Fleet, work: Callable[[Keyring], Any]) -> Any:
    """Run something on the fleet's keys, as the key commands do."""

    async def go() -> Any:
        store = Store(fleet.redis_url, timeout=2, connect_timeout=2, observe=lambda *_: None)
        try:
            return await work(Keyring(store, PEPPER.encode()))
        finally:
            await store.aclose()

    return asyncio.run(go())


def new_key(fleet: Fleet, tenant: str, *, expires: int = 0, policy: KeyPolicy | None = None) -> tuple[str, str]:
    """(key id, token) of a new key."""
    made: tuple[str, str] = keyring(
        fleet, lambda ring: ring.create(tenant, "test", expires=expires, policy=policy or KeyPolicy())
    )
    return made


@dataclass
class Policies:
    """The tenants file of a fleet: tenant -> its block in YAML's flow style. Changing one writes the file."""

    blocks: dict[str, str]
    fleet: Fleet | None = None

    @property
    def text(self) -> str:
        """The file."""
        tenants = "".join(
            f"  {name}: {{name: T{', ' if block else ''}{block}}}\n" for name, block in self.blocks.items()
        )
        return f"version: 1\ntenants:\n{tenants}"

    def set(self, tenant: str, block: str) -> None:
        """Put a tenant's block in the file, in force from the next request on."""
        assert self.fleet is not None
        self.blocks[tenant] = block
        self.fleet.tenants(self.text)
