"""One carrier for a key, one decision everywhere, and no key but the very one that was made.

Twenty thousand hostile values stand for the design's hundred thousand, and all 62 keys that can share their first
40 characters for its million.
"""

from __future__ import annotations

import base64
import json
import random
import re
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from fastapi import APIRouter, FastAPI

from app.domain import tokens
from app.domain.tenant import KeyPolicy
from app.tenants import Keyring
from tests.door.wire import gateway
from tests.e2e.exchange import Answer, on_keyring, send
from tests.e2e.routes import Declared, declared
from tests.e2e.test_authentication import listeners  # noqa: F401
from tests.fleet import PEPPER, Fleet, Replica, wait_until
from tests.images.pictures import picture

JSON = ("Content-Type", "application/json")
CANARY = "nachtigall"


@dataclass
class Target:
    """The gateway, its keys by what they are, and a picture of each tenant."""

    fleet: Fleet
    replica: Replica
    keys: dict[str, str]
    pictures: dict[str, str]
    jobs: dict[str, str]


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    with gateway(tmp_path_factory.mktemp("keys")) as (running, replica):

        async def make(keyring: Keyring) -> dict[str, str]:
            plain = KeyPolicy()
            found = {name: (await keyring.create(name, "test", policy=plain))[1] for name in ("acme", "other", "slow")}
            found["expired"] = (await keyring.create("acme", "e", expires=int(time.time()) - 1, policy=plain))[1]
            found["edit only"] = (await keyring.create("acme", "o", policy=KeyPolicy(operations=("edit",))))[1]
            found["generate only"] = (await keyring.create("acme", "g", policy=KeyPolicy(operations=("generate",))))[1]
            revoked, found["revoked"] = await keyring.create("acme", "r", policy=plain)
            await keyring.revoke("acme", revoked)
            return found

        keys = on_keyring(running, make) | {"malformed": "kgw_live_" + "0" * 38, "unknown": tokens.mint()}
        found = Target(running, replica, keys, {}, {"nobody": "01234567-89ab-4cde-8f01-23456789abcd"})
        for tenant in ("acme", "other"):
            answer = _call(
                replica.url, "POST", "/v1/generate", keys[tenant], body=b'{"prompt":"a lighthouse","seed":1}'
            )
            found.pictures[tenant] = answer.headers["gateway-image-id"]
            found.jobs[tenant] = _queued(replica.url, keys[tenant])
        yield found
        time.sleep(0.2)
        log = replica.log.read_text()
        assert CANARY not in log
        assert not any(key in log for key in keys.values())


def _queued(url: str, key: str) -> str:
    """The id of a job that was queued and is processed."""
    job = str(_call(url, "POST", "/v2/job/async", key, body=json.dumps(JOB).encode()).document["id"])
    path = f"/v2/job/async/{job}/job.state.current"
    wait_until(lambda: _call(url, "GET", path, key).body == b"processed", 20)
    return job


def _call(url: str, method: str, path: str, key: str | None, *headers: tuple[str, str], body: bytes = b"") -> Answer:
    carriers = [] if key is None else [("Authorization", f"Bearer {key}")]
    return send(url, method, path, [*carriers, JSON, *headers], body)


HOSTS = ("", "localhost", "evil.example", "127.0.0.1:1", "gateway.example@evil", "a b")
IDENTITIES = {
    None: 401, "malformed": 401, "unknown": 401, "revoked": 401, "expired": 401, "acme": 200, "other": 200,
    "edit only": 200, "generate only": 200,
}  # fmt: skip
FORBIDDEN = {
    "edit only": ("/v1/generate", "/v2/job", "/v2/job/async", "/v1/images/generations"),
    "generate only": ("/v1/edit", "/v1/images/edits"),
}
PIXEL = base64.b64encode(picture("png", 256, 256)).decode()
JOB = {"type": "inference.flux-kontext.pro.txt2img.v2", "config": {"prompt": "a lighthouse"}}
BODIES = {  # own id, other tenant's id, nobody's id: what an edit starts from
    "/v1/generate": lambda image: {"prompt": "a lighthouse"},
    "/v1/edit": lambda image: {"prompt": "more sky", "image": {"image_id": image}},
    "/v1/quote": lambda image: {"operation": "edit", "prompt": "more sky", "image": {"image_id": image}},
    "/v1/client-tokens": lambda image: {},
    "/v1/images/generations": lambda image: {"prompt": "a lighthouse"},
    "/v1/images/edits": lambda image: {"prompt": "more sky", "image": f"data:image/png;base64,{PIXEL}"},
    "/v2/job": lambda image: JOB,
    "/v2/job/async": lambda image: JOB,
}
MADE = ("/v1/client-tokens", "/v2/job/async")


@pytest.mark.parametrize("listener", ["public", "ops"])
def test_every_route_and_method_for_every_caller_and_every_object(
    target: Target, listeners: dict[str, FastAPI], listener: str  # noqa: F811
) -> None:  # fmt: skip
    base = target.replica.url if listener == "public" else target.replica.ops
    pictures = target.pictures | {"nobody": "img_" + "0" * 48}
    seen = 0
    for one in declared(listeners[listener]):
        for identity, usual in IDENTITIES.items():
            key = None if identity is None else target.keys[identity]
            queued = one.path.startswith("/v2/job/async/")
            owner = identity if queued else "other" if identity == "other" else "acme"  # a job is its own key's
            for whose, image in (target.jobs if queued else pictures).items():
                named = queued or "{image_id}" in one.path or one.path in ("/v1/edit", "/v1/quote")
                if (whose != "acme" and not named) or (one.method == "DELETE" and whose == owner):
                    continue  # the same call again, or one that ends what the others ask for
                path = re.sub(r"\{[^}]*\}", image, one.path.replace("{filename}", "output.jpg"))
                body = json.dumps(BODIES[one.path](image)).encode() if one.path in BODIES else b""
                wanted = usual
                if one.role == "open":
                    wanted = 200
                elif usual == 200 and (whose != owner if named else "{" in one.path):
                    wanted = 404  # of other kinds of object there is none by this id
                if usual == 200 and one.method != "POST" and one.path in ("/v1/images/generations", "/v1/images/edits"):
                    wanted = 405
                elif one.path in FORBIDDEN.get(identity, ()):
                    wanted = 403
                for host in HOSTS if wanted >= 400 else HOSTS[:1]:
                    more = [("X-Forwarded-Host", host), ("X-Original-URL", "/healthz")] if host else []
                    answer = _call(base, one.method, path, key, *more, body=body)
                    if wanted == 200 and one.path in MADE:
                        wanted = 201
                    assert answer.status == wanted, (one, identity, whose, host, answer.body[:200])
                    seen += 1
    print(f"\n{listener}: {seen} calls")


def test_a_route_that_says_nothing_of_its_callers_is_found() -> None:
    router = APIRouter()

    @router.get("/v1/forgotten")
    async def forgotten() -> None: ...

    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    app.include_router(router)
    assert Declared("GET", "/v1/forgotten", None) in declared(app)


OTHERS = {
    "x-api-key": lambda key: ([("X-API-Key", key)], ""),
    "api-key": lambda key: ([("Api-Key", key)], ""),
    "a cookie": lambda key: ([("Cookie", f"Authorization=Bearer {key}; token={key}")], ""),
    "Proxy-Authorization": lambda key: ([("Proxy-Authorization", f"Bearer {key}")], ""),
    "the query": lambda key: ([], f"?key={key}&access_token={key}&api_key={key}&authorization=Bearer%20{key}"),
    "X-Authorization": lambda key: ([("X-Authorization", f"Bearer {key}")], ""),
    "X-Forwarded-Authorization": lambda key: ([("X-Forwarded-Authorization", f"Bearer {key}")], ""),
}


def _formed(key: str) -> str:
    secret = tokens.digest(key, PEPPER.encode())[:32]
    return tokens.PREFIX + secret + tokens._checksum(secret)


WRONG = {
    "Basic": lambda key: [("Authorization", "Basic " + base64.b64encode(f"x:{key}".encode()).decode())],
    "Token": lambda key: [("Authorization", f"Token {key}")],
    "bare": lambda key: [("Authorization", key)],
    "two schemes": lambda key: [("Authorization", f"Basic x, Bearer {key}")],
    "two keys": lambda key: [("Authorization", f"Bearer {key} {key}")],
    "two headers": lambda key: [("Authorization", f"Bearer {key}")] * 2,
    "two headers, one empty": lambda key: [("Authorization", ""), ("Authorization", f"Bearer {key}")],
    "quoted": lambda key: [("Authorization", f'Bearer "{key}"')],
    "with a NUL escape": lambda key: [("Authorization", f"Bearer {key}%00")],
    "longer": lambda key: [("Authorization", f"Bearer {key}x")],
    "shorter": lambda key: [("Authorization", f"Bearer {key[:-1]}")],
    "stored hash": lambda key: [("Authorization", f"Bearer {tokens.digest(key, PEPPER.encode())}")],
    "stored hash, in the form of a key": lambda key: [("Authorization", f"Bearer {_formed(key)}")],
}


@pytest.mark.parametrize("carrier", OTHERS)
def test_a_key_in_another_place_is_no_key_and_changes_nothing_beside_one(target: Target, carrier: str) -> None:
    for path, method, body in (("/v1/me", "GET", b""), ("/v1/generate", "POST", b'{"prompt":"ab"}')):
        headers, query = OTHERS[carrier](target.keys["other"])
        alone = _call(target.replica.url, method, path + query, None, *headers, body=body)
        assert (alone.status, alone.document["code"]) == (401, "unauthenticated")
        beside = _call(target.replica.url, method, path + query, target.keys["acme"], *headers, body=body)
        assert beside.status == (200 if method == "GET" else 422)
        assert method != "GET" or beside.document["tenant"] == "acme"


def test_a_rate_is_that_of_the_key_which_counts(target: Target) -> None:
    slow = target.keys["slow"]
    headers, query = OTHERS["x-api-key"](slow)
    for _ in range(3):
        assert _call(target.replica.url, "GET", "/v1/me", target.keys["acme"], *headers).status == 200
    assert _call(target.replica.url, "GET", "/v1/me", slow).status == 200
    for carrier in OTHERS:
        headers, query = OTHERS[carrier](target.keys["acme"])
        assert _call(target.replica.url, "GET", f"/v1/me{query}", slow, *headers).status == 429


@pytest.mark.parametrize("carrier", WRONG)
def test_a_key_that_is_carried_wrongly_is_refused(target: Target, carrier: str) -> None:
    for path in ("/v1/me", f"/v1/images/{target.pictures['acme']}"):
        answer = send(target.replica.url, "GET", path, WRONG[carrier](target.keys["acme"]))
        assert (answer.status, answer.document["code"]) == (401, "unauthenticated")


def test_keys_that_share_their_first_40_characters_are_strangers(target: Target) -> None:
    key = target.keys["acme"]
    twins = []
    for last in tokens.ALPHABET:
        secret = key[9:40] + last
        twins.append("kgw_live_" + secret + tokens._checksum(secret))
    assert len({twin[:40] for twin in twins}) == 1
    answers = {twin: _call(target.replica.url, "GET", "/v1/me", twin).status for twin in twins}
    assert sorted(set(answers.values())) == [200, 401]
    assert [twin for twin, status in answers.items() if status == 200] == [key]


def test_twenty_thousand_hostile_authorizations_are_401_or_less_and_leave_no_trace(target: Target) -> None:
    chance = random.Random(11)
    alphabet = ["'", '"', "\\", "%n", "%s", "{", "}", "$(", "`", "é", "\u00ff", "\t", " ", ",", ";", "=", "kgw_live_",
                CANARY, "Bearer ", "\x80", "<script>", "../", "0" * 38, "A" * 500]  # fmt: skip
    place = urlsplit(target.replica.url)
    statuses: dict[int, int] = {}
    for _ in range(200):
        values = ["".join(chance.choices(alphabet, k=chance.randrange(1, 12))) for _ in range(100)]
        with socket.create_connection((place.hostname, place.port), timeout=20) as connection:
            stream = connection.makefile("rb")
            for value in values:
                line = f"GET /v1/me HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {CANARY}{value}\r\n\r\n"
                connection.sendall(line.encode("latin-1"))
                status = int(stream.readline().split()[1])
                length = 0
                while (header := stream.readline()) not in (b"\r\n", b""):
                    if header.lower().startswith(b"content-length:"):
                        length = int(header.split(b":")[1])
                found: dict[str, Any] = json.loads(stream.read(length))
                assert found["code"] == "unauthenticated"
                statuses[status] = statuses.get(status, 0) + 1
    assert statuses == {401: 20_000}
    assert CANARY not in Path(target.replica.log).read_text()
