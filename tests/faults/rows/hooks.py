"""S-01 to S-03: webhooks to where they may not go, to receivers that never end, and forged ones."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from typing import Any

from standardwebhooks import Webhook

from app.jobs.address import Target, parse
from app.jobs.post import post
from tests.faults.checker import check, received
from tests.faults.queueing import empty, put_all
from tests.faults.row import Run, row
from tests.faults.rows.queues import FAST, HOOKS, hooked
from tests.faults.storm import PATIENT, token
from tests.fleet import fleet, wait_until
from tests.jobs.receiver import receiving
from tests.jobs.urls import ADDRESSES, ALLOW, ELSEWHERE, URLS
from tests.pipeline.calls import generate
from tests.pipeline.queued import ASYNC


class Trap:
    """Listeners on loopback, IPv4 and IPv6, that count who connects."""

    def __init__(self) -> None:
        self.connects, self._sockets = 0, []
        first = socket.create_server(("127.0.0.1", 0))
        self.port = int(first.getsockname()[1])
        self._sockets = [first, socket.create_server(("::1", self.port), family=socket.AF_INET6)]
        for one in self._sockets:
            threading.Thread(target=self._count, args=(one,), daemon=True).start()

    def _count(self, listener: socket.socket) -> None:
        while True:
            try:
                listener.accept()[0].close()
            except OSError:
                return
            self.connects += 1

    def close(self) -> None:
        """Stop listening."""
        for one in self._sockets:
            one.close()


@row(
    "S-01",
    "webhooks to private, loopback, metadata and mapped addresses, in every spelling and by rebinding: 0 connects",
    ci={"rounds": 1},
    nightly={"rounds": 10},
)
def forged_requests(run: Run, rounds: int) -> None:
    trap, tried = Trap(), 0
    target = parse(f"https://hooks.acme.example:{trap.port}/")

    async def resolved_to(*addresses: str) -> str:
        async def lookup(host: str, port: int) -> list[Any]:
            kinds = [socket.AF_INET6 if ":" in one else socket.AF_INET for one in addresses]
            return [(kind, socket.SOCK_STREAM, 6, "", (one, port)) for kind, one in zip(kinds, addresses, strict=True)]

        return await post(target, {}, b"{}", lookup=lookup)

    for _ in range(rounds):
        for address in ADDRESSES:
            for names in ((address,), ("93.184.215.14", address), (address, "93.184.215.14")):
                assert asyncio.run(resolved_to(*names)) == "forbidden_address"
                tried += 1
        tried += asyncio.run(_rebound(target))
    allow = json.dumps([*ALLOW, f"https://hooks.acme.example:{trap.port}/"])
    file = f"version: 1\ntenants:\n  acme: {{name: A, webhooks: {{allow: {allow}}}}}\n"
    with fleet(run.folder, file, sandbox=FAST, **PATIENT) as running:
        running.command("webhooks", "rotate", "--tenant", "acme")
        key, local = token(running), [f"https://{host}:{trap.port}/" for host in ("127.0.0.1", "[::1]", "localhost")]
        for url in (*URLS, *ELSEWHERE, *local):
            answer = generate(running.urls[0], key, ASYNC, webhook_url=url)
            assert (answer.status, answer.json.get("field")) == (422, "webhook_url"), url
            tried += 1
        assert received(running) == 0
        check(running, "acme")
    run.reached = f"{tried} URLs and addresses, {trap.connects} connects"
    trap.close()
    assert trap.connects == 0


async def _rebound(target: Target) -> int:
    """A name that leads to an address where nobody listens, and from the second time on to the trap."""
    answers = iter(["127.0.0.2"])

    async def lookup(host: str, port: int) -> list[Any]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (next(answers, "127.0.0.1"), port))]

    assert await post(target, {}, b"{}", loopback=True, lookup=lookup) == "no_answer"
    return 1


@row(
    "S-02",
    "a receiver that never answers holds up its own tenant only, and its webhooks end in the list of dead ones",
    ci={"stalled": 6, "quick": 12},
    nightly={"stalled": 200, "quick": 200},
)
def a_tarpit(run: Run, stalled: int, quick: int) -> None:
    pauses = HOOKS | {"GATEWAY_WEBHOOK_PAUSES": "0.2s"}
    with receiving(stall=30) as tarpit, receiving() as good:
        file = hooked(good).replace(f"'{good.url}/']", f"'{good.url}/', '{tarpit.url}/']")
        with fleet(run.folder, file, sandbox=FAST, **PATIENT, **pauses) as running, running.redis as client:
            keys = {tenant: token(running, tenant=tenant) for tenant in ("acme", "zeta")}
            for tenant in keys:
                running.command("webhooks", "rotate", "--tenant", tenant)
            put_all(running, keys["acme"], range(stalled), webhook_url=f"{tarpit.url}/in")
            empty(running, "acme", 60)
            began = time.monotonic()
            put_all(running, keys["zeta"], range(1000, 1000 + quick), webhook_url=f"{good.url}/in")
            wait_until(lambda: len(good.got) == quick, 60)
            took = time.monotonic() - began
            wait_until(lambda: client.zcard("kg:{t:acme}:hooks:due") == 0, 30 + stalled * 5)
            dead = client.zcard("kg:{t:acme}:hooks:dead")
            last = {client.hget(f"kg:{{t:acme}}:hook:{name.decode()}", "last")
                    for name in client.zrange("kg:{t:acme}:hooks:dead", 0, -1)}  # fmt: skip
            run.reached = f"{quick} delivered within {took:.1f} s beside {stalled} that stall; {dead} dead of {last}"
            assert took < run.within(5)
            assert (dead, last) == (stalled, {b"timeout"})
            check(running, "acme", "zeta")


@row(
    "S-03",
    "webhooks verified by the specification's own library, over a rotation: genuine all, changed or old none",
    ci={"hooks": 10},
    nightly={"hooks": 500},
)
def forged_webhooks(run: Run, hooks: int) -> None:
    with receiving() as receiver, fleet(run.folder, hooked(receiver), sandbox=FAST, **PATIENT, **HOOKS) as running:
        old = running.command("webhooks", "rotate", "--tenant", "acme").strip()
        new = running.command("webhooks", "rotate", "--tenant", "acme", "--overlap", "1h").strip()
        put_all(running, token(running), range(hooks), webhook_url=f"{receiver.url}/in")
        wait_until(lambda: len(receiver.got) == hooks, 60)
        verified = refused = 0
        for headers in receiver.headers:
            (body,) = receiver.got[headers["webhook-id"]]
            stamp = int(headers["webhook-timestamp"])
            for secret in (old, new):
                assert Webhook(secret).verify(body, headers)["type"] == "job.succeeded"
                verified += 1
                for wrong, changed in (
                    (headers, body.replace(b"succeeded", b"refunded!")),
                    (headers | {"webhook-id": "msg_another"}, body),
                    (headers | {"webhook-timestamp": str(stamp - 301)}, body),
                    (headers | {"webhook-timestamp": str(stamp + 301)}, body),
                    (headers | {"webhook-signature": "v1,AAAA"}, body),
                ):
                    refused += _refused(secret, changed, wrong)
        run.reached = f"{verified} of {2 * hooks} verified, {refused} of {10 * hooks} forgeries refused"
        assert (verified, refused) == (2 * hooks, 10 * hooks)
        check(running, "acme")


def _refused(secret: str, body: bytes, headers: dict[str, str]) -> bool:
    try:
        Webhook(secret).verify(body, headers)
    except Exception:
        return True
    return False
