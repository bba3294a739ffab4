"""Uploads take a bounded amount of memory, and nothing is read of one that its head is enough to refuse."""

from __future__ import annotations

import asyncio
import socket
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from time import sleep
from urllib.parse import urlsplit

import pytest

from app.domain.tenant import KeyPolicy
from app.surfaces.body import FORM_BYTES
from app.tenants import Keyring
from tests.door.uploads import MB, ROOM, UPLOAD, early
from tests.door.wire import LATE, Ending, Wire, bytes_read, established, gateway, head, memory, upload_head
from tests.e2e.exchange import FILE, FORM, form, make_keys, on_keyring, send
from tests.fleet import Fleet, Replica, wait_until
from tests.images.pictures import encoded, noise

Target = tuple[Fleet, Replica, dict[str, str]]


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    with gateway(tmp_path_factory.mktemp("uploads")) as (running, replica):
        keys = make_keys(running, ["acme", "slow"])

        async def narrow(keyring: Keyring) -> str:
            return (await keyring.create("acme", "narrow", policy=KeyPolicy(operations=("generate",))))[1]

        yield running, replica, keys | {"generate only": on_keyring(running, narrow)}


def _many(url: str, data: bytes, count: int) -> list[Ending]:
    async def run() -> list[Ending]:
        return await asyncio.gather(*(early(url, data, UPLOAD) for _ in range(count)))

    return asyncio.run(run())


@pytest.mark.parametrize(
    ("key", "status"), [(None, 401), ("kgw_live_x", 401), ("generate only", 403), ("slow", 429)], ids=str
)
@pytest.mark.parametrize("length", [f"Content-Length: {len(UPLOAD)}", "Transfer-Encoding: chunked"])
def test_an_upload_that_its_head_refuses_is_not_read(target: Target, key: str | None, status: int, length: str) -> None:
    _, replica, keys = target
    used = None if key is None else keys.get(key, key)
    if key == "slow":
        send(replica.url, "GET", "/v1/me", [("Authorization", f"Bearer {used}")])
    before, count = bytes_read(replica), 50
    body = b"%x\r\n" % len(UPLOAD) if length.startswith("Transfer") else b""
    ends = _many(replica.url, upload_head(used, length) + body, count)
    each = (bytes_read(replica) - before) / count
    print(f"\n{status}: {each / 1024:.1f} KiB read of each upload")
    assert [end.statuses for end in ends] == [[status]] * count
    assert all(b"connection: close" in end.data.lower() for end in ends)
    assert each <= 64 * 1024


def test_who_sends_its_body_late_can_still_read_why_it_was_refused(target: Target) -> None:
    _, replica, _ = target
    place = urlsplit(replica.url)
    with socket.create_connection((place.hostname, place.port), timeout=10) as client:
        client.sendall(upload_head(None, f"Content-Length: {len(UPLOAD)}"))
        sleep(4)
        for _ in range(2):  # on a connection that was closed the first piece would be answered by a reset
            client.sendall(UPLOAD[:100_000])
            sleep(0.2)
        assert client.recv(65_536).startswith(b"HTTP/1.1 401 ")
        wait_until(lambda: not established(replica.process.pid, client.getsockname()[1]), 2 + LATE)


def test_who_sends_nothing_after_an_early_answer_is_hung_up_on(target: Target) -> None:
    _, replica, _ = target
    place = urlsplit(replica.url)
    with socket.create_connection((place.hostname, place.port), timeout=10) as client:
        client.sendall(upload_head(None, f"Content-Length: {len(UPLOAD)}"))
        assert client.recv(65_536).startswith(b"HTTP/1.1 401 ")
        port = client.getsockname()[1]
        assert established(replica.process.pid, port)
        wait_until(lambda: not established(replica.process.pid, port), 10 + LATE)
        client.close()
    with socket.create_connection((place.hostname, place.port), timeout=10) as client:
        client.sendall(upload_head(None, f"Content-Length: {len(UPLOAD)}"))
        assert client.recv(65_536).startswith(b"HTTP/1.1 401 ")
        port = client.getsockname()[1]
    wait_until(lambda: not established(replica.process.pid, port), 2)  # one that leaves is let go at once


def test_a_small_request_is_taken_while_there_is_no_room_for_uploads(target: Target) -> None:
    _, replica, keys = target

    async def run() -> None:
        wires = [await Wire.open(replica.url) for _ in range(ROOM // len(UPLOAD))]
        for wire in wires:
            await wire.send(upload_head(keys["acme"], f"Content-Length: {len(UPLOAD)}") + UPLOAD[:1000])
        await asyncio.sleep(0.5)  # their heads are read
        end = await early(replica.url, upload_head(keys["acme"], f"Content-Length: {len(UPLOAD)}"), UPLOAD)
        assert end.code == "overloaded"
        assert b"retry-after: 2" in end.data.lower()
        small = head("POST", "/v1/generate", keys["acme"], "Content-Type: application/json", "Content-Length: 2")
        assert (await early(replica.url, small + b"{}", b"")).statuses == [422]
        for wire in wires:
            await wire.drop()

    asyncio.run(run())


def test_a_body_of_unknown_length_is_counted_as_it_comes(target: Target) -> None:
    _, replica, keys = target
    chunk = b"%x\r\n%b\r\n" % (MB // 2, b"-" * (MB // 2))
    kind = "Content-Type: application/json"

    async def one() -> Ending:
        wire = await Wire.open(replica.url)
        await wire.send(head("POST", "/v1/edit", keys["acme"], kind, "Transfer-Encoding: chunked"))
        answered = asyncio.create_task(wire.rest())
        for _ in range(60):
            if answered.done() or not await wire.send(chunk):
                break
            await asyncio.sleep(0.02)
        if not answered.done():
            await wire.send(b"0\r\n\r\n")
        return await answered

    async def run() -> list[Ending]:
        return await asyncio.gather(*(one() for _ in range(12)))

    found = Counter(end.statuses[0] for end in asyncio.run(run()))
    print(f"\n{dict(found)}; most memory ever {memory(replica):.0f} MiB")
    assert found.keys() == {400, 503}
    assert memory(replica) <= 512


@pytest.mark.parametrize("chunked", [False, True], ids=["with a length that lies", "in chunks"])
def test_no_more_is_read_than_the_limit_and_a_little(target: Target, chunked: bool) -> None:
    _, replica, keys = target
    before = bytes_read(replica)
    opening = form(("image", b"\xff\xd8\xff", FILE), end=False)[:-2]
    more = b"x" * (FORM_BYTES + 20 * MB)
    if chunked:
        data = upload_head(keys["acme"], "Transfer-Encoding: chunked")
        data += b"%x\r\n%b\r\n%x\r\n" % (len(opening), opening, len(more))
    else:
        data = upload_head(keys["acme"], f"Content-Length: {FORM_BYTES}") + opening
    end = asyncio.run(early(replica.url, data, more))
    read = bytes_read(replica) - before
    assert end.statuses == [413]
    assert end.code == "too_large"
    assert read <= FORM_BYTES + 512 * 1024


def test_uploads_that_are_abandoned_leave_neither_files_nor_room_behind(target: Target) -> None:
    running, replica, keys = target

    async def leave(after: int) -> None:
        wire = await Wire.open(replica.url)
        await wire.send(upload_head(keys["acme"], f"Content-Length: {len(UPLOAD)}") + UPLOAD[:after])
        await wire.drop()

    async def run() -> None:
        for _ in range(3):
            await asyncio.gather(*(leave(MB * number // 2) for number in range(15)))
            await asyncio.sleep(0.2)

    asyncio.run(run())
    photo = encoded(noise(600, 600), "png")  # about 1 MB: it waits for its turn in a file
    answer = send(
        replica.url,
        "POST",
        "/v1/edit",
        [("Authorization", f"Bearer {keys['acme']}"), ("Content-Type", FORM)],
        form(("prompt", b"make the sky stormy"), ("image", photo, FILE)),
    )
    assert answer.status == 200, answer.body
    files = Path(f"/proc/{replica.process.pid}/fd")
    wait_until(lambda: not [one for one in files.iterdir() if "spool" in str(one.resolve())], 5)
    assert not list(running.folder.rglob("spool/*"))
    ends = _many(replica.url, upload_head(keys["acme"], f"Content-Length: {len(UPLOAD)}"), ROOM // len(UPLOAD))
    assert {end.statuses[0] for end in ends} == {422}
