"""Who gets in: every route of both listeners has a declared role, and nobody reads what is another tenant's."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

import pytest
from fastapi import FastAPI

from app.domain.tenant import KeyPolicy
from app.errors import OPENAI
from app.surfaces.prodia_wire import BAD_TOKEN
from app.tenants import Keyring
from tests.e2e import routes
from tests.e2e.exchange import Answer, on_keyring, send
from tests.e2e.routes import FOR_TOKENS, OPEN, declared
from tests.fleet import PEPPER, Fleet, fleet

TENANTS = {
    "acme": {"name": "Acme"},
    "other": {"name": "Other"},
    "pool1": {"cache": {"scope": "pool:shared"}},
    "pool2": {"cache": {"scope": "pool:shared"}},
}


@pytest.fixture(scope="module")
def listeners(tmp_path_factory: pytest.TempPathFactory) -> dict[str, FastAPI]:
    return routes.listeners(tmp_path_factory.mktemp("listeners"), TENANTS)


@dataclass
class Target:
    """The gateway under test, its keys, and one finished picture of `acme` as its reply told of it."""

    fleet: Fleet
    keys: dict[str, str]
    key_ids: dict[str, str]

    @property
    def url(self) -> str:
        """The public listener."""
        return self.fleet.replicas[0].url

    def get(self, path: str, key: str | None = None, *headers: tuple[str, str]) -> Answer:
        carriers = [] if key is None else [("Authorization", f"Bearer {self.keys.get(key, key)}")]
        return send(self.url, "GET", path, [*carriers, *headers])

    def made(self, key: str, seed: int) -> dict[str, Any]:
        """The `image` of a fresh result."""
        headers = [
            ("Authorization", f"Bearer {self.keys[key]}"),
            ("Content-Type", "application/json"),
            ("Accept", "application/json"),
        ]
        answer = send(
            self.url, "POST", "/v1/generate", headers, json.dumps({"prompt": "a lighthouse", "seed": seed}).encode()
        )
        assert answer.status == 200
        image: dict[str, Any] = answer.document["image"]
        return image


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    folder = tmp_path_factory.mktemp("auth")
    text = json.dumps({"version": 1, "tenants": TENANTS}) + "\n"
    with fleet(
        folder, text, sandbox=("--time-scale", "0", "--picture", "small"), GATEWAY_IMAGE_URL_TTL="2s"
    ) as running:

        async def make(keyring: Keyring) -> dict[str, tuple[str, str]]:
            found = {name: await keyring.create(name, "test", policy=KeyPolicy()) for name in TENANTS}
            return found | {"doomed": await keyring.create("acme", "doomed", policy=KeyPolicy())}

        made = on_keyring(running, make)
        yield Target(
            running, {name: pair[1] for name, pair in made.items()}, {name: pair[0] for name, pair in made.items()}
        )


@pytest.mark.parametrize("listener", ["public", "ops"])
def test_every_route_says_who_may_call_it(listeners: dict[str, FastAPI], listener: str) -> None:
    found = declared(listeners[listener])
    assert {("POST", "/v1/generate"), ("POST", "/v1/edit"), ("GET", "/v1/me")} <= {
        (one.method, one.path) for one in found
    }
    assert [one for one in found if one.role is None] == []
    open_ones = {(one.method, one.path) for one in found if one.role == "open"}
    assert open_ones == (OPEN if listener == "ops" else set())


def told(answer: Answer) -> str:
    """The code of an error in whichever surface's words it is."""
    if answer.body == BAD_TOKEN:
        return "unauthenticated"
    document = answer.document
    found = document.get("code") or document.get("gateway", document.get("error"))["code"]
    return next((ours for ours, (_, theirs) in OPENAI.items() if theirs == found), found)


@pytest.mark.parametrize("listener", ["public", "ops"])
def test_without_a_key_every_route_but_the_open_ones_answers_401(
    target: Target, listeners: dict[str, FastAPI], listener: str
) -> None:
    replica = target.fleet.replicas[0]
    base = replica.url if listener == "public" else replica.ops
    for one in declared(listeners[listener]):
        path = re.sub(r"\{[^}]*\}", "img_" + "0" * 48, one.path)
        for host in ("", "localhost", "evil.example", "127.0.0.1:1", "a b", "x" * 300):
            headers = [
                ("Content-Type", "application/json"),
                *([("X-Forwarded-Host", host), ("X-Original-URL", "/healthz")] if host else []),
            ]
            for carriers in ([], [("Authorization", "Bearer nobody")], [("X-Forwarded-For", "127.0.0.1")]):
                answer = send(
                    base, one.method, path, [*carriers, *headers], b'{"prompt":"abc"}' if one.method == "POST" else b""
                )
                if one.role == "open":
                    assert answer.status == 200
                else:
                    assert (answer.status, told(answer)) == (401, "unauthenticated"), one


@pytest.mark.parametrize("listener", ["public", "ops"])
def test_a_client_token_gets_into_what_is_for_it_and_nothing_else(
    target: Target, listeners: dict[str, FastAPI], listener: str
) -> None:
    replica = target.fleet.replicas[0]
    base = replica.url if listener == "public" else replica.ops
    key, body = ("Authorization", f"Bearer {target.keys['acme']}"), ("Content-Type", "application/json")
    token = send(base, "POST", "/v1/client-tokens", [key, body], b"{}").document["token"]
    found = [one for one in declared(listeners[listener]) if one.role != "open"]
    assert {(one.method, one.path) for one in found if one.role == "any"} == FOR_TOKENS
    for one in found:
        path = re.sub(r"\{[^}]*\}", "img_" + "0" * 48, one.path)
        answer = send(base, one.method, path, [("Authorization", f"Bearer {token}"), body], b"{}")
        if one.role == "key":
            assert (answer.status, told(answer)) == (403, "forbidden"), one
        else:
            assert answer.status in (200, 400, 404, 405, 422), one


def test_what_is_for_operators_is_not_on_the_public_listener(target: Target) -> None:
    for path in (
        "/metrics",
        "/openapi.json",
        "/healthz",
        "/readyz",
        "/docs",
        "/redoc",
        "/admin/v1",
        "/console",
        "//metrics",
        "/%6detrics",
        "/metrics/",
    ):
        for key in (None, "acme"):
            assert target.get(path, key).status == 404
    for path in ("/metrics", "/openapi.json"):
        assert send(target.fleet.replicas[0].ops, "GET", path).status == 200


@pytest.mark.parametrize(
    "path",
    [
        "/v1%2fme",
        "/%76%31/me",
        "/v1/%6d%65",
        "/v1/me?x=/healthz",
        "//v1/me",
        "/v1//me",
        "/v1/./me",
        "/v1/me/",
        "/V1/me",
        "/v1/me;x",
    ],
)
def test_no_spelling_of_a_path_lets_anybody_in(target: Target, path: str) -> None:
    assert target.get(path).status in (401, 404)
    assert target.get(path, None, ("X-Original-URL", "/healthz"), ("X-Rewrite-URL", "/healthz")).status in (401, 404)


def test_a_picture_is_its_own_tenants(target: Target) -> None:
    image = target.made("acme", 1)
    path = f"/v1/images/{image['id']}"
    mine = target.get(path, "acme")
    assert (mine.status, mine.headers["etag"]) == (200, f'"{image["sha256"]}"')
    theirs, nobodys = target.get(path, "other"), target.get(path[:-1] + ("0" if path[-1] != "0" else "1"), "acme")
    for answer in (theirs, nobodys, target.get(path, "pool1")):
        assert answer.status == 404
    assert _without_id(theirs) == _without_id(nobodys)
    edit = json.dumps({"prompt": "more sky", "image": {"image_id": image["id"]}}).encode()
    headers = [("Content-Type", "application/json")]
    for key, status in (("other", 404), ("acme", 200)):
        answer = send(target.url, "POST", "/v1/edit", [*headers, ("Authorization", f"Bearer {target.keys[key]}")], edit)
        assert answer.status == status


def _without_id(answer: Answer) -> dict[str, Any]:
    return {name: value for name, value in answer.document.items() if name != "request_id"}


def test_a_pool_shares_its_pictures_and_nobody_elses(target: Target) -> None:
    path = f"/v1/images/{target.made('pool1', 2)['id']}"
    assert [target.get(path, key).status for key in ("pool1", "pool2", "acme")] == [200, 200, 404]


def test_a_signed_link_works_without_a_key_until_it_expires(target: Target) -> None:
    image = target.made("acme", 3)
    answer = target.get(image["url"])
    assert (answer.status, len(answer.body)) == (200, image["bytes"])
    assert target.get(image["url"], None, ("If-None-Match", answer.headers["etag"])).status == 304
    time.sleep(max(0.0, int(dict(parse_qsl(urlsplit(image["url"]).query))["e"]) - time.time()) + 0.05)
    assert target.get(image["url"]).status == 404


def test_a_signed_link_cannot_be_bent(target: Target) -> None:
    image, foreign = target.made("acme", 4), target.made("other", 5)
    place, query = urlsplit(image["url"]).path, dict(parse_qsl(urlsplit(image["url"]).query))
    their_query = dict(parse_qsl(urlsplit(foreign["url"]).query))
    bent = [
        query | {"e": str(int(query["e"]) + 1)}, query | {"t": "other"}, query | {"k": target.key_ids["other"]},
        query | {"s": "0" * 64},
        query | {"s": query["s"].upper()}, query | {"t": "other", "k": target.key_ids["other"]},
        query | {"e": "0" + query["e"]} | {"s": query["s"][:-1]},
        their_query, query | {"s": their_query["s"]}, *({name: value for name,
        value in query.items() if name != left} for left in query),
    ]  # fmt: skip
    for values in bent:
        assert target.get(f"{place}?{urlencode(values)}").status in (401, 404)
    assert target.get(f"/v1/images/{foreign['id']}?{urlencode(query)}").status == 404
    assert target.get(f"{place}?{urlencode(query)}").status == 200
    assert target.get(image["url"], "other").status == 404  # a key that is sent is what counts


def test_a_secret_is_exchanged_without_breaking_a_link(target: Target) -> None:
    old, new = PEPPER, "a-fresh-secret-of-the-tests-0123456789"
    steps = [(old, new), (new, old), (new, None)]
    rolled = []
    for first, second in steps:
        own = {"GATEWAY_LINK_SECRET": first} | ({"GATEWAY_LINK_SECRET_SECOND": second} if second else {})
        rolled.append(target.fleet.start(**own))
    before, both, swapped, after = target.fleet.replicas[0], *rolled
    for seen, made in ((both, before), (before, both), (swapped, both), (both, swapped), (after, swapped)):
        url = _made_at(made.url, target.keys["acme"])
        assert send(seen.url, "GET", url).status == 200
    assert send(after.url, "GET", _made_at(before.url, target.keys["acme"])).status == 404  # the old secret is out
    assert send(before.url, "GET", _made_at(after.url, target.keys["acme"])).status == 404
    for replica in rolled:
        replica.stop()


def _made_at(url: str, key: str) -> str:
    """The signed link of a picture that a replica made, or found."""
    headers = [("Authorization", f"Bearer {key}"), ("Accept", "application/json"), ("Content-Type", "application/json")]
    found = send(url, "POST", "/v1/generate", headers, b'{"prompt": "a lighthouse", "seed": 8}').document
    return str(found["image"]["url"])


def test_a_signed_link_dies_with_its_key(target: Target) -> None:
    image = target.made("doomed", 6)
    assert target.get(image["url"]).status == 200
    on_keyring(target.fleet, lambda keyring: keyring.revoke("acme", target.key_ids["doomed"]))
    assert target.get(image["url"]).status == 404
    assert target.get("/v1/me", "doomed").status == 401
    assert target.get(f"/v1/images/{image['id']}", "acme").status == 200


def test_a_signed_link_dies_with_its_tenants_suspension_and_with_a_lower_ceiling(target: Target) -> None:
    image = target.made("other", 7)
    for change, status in (
        ({}, 200),
        ({"suspended": True}, 404),
        ({"safety": {"generate": {"ceiling": 3}}}, 404),
        ({}, 200),
    ):
        target.fleet.tenants(
            json.dumps({"version": 1, "tenants": TENANTS | {"other": {"name": "Other", **change}}}) + "\n"
        )
        fresh = target.made("other", 7)["url"] if status == 200 else image["url"]
        assert target.get(fresh).status == status
        assert target.get(f"/v1/images/{image['id']}", "other").status == (403 if "suspended" in change else status)


def test_a_key_shows_what_it_may_do_and_nothing_of_others(target: Target) -> None:
    answer = target.get("/v1/me", "acme")
    assert (answer.status, answer.document["tenant"]) == (200, "acme")
    assert b"other" not in answer.body
    assert target.keys["acme"].encode() not in answer.body
    assert Path(target.fleet.replicas[0].log).read_text().count("kgw_live_") == 0
