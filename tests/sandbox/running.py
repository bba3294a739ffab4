"""A real sandbox behind a real socket, in a thread of its own, and the few calls that tests make on it."""

import asyncio
import concurrent.futures
import io
import json
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx2
import uvicorn
from PIL import Image
from starlette.applications import Starlette

from app.sandbox import SandboxConfig, serve_sandbox

GENERATE = "inference.flux-kontext.pro.txt2img.v2"
MAX_GENERATE = "inference.flux-kontext.max.txt2img.v2"
EDIT = "inference.flux-kontext.pro.img2img.v2"
DEV = "inference.flux-fast.dev-kontext.img2img.v1"
AUTHORISED = {"authorization": "Bearer sandbox-token"}


Files = list[tuple[str, tuple[str | None, bytes | str] | tuple[str | None, bytes | str, str | None]]]


@dataclass
class Box:
    """One running sandbox."""

    url: str
    client: httpx2.Client

    def job(
        self,
        kind: str = GENERATE,
        accept: str = "multipart/form-data",
        price: bool = False,
        picture: bytes | None = None,
        **config: Any,
    ) -> httpx2.Response:
        """Sends one job, as JSON without a picture and as multipart with one."""
        document = {"type": kind, "config": {"prompt": "a red fox", "seed": 1} | config}
        url, headers = "/v2/job" + ("?price=true" if price else ""), AUTHORISED | {"accept": accept}
        if picture is None:
            return self.client.post(url, headers=headers, json=document)
        files: Files = [
            ("input", ("image.jpg", picture, "image/jpeg")),
            ("job", ("job.json", json.dumps(document), "application/json")),
        ]
        return self.client.post(url, headers=headers, files=files)

    def faults(self, *faults: dict[str, Any]) -> None:
        assert self.client.put("/sandbox/faults", json=list(faults)).status_code == 200

    def stats(self) -> dict[str, Any]:
        stats: dict[str, Any] = self.client.get("/sandbox/stats").json()
        return stats

    def jobs(self) -> list[dict[str, Any]]:
        jobs: list[dict[str, Any]] = self.client.get("/sandbox/jobs").json()["jobs"]
        return jobs

    def bill(self) -> dict[str, Any]:
        bill: dict[str, Any] = self.client.get("/sandbox/bill").json()
        return bill

    def raw(self, request: bytes) -> bytes:
        """Every byte that comes back on one connection until it ends."""
        address = httpx2.URL(self.url)
        with socket.create_connection((address.host, address.port or 80), timeout=10) as connection:
            connection.sendall(request)
            received = b""
            while chunk := connection.recv(65_536):
                received += chunk
            return received


def raw_request(body: bytes, content_type: str = "application/json", accept: str = "multipart/form-data") -> bytes:
    head = (
        "POST /v2/job HTTP/1.1\r\nHost: sandbox\r\nAuthorization: Bearer sandbox-token\r\nConnection: close\r\n"
        f"Accept: {accept}\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def raw_job(**config: Any) -> bytes:
    document = {"type": GENERATE, "config": {"prompt": "a red fox", "seed": 1} | config}
    return raw_request(json.dumps(document).encode())


@contextmanager
def running(config: SandboxConfig) -> Iterator[Box]:
    loop = asyncio.new_event_loop()
    stop = asyncio.Event()
    url: concurrent.futures.Future[str] = concurrent.futures.Future()

    def serve() -> None:
        try:
            loop.run_until_complete(serve_sandbox(config, ready=url.set_result, stop=stop))
        except BaseException as error:
            url.set_exception(error)
            raise
        finally:
            loop.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        base = url.result(10)
        with httpx2.Client(base_url=base, trust_env=False, timeout=10) as client:
            yield Box(base, client)
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(10)
        assert not thread.is_alive()


@contextmanager
def bare_uvicorn(app: Starlette) -> Iterator[str]:
    """An app under uvicorn as anyone may start it."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_config=None))
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(10)
        assert not thread.is_alive()


@dataclass
class Part:
    name: str
    filename: str
    content_type: str
    data: bytes


PART = re.compile(
    rb'Content-Disposition: form-data; name="([^"]*)"; filename="([^"]*)"\r\nContent-Type: ([^\r]*)\r\n\r\n(.*)', re.S
)


def parts(response: httpx2.Response) -> list[Part]:
    """The parts of a multipart answer, read by nothing but its bytes."""
    boundary = response.headers["content-type"].partition("boundary=")[2].encode()
    pieces = (b"\r\n" + response.content).split(b"\r\n--" + boundary)
    assert pieces[0] == b""
    assert pieces[-1] == b"--\r\n"
    found = []
    for piece in pieces[1:-1]:
        match = PART.fullmatch(piece.removeprefix(b"\r\n"))
        assert match is not None
        name, filename, content_type, data = match.groups()
        found.append(Part(name.decode(), filename.decode(), content_type.decode(), data))
    return found


def document(response: httpx2.Response) -> dict[str, Any]:
    """The job document of any answer that has one."""
    if response.headers["content-type"] == "application/json":
        found: dict[str, Any] = response.json()
    else:
        found = json.loads(next(part.data for part in parts(response) if part.name == "job"))
    return found


def opened(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


def picture(size: tuple[int, int] = (400, 300), form: str = "PNG", **options: Any) -> bytes:
    """A picture with enough in it to be told from another."""
    slope = Image.linear_gradient("L")
    bands = (slope, slope.transpose(Image.Transpose.ROTATE_90), Image.radial_gradient("L"))
    out = io.BytesIO()
    Image.merge("RGB", bands).resize(size).save(out, form, **options)
    return out.getvalue()
