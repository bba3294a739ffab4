"""S-04, S-05, S-10, S-11: nobody steers what goes upstream, splits an answer, walks out of a path, lends an origin."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator

from tests.e2e.exchange import FILE, FORM, form, make_keys, send
from tests.faults.checker import settle_down
from tests.faults.row import Run, row
from tests.faults.rows.hostile import completed, facing
from tests.faults.storm import PATIENT
from tests.fleet import TOKEN, fleet
from tests.images.pictures import picture
from tests.prodia.answers import MULTIPART
from tests.prodia.upstream import Wire, http

JSON = ("Content-Type", "application/json")
EVIL = "http://169.254.169.254/latest"
OVERRIDES: tuple[tuple[str, str], ...] = (
    *((name, EVIL) for name in (
        "X-Forwarded-Host", "X-Forwarded-For", "X-Forwarded-Proto", "X-Forwarded-Prefix", "X-Original-URL",
        "X-Rewrite-URL", "X-Host", "Forwarded", "X-Real-IP", "X-Upstream", "X-Base-Url", "X-Prodia-Base-Url",
        "X-Target", "X-Proxy-Url", "Via", "X-Api-Key", "Prodia-Token", "Proxy-Authorization", "Cookie",
        "Referer", "User-Agent", "X-Http-Method-Override", "X-Method", "Traceparent", "Baggage",
        "X-Request-Id", "X-Correlation-Id", "Gateway-User", "Gateway-Tags", "Origin-Agent-Cluster",
        "Accept-Language", "Accept-Encoding", "Range", "If-Match", "Max-Forwards", "From",
    )),
    ("Accept", f"image/jpeg; url={EVIL}"), ("Accept", "multipart/form-data; q=1, image/jpeg"),
    ("Expect", "100-continue"), ("TE", "trailers"), ("Idempotency-Key", "a\tb"),
    ("Cache-Control", f"no-store, url={EVIL}"),
)  # fmt: skip
FIELDS = ("url", "base_url", "upstream", "host", "path", "headers", "type", "config", "token", "webhook", "callback")


@row(
    "S-04", "0 of over 50 overrides change where a job goes, its token, or the names of its headers", ci={}, nightly={}
)
def nobody_steers_the_upstream(run: Run) -> None:
    with facing(run.folder) as (running, enemy, key):
        carrier, told = ("Authorization", f"Bearer {key}"), Counter[int]()

        def ask(seed: int, more: tuple[str, str], fields: dict[str, object]) -> None:
            body = json.dumps({"prompt": "a boat", "seed": seed} | fields).encode()
            told[send(running.urls[0], "POST", "/v1/generate", [carrier, JSON, more], body).status] += 1

        ask(0, ("Accept", "image/jpeg"), {})
        for number, override in enumerate(OVERRIDES, 1):
            ask(number, override, {})
        for number, name in enumerate(FIELDS, 500):
            ask(number, ("Accept", "image/jpeg"), {name: EVIL})
        settle_down(running, "acme")
        lines = {one.head.split(b"\r\n", 1)[0] for one in enemy.state.received}
        names = {_names(one.head) for one in enemy.state.received}
        values = b"".join(one.head for one in enemy.state.received)
        run.reached = (
            f"{len(OVERRIDES) + len(FIELDS)} overrides: {dict(told)}, {len(enemy.state.received)} jobs, 0 changed"
        )
        assert len(enemy.state.received) >= len(OVERRIDES) - 5
        assert len(lines) == 1
        assert len(names) == 1
        assert {one.headers("authorization")[0] for one in enemy.state.received} == {f"Bearer {TOKEN}"}
        assert {one.headers("host")[0] for one in enemy.state.received} == {enemy.state.url.split("/")[2]}
        assert b"169.254" not in values
        assert key.encode() not in values
        assert told[422] >= len(FIELDS)


def _names(head: bytes) -> frozenset[bytes]:
    return frozenset(line.partition(b":")[0].lower() for line in head.split(b"\r\n")[1:] if line)


BREAKS = (
    "\r\nX-Evil: 1",
    "\nX-Evil: 1",
    "\r\n\r\nHTTP/1.1 200 OK",
    "%0d%0aX-Evil: 1",
    "\u2028X-Evil: 1",
    "\u560d\u560aX-Evil: 1",
    "\x00X-Evil: 1",
)
FROM_UPSTREAM = ("X-Evil: 1", "Set-Cookie: evil=1", "Location: http://evil.example/", "Access-Control-Allow-Origin: *",
                 "Gateway-Cost-Usd: 0", "Content-Disposition: attachment; filename=evil", "Server: evil")  # fmt: skip


@row("S-05", "0 headers of a caller's or the upstream's making in any answer", ci={}, nightly={})
def nobody_splits_an_answer(run: Run) -> None:
    with facing(run.folder) as (running, enemy, key):

        async def talkative(wire: Wire) -> None:
            await wire.request()
            await wire.send(http(200, completed(), MULTIPART, "Connection: close", *FROM_UPSTREAM))

        enemy.does = talkative
        carrier, told, seen = ("Authorization", f"Bearer {key}"), Counter[int](), set[str]()
        photo = picture("jpeg", 300, 300)
        for seed, text in enumerate(BREAKS):
            name = FILE.replace("photo.jpg", "p" + text.replace("\r", "%0d").replace("\n", "%0a"))
            prompt, user = {"prompt": "abc" + text, "seed": seed}, {"user": "u" + text, "tags": ["t" + text[:9]]}
            asks = [
                ("POST", "/v1/generate?x=%0d%0aX-Evil:1", JSON, json.dumps(prompt).encode()),
                ("POST", "/v1/generate", JSON, json.dumps({"prompt": "abc"} | user).encode()),
                ("POST", "/v1/edit", ("Content-Type", FORM), form(("prompt", b"a boat"), ("image", photo, name))),
                ("GET", "/v1/images/img_" + "0" * 48 + "%0d%0aX-Evil:1", JSON, b""),
            ]
            for method, path, kind, body in asks:
                accept = ("Accept", "application/json" if seed % 2 else "image/*")
                answer = send(running.urls[0], method, path, [carrier, kind, accept], body)
                told[answer.status] += 1
                seen |= answer.headers.keys()
                assert "evil" not in json.dumps(dict(answer.headers)).lower(), (path, text)
        settle_down(running, "acme")
        run.reached = f"{told.total()} answers {dict(told)}, {len(seen)} names of headers, 0 of others' making"
        assert told[200] > 0
        assert not {"x-evil", "set-cookie", "location", "access-control-allow-origin", "content-disposition"} & seen


def _walks() -> Iterator[str]:
    for up in ("../", "..%2f", "%2e%2e/", "%2e%2e%2f", "..%5c", "..\\", "....//", "%c0%ae%c0%ae/", "..;/", ".%00./"):
        for file in ("etc/passwd", "app/main.py", "tenants.yaml"):
            yield up * 6 + file
    yield from (
        "*",
        "?",
        "img_*",
        "%00",
        "img_" + "0" * 48 + "/..",
        "img_" + "0" * 47 + "%2a",
        "~root",
        "C:%5cwindows%5cwin.ini",
    )


@row("S-10", "0 bytes of a file, and a 404 or 401, for every walk out of a result's path", ci={}, nightly={})
def nobody_walks_out(run: Run) -> None:
    tenants = '{"version": 1, "tenants": {"acme": {"name": "Acme of the walks"}}}\n'
    with fleet(run.folder, tenants, sandbox=("--time-scale", "0", "--picture", "small"), **PATIENT) as running:
        key, told = make_keys(running, ["acme"])["acme"], Counter[int]()
        places = (
            "/v1/images/{}",
            "/v1/images/{}/lineage",
            "/v1/jobs/{}",
            "/v1/jobs/{}/events",
            "/v2/job/async/{}/job.json",
            "/v2/job/async/01234567-89ab-4cde-8f01-23456789abcd/output/{}",
            "/v1/models/{}",
            "/{}",
            "/console/{}",
        )
        for place in places:
            for walk in _walks():
                for headers in ([("Authorization", f"Bearer {key}")], []):
                    answer = send(running.urls[0], "GET", place.format(walk), headers)
                    told[answer.status] += 1
                    assert answer.status in (400, 401, 404, 405), (place, walk, answer.status)
                    assert not any(found in answer.body for found in (b"root:", b"import ", b"Acme of the walks"))
        run.reached = f"{told.total()} walks: {dict(told)}"


ORIGINS = (
    "https://evil.example", "null", "https://shop.example.evil.example", "http://shop.example", "https://SHOP.example",
    "https://shop.example:8443", "https://shop.example/", "https://shop.example@evil.example", "*", "file://",
    "https://shop.exampl\u0435", "https://evil.example, https://shop.example",
)  # fmt: skip


@row(
    "S-11", "no answer names an origin that the tenant does not list, and nothing is bought from one", ci={}, nightly={}
)
def nobody_lends_an_origin(run: Run) -> None:
    own = "https://shop.example"
    found = {"acme": {"cors": {"origins": [own]}}, "closed": {"name": "Closed"}}
    text = json.dumps({"version": 1, "tenants": found}) + "\n"
    with fleet(run.folder, text, sandbox=("--time-scale", "0", "--picture", "small"), **PATIENT) as running:
        keys, told = make_keys(running, found), Counter[int]()
        lent = send(
            running.urls[0], "POST", "/v1/client-tokens", [("Authorization", f"Bearer {keys['acme']}"), JSON], b"{}"
        )
        callers = {**keys, "token": str(lent.document["token"])}
        body = b'{"prompt": "a boat", "seed": 1}'
        for who, key in callers.items():
            for origin in (*ORIGINS, own):
                foreign = origin != own or who == "closed"
                for method, path, data in (
                    ("GET", "/v1/models", b""),
                    ("POST", "/v1/generate", body),
                    ("DELETE", "/v1/images/x", b""),
                ):
                    headers = [("Authorization", f"Bearer {key}"), JSON, ("Origin", origin.encode("utf-8"))]
                    answer = send(running.urls[0], method, path, headers, data)
                    told[answer.status] += 1
                    allowed = answer.headers.get("access-control-allow-origin")
                    assert "access-control-allow-credentials" not in answer.headers
                    if foreign:
                        assert allowed is None, (who, origin, allowed)
                        assert answer.status in (400, 403, 404), (who, origin, path, answer.status)
                    else:
                        assert allowed == own
        bought = running.stats()["received"]
        run.reached = f"{told.total()} calls with {len(ORIGINS)} origins: {dict(told)}; {bought} jobs bought"
        assert bought == 2  # by key and token of the tenant that lists the origin
