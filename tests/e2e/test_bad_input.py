"""Whatever is wrong with a request is said precisely, costs nothing, reaches nobody, and leaves no trace."""

from __future__ import annotations

import http.client
import json
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from app.domain import tokens
from app.domain.tenant import KeyPolicy
from app.errors import CODES
from app.tenants import Keyring
from tests.e2e import bad_requests as bad
from tests.e2e import bad_uploads
from tests.e2e.bad_requests import CANARY, JSON, MULTIPART, Bad, document, edit, filled, generate
from tests.e2e.exchange import FILE, FORM, Answer, exchange, form, on_keyring, send
from tests.fleet import Fleet, Replica, fleet, get_json

LIMITS = {
    "requests": {"rate": "1000000/1s"},
    "images": [{"max": 1000, "per": "month"}],
    "budgets": [{"usd": "100.00", "per": "month"}],
}
TENANTS = {
    "acme": {"limits": LIMITS},
    "strict": {"limits": LIMITS, "safety": {"generate": {"ceiling": 1}, "edit": {"ceiling": 1}, "mode": "reject"}},
    "narrow": {"limits": LIMITS, "variants": {"generate": ["pro"], "edit": ["pro"]}},
    "peruser": {"limits": LIMITS | {"per_user": {"images": [{"max": 5, "per": "day"}]}}},
    "closed": {"limits": LIMITS, "suspended": True},
}
MEMBERS = {"type", "title", "status", "detail", "code", "charged", "request_id"}
TABLE = [
    *bad.parameters(), *bad.others_fields(), *bad.fields(), *bad.bodies(), *bad_uploads.forms(), *bad_uploads.images(),
    *bad.routes(), *bad.heads(),
]  # fmt: skip


@dataclass
class Target:
    """The gateway under test and the keys to it."""

    fleet: Fleet
    replica: Replica
    keys: dict[str, str]
    seen: list[float] = field(default_factory=lambda: [0.0] * 18)

    def untouched(self) -> None:
        """Fail if since the last look anybody was asked for anything or any money moved."""
        stats = self.fleet.stats()
        found = [float(stats[name]) for name in ("received", "billed_micro_usd")]
        for tenant in ("acme", "strict", "narrow", "peruser"):
            answer = send(self.replica.url, "GET", "/v1/me", [("Authorization", f"Bearer {self.keys[tenant]}")])
            found += [float(cap[held]) for cap in answer.document["limits"] for held in ("spent", "reserved")]
        before, self.seen = self.seen, found
        assert found == before


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    folder = tmp_path_factory.mktemp("bad")
    text = json.dumps({"version": 1, "tenants": TENANTS}) + "\n"
    with fleet(folder, text, sandbox=("--time-scale", "0", "--picture", "small")) as running:
        found = Target(running, running.replicas[0], on_keyring(running, _keys))
        yield found
        time.sleep(0.2)  # a request's line is written after its answer
        _without_traces(found, folder)


async def _keys(keyring: Keyring) -> dict[str, str]:
    plain = KeyPolicy()
    found = {tenant: (await keyring.create(tenant, "test", policy=plain))[1] for tenant in TENANTS}
    found["gone"] = (await keyring.create("gone", "test", policy=plain))[1]
    found["expired"] = (await keyring.create("acme", "expired", expires=int(time.time()) - 1, policy=plain))[1]
    found["generate only"] = (await keyring.create("acme", "g", policy=KeyPolicy(operations=("generate",))))[1]
    found["max only"] = (await keyring.create("acme", "m", policy=KeyPolicy(variants=("max",))))[1]
    revoked, found["revoked"] = await keyring.create("acme", "revoked", policy=plain)
    await keyring.revoke("acme", revoked)
    return found


def _without_traces(target: Target, folder: Path) -> None:
    """Neither log, nor metrics, nor ledger, nor a file's name holds what was sent."""
    log = target.replica.log.read_bytes()
    with socket.create_connection((urlsplit(target.replica.ops).hostname, urlsplit(target.replica.ops).port)) as probe:
        probe.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        metrics = b"".join(iter(lambda: probe.recv(65_536), b""))
    stored = [target.fleet.redis.dump(key) or b"" for key in target.fleet.redis.scan_iter(count=1000)]
    names = [str(path) for path in folder.rglob("*")]
    assert b'"event":"request"' in log
    assert b"unhandled" not in log
    assert b"Traceback" not in log
    for secret in (CANARY, *target.keys.values()):
        assert secret.encode() not in log
        assert secret.encode() not in metrics
        assert all(secret.encode() not in value for value in stored)
        assert all(secret not in name for name in names)


def judged(answer: Answer, case: Bad) -> dict[str, Any]:
    """The problem document, after everything that holds for every one."""
    assert (answer.status, answer.headers.get("content-type")) == (case.status, "application/problem+json"), (
        answer.body[:300]
    )
    found = answer.document
    assert found.keys() >= MEMBERS
    assert (found["code"], found["status"], found["charged"]) == (case.code, case.status, "no"), found
    assert found["title"] == CODES[case.code].title
    assert found["type"] == f"urn:kontext-gateway:error:{case.code}"
    assert answer.headers["x-request-id"] == found["request_id"]
    assert found["request_id"].startswith("req_")
    assert case.phrase in found["detail"], found["detail"]
    if case.field is not None:
        assert found["field"] == case.field, found
    whole = answer.body + repr(answer.headers).encode()
    for trace in (CANARY.encode(), b"Traceback", b".py", b"kgw_live_0", b"kgw_live_A"):
        assert trace not in whole
    return found


def asked(target: Target, case: Bad) -> Answer:
    carriers = [("Authorization", f"Bearer {target.keys['acme']}")] if case.carriers is None else case.carriers
    return send(target.replica.url, case.method, case.target, [*carriers, *case.headers], case.body)


@pytest.mark.parametrize("case", TABLE, ids=lambda case: ascii(case.name)[1:60])
def test_a_bad_request_is_refused_with_its_reason_and_costs_nothing(target: Target, case: Bad) -> None:
    answer = asked(target, case)
    judged(answer, case)
    if case.status == 405:
        assert answer.headers["allow"] in ("GET", "POST", "DELETE, GET")
    target.untouched()


NOBODY = "kgw_live_" + "0" * 32 + "000000"


@pytest.mark.parametrize(
    ("name", "carriers"),
    {
        "no key": [],
        "an empty header": [("Authorization", "")],
        "a scheme alone": [("Authorization", "Bearer")],
        "Basic": [("Authorization", f"Basic {CANARY}")],
        "the key alone": [("Authorization", "{key}")],
        "Basic with the key": [("Authorization", "Basic {key}")],
        "two headers": [("Authorization", "Bearer {key}"), ("Authorization", "Bearer {key}")],
        "two headers, one wrong": [("Authorization", f"Bearer {CANARY}"), ("Authorization", "Bearer {key}")],
        "two keys": [("Authorization", "Bearer {key}, Bearer {key}")],
        "two spaces": [("Authorization", "Bearer  {key}")],
        "something behind": [("Authorization", "Bearer {key} x")],
        "quotes": [("Authorization", 'Bearer "{key}"')],
        "a wrong checksum": [("Authorization", f"Bearer kgw_live_{CANARY.ljust(32, '0')}000000")],
        "an unknown key": [("Authorization", "Bearer {unknown}")],
        "a revoked key": [("Authorization", "Bearer {revoked}")],
        "an expired key": [("Authorization", "Bearer {expired}")],
        "another case": [("Authorization", "Bearer {swapped}")],
        "another alphabet": [("Authorization", f"Bearer kgw_live_{CANARY}é".encode())],
        "not UTF-8": [("Authorization", b"Bearer \xff\xfe" + CANARY.encode())],
        "percent": [("Authorization", f"Bearer %n%s{CANARY}%00")],
        "15 KB": [("Authorization", "Bearer " + CANARY * 1150)],
        "the stored hash": [("Authorization", "Bearer {digest}")],
        "x-api-key": [("X-API-Key", "{key}")],
        "a cookie": [("Cookie", "Authorization=Bearer {key}; key={key}")],
        "Proxy-Authorization": [("Proxy-Authorization", "Bearer {key}")],
        "the query": [("X-In-Query", "yes")],
    }.items(),
)
def test_whoever_has_no_valid_key_gets_401_in_one_shape(
    target: Target, name: str, carriers: list[tuple[str, Any]]
) -> None:
    key = target.keys["acme"]
    put = {
        "{key}": key, "{revoked}": target.keys["revoked"], "{expired}": target.keys["expired"],
        "{swapped}": "kgw_live_" + key[9:].swapcase(),
        "{unknown}": tokens.mint(), "{digest}": tokens.digest(key, b"pepper-of-the-tests-0123456789abcdef"),
    }  # fmt: skip
    filled_in = [(header, value if isinstance(value, bytes) else _put(value, put)) for header, value in carriers]
    for path, method, body in (
        ("/v1/generate", "POST", document()),
        ("/v1/edit", "POST", document("edit")),
        ("/v1/me", "GET", b""),
    ):
        query = f"?access_token={key}&key={key}" if name == "the query" else ""
        answer = send(target.replica.url, method, path + query, [*filled_in, *JSON], body)
        judged(answer, Bad(name, path, b"", 401, "unauthenticated"))
        assert answer.headers["www-authenticate"] == "Bearer"
        assert key.encode() not in answer.body
        assert not {"ratelimit", "ratelimit-policy"} & answer.headers.keys()
    target.untouched()


def _put(text: str, values: dict[str, str]) -> str:
    for name, value in values.items():
        text = text.replace(name, value)
    return text


@pytest.mark.parametrize("size", [17_000, 65_536])
def test_a_huge_key_is_refused_by_its_size(target: Target, size: int) -> None:
    case = generate(
        "huge key", document(), 431, "headers_too_large", carriers=[("Authorization", "Bearer " + "A" * size)]
    )
    judged(asked(target, case), case)
    target.untouched()


@pytest.mark.parametrize(
    "spelling", ["Bearer {key}", "bearer {key}", "BEARER {key}", "Bearer {key}  ", "  Bearer {key}"]
)
def test_the_scheme_has_no_case_and_padding_is_no_part_of_a_header(target: Target, spelling: str) -> None:
    headers = [("Authorization", spelling.replace("{key}", target.keys["acme"]))]
    assert send(target.replica.url, "GET", "/v1/me", headers).status == 200


@pytest.mark.parametrize(
    ("key", "case"),
    [
        ("gone", generate("a tenant that is not there", document(), 403, "forbidden", phrase="not configured")),
        ("closed", generate("a suspended tenant", document(), 403, "forbidden", phrase="suspended")),
        ("strict", generate("above the ceiling", document(safety_tolerance=2), 403, "safety_ceiling",
        "safety_tolerance", "ceiling of 1")),
        ("strict", edit("above the ceiling", document("edit", safety_tolerance=2), 403, "safety_ceiling",
        "safety_tolerance", "ceiling of 1")),
        ("strict", edit("dev under a ceiling", document("edit", variant="dev"), 403, "safety_ceiling", "variant",
        "no safety_tolerance")),
        ("narrow", generate("a variant of others", document(variant="max"), 403, "forbidden", "variant",
        "max is not allowed")),
        ("narrow", edit("dev of others", document("edit", variant="dev"), 403, "forbidden", "variant",
        "dev is not allowed")),
        ("max only", generate("a variant the key has not", document(), 403, "forbidden", "variant",
        "pro is not allowed")),
        ("generate only", edit("an operation the key has not", document("edit"), 403, "forbidden", "operation",
        "may not edit")),
        ("peruser", generate("no user", document(), 422, "invalid_request", "user", "`user` is required")),
    ],
    ids=lambda value: value.name if isinstance(value, Bad) else value,
)  # fmt: skip
def test_what_the_policy_forbids_is_refused_before_anything_is_bought(target: Target, key: str, case: Bad) -> None:
    headers = [("Authorization", f"Bearer {target.keys[key]}"), *case.headers]
    judged(send(target.replica.url, "POST", case.target, headers, case.body), case)
    target.untouched()


def test_a_body_over_the_limit_is_refused_by_its_declared_length_without_being_read(target: Target) -> None:
    for case in (
        generate("", b"", 413, "too_large"),
        edit("", b"", 413, "too_large"),
        bad.edit_form("", b"", 413, "too_large"),
    ):
        headers = [*case.headers, ("Authorization", f"Bearer {target.keys['acme']}"), ("Content-Length", "99999999999")]
        began = time.monotonic()
        judged(send(target.replica.url, "POST", case.target, headers, b"", length=False), case)
        assert time.monotonic() - began < 2
    target.untouched()


@pytest.mark.parametrize("chunked", [False, True], ids=["with its length", "in chunks"])
@pytest.mark.parametrize("kind", ["a JSON edit", "a form", "an image in a form"])
def test_a_body_that_is_sent_whole_although_it_is_too_large_is_answered_in_time(
    target: Target, kind: str, chunked: bool
) -> None:
    body = {
        "a JSON edit": b'{"image":"' + b"A" * 34_000_000,
        "a form": form(*[("tags", b"t" * 60_000)] * 60, ("image", b"\xff\xd8\xff" + b"x" * 25_000_000, FILE)),
        "an image in a form": filled(("image", b"\xff\xd8\xff" + b"x" * 25_000_001, FILE), image=False),
    }[kind]
    headers = [("Authorization", f"Bearer {target.keys['acme']}"), *(JSON if kind == "a JSON edit" else MULTIPART)]
    chunks = (body[at : at + 65_536] for at in range(0, len(body), 65_536))
    began = time.monotonic()
    answer = send(target.replica.url, "POST", "/v1/edit", headers, chunks if chunked else body)
    judged(answer, edit("", b"", 413, "too_large", phrase="at most"))
    assert time.monotonic() - began < 5
    assert send(target.replica.url, "GET", "/v1/me", headers[:1]).status == 200
    target.untouched()


def test_an_upload_without_a_key_is_refused_before_it_is_read(target: Target) -> None:
    answer = send(
        target.replica.url, "POST", "/v1/edit", [*MULTIPART, ("Content-Length", "20000000")], b"--", length=False
    )
    judged(answer, edit("", b"", 401, "unauthenticated"))


def _head(key: str, length: int) -> bytes:
    lines = ["POST /v1/generate HTTP/1.1", "Host: x", f"Authorization: Bearer {key}", "Content-Type: application/json"]
    return "\r\n".join([*lines, f"Content-Length: {length}", "", ""]).encode()


def test_a_length_that_lies_costs_nothing_and_holds_nothing_up(target: Target) -> None:
    body, key = document(), target.keys["acme"]
    for declared in (len(body) - 10, 1, 0):
        assert exchange(target.replica.url, _head(key, declared), body).status == 400
    place = urlsplit(target.replica.url)
    with socket.create_connection((place.hostname, place.port), timeout=10) as connection:
        connection.sendall(_head(key, len(body) + 50) + body)
        connection.shutdown(socket.SHUT_WR)
        assert b" 200 " not in b"".join(iter(lambda: connection.recv(65_536), b""))
    target.untouched()


@pytest.mark.parametrize(
    "lines",
    [
        "POST /v1/generate HTTP/1.1\r\nHost: x\r\nContent-Length: -1",
        "POST /v1/generate HTTP/1.1\r\nHost: x\r\nContent-Length: 1e3",
        "POST /v1/generate HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Length: 6",
        "POST /v1/generate HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked",
        "POST /v1/generate HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip, identity",
        "POST /v1/generate HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer \x00kanarienvogel",
        "POST /v1/generate HTTP/1.1\r\nHost: x\r\nkanarienvogel",
        "BREW /v1/generate HTTP/1.1\r\nHost: x",
        "POST /v1/generate HTTP/9.9\r\nHost: x",
        "kanarienvogel",
    ],
    ids=lambda lines: ascii(lines)[1:60],
)
def test_what_is_not_http_is_answered_400_and_hung_up_on(target: Target, lines: str) -> None:
    answer = exchange(target.replica.url, lines.encode("latin-1") + b"\r\n\r\n", b"")
    assert answer.status == 400
    assert answer.headers["connection"] == "close"
    assert CANARY.encode() not in answer.body
    target.untouched()


def test_a_connection_goes_on_after_a_refusal(target: Target) -> None:
    headers = {"Authorization": f"Bearer {target.keys['acme']}", "Content-Type": "application/json"}
    connection = http.client.HTTPConnection(urlsplit(target.replica.url).netloc, timeout=10)
    used = set()
    for _ in range(3):
        connection.request("POST", "/v1/generate", b'{"prompt":"ab"}', headers)
        used.add(connection.sock.getsockname())
        answer = connection.getresponse()
        assert (answer.status, json.loads(answer.read())["field"]) == (422, "prompt")
    connection.close()
    assert len(used) == 1
    target.untouched()


FILENAMES = (
    "../../../../tmp/kanarienvogel",
    "/etc/kanarienvogel",
    "..\\\\kanarienvogel",
    "C:\\\\kanarienvogel.jpg",
    "kanarienvogel%0d%0aX-Evil: 1",
    "kanarienvogel.php",
    "kanarienvogel" * 100,
    "känarienvogel kanarienvogel",
    "",
    "con",
    "kanarienvogel;x=y",
    "$(kanarienvogel)",
)


def test_a_file_name_goes_nowhere(tmp_path: Path) -> None:
    with fleet(
        tmp_path,
        '{"version": 1, "tenants": {"acme": {"name": "Acme"}}}\n',
        sandbox=("--time-scale", "0", "--picture", "small"),
    ) as running:
        key = on_keyring(running, _keys)["acme"]
        headers = [("Authorization", f"Bearer {key}"), ("Content-Type", FORM)]
        for number, name in enumerate(FILENAMES):
            more = f'; filename="{name}"\r\nContent-Type: text/html'
            body = filled(("image", bad.PHOTO, more), ("seed", str(number).encode()), image=False)
            answer = send(running.replicas[0].url, "POST", "/v1/edit", headers, body)
            assert answer.status == 200, answer.body
            assert CANARY not in repr(answer.headers)
        rows = get_json(running.upstream + "/sandbox/jobs")["jobs"]
        assert {(part["filename"], part["content_type"]) for row in rows for part in row["inputs"]} == {
            ("image.jpeg", "image/jpeg")
        }
        assert len(rows) == len(FILENAMES)
        assert CANARY not in running.replicas[0].log.read_text()
        assert not [path for path in tmp_path.rglob("*") if CANARY in path.name]
        assert not Path("/tmp/kanarienvogel").exists()
