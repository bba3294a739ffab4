"""Browsers: closed by default, open for the tenant's own origins, and proved in a real one."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from playwright.sync_api import Page, sync_playwright

from tests.e2e.exchange import Answer, make_keys, send
from tests.fleet import Fleet, fleet

CHROMIUM = "/usr/bin/chromium"
QUIET = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
PAGE = b"""<!doctype html><title>A shop</title><input id=file type=file><img id=made><p id=said></p><script>
async function call(base, path, key, body, json) {
  const headers = {Authorization: "Bearer " + key};
  if (json) headers["Content-Type"] = "application/json";
  try {
    const answer = await fetch(base + path, {method: "POST", headers, body});
    if (!answer.ok) return {status: answer.status, problem: await answer.json()};
    const img = document.getElementById("made");
    img.src = URL.createObjectURL(await answer.blob());
    await img.decode();
    const seen = {};
    const wanted = "Gateway-Seed Gateway-Image-Id Gateway-Cost-Usd Gateway-Safety Gateway-Source X-Request-Id ETag";
    for (const name of wanted.split(" "))
      seen[name] = answer.headers.get(name);
    return {status: answer.status, width: img.naturalWidth, seen};
  } catch (error) { return {blocked: String(error)}; }
}
const wish = JSON.stringify({prompt: "a lighthouse", seed: 7});
const generate = (base, key) => call(base, "/v1/generate", key, wish, true);
async function edit(base, key) {
  const picture = await (await fetch(document.getElementById("made").src)).blob();
  const form = new FormData();
  form.set("image", picture, "photo.jpg"); form.set("prompt", "a stormy sky"); form.set("seed", "8");
  return call(base, "/v1/edit", key, form, false);
}
</script>"""


class _Shop(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.end_headers()
        self.wfile.write(PAGE)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@contextmanager
def shop() -> Iterator[str]:
    """A page on an origin of its own; the origin."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Shop) as server:
        serving = threading.Thread(target=server.serve_forever, daemon=True)
        serving.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        serving.join()


@dataclass
class Target:
    """The gateway under test, keys by tenant, and two shops: acme's own, and a stranger's."""

    fleet: Fleet
    keys: dict[str, str]
    own: str
    strange: str

    @property
    def url(self) -> str:
        """The public listener."""
        return self.fleet.replicas[0].url

    def call(self, tenant: str, origin: str | None, *, key: str | None = None) -> Answer:
        """GET /v1/me from an origin."""
        headers = [("Authorization", f"Bearer {key or self.keys[tenant]}"), *([("Origin", origin)] if origin else [])]
        return send(self.url, "GET", "/v1/me", headers)

    def preflight(self, origin: str, method: str = "POST", path: str = "/v1/generate") -> Answer:
        """What a browser asks first; it carries no key."""
        headers = [
            ("Origin", origin),
            ("Access-Control-Request-Method", method),
            ("Access-Control-Request-Headers", "authorization,content-type"),
        ]
        return send(self.url, "OPTIONS", path, headers)


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    with shop() as own, shop() as strange:
        tenants = {
            "acme": {"cors": {"origins": [own]}},
            "other": {"cors": {"origins": ["https://other.example"]}},
            "closed": {"name": "Closed"},
        }
        text = json.dumps({"version": 1, "tenants": tenants}) + "\n"
        folder = tmp_path_factory.mktemp("cors")
        with fleet(folder, text, sandbox=("--time-scale", "0")) as running:
            yield Target(running, make_keys(running, tenants), own, strange)


@pytest.fixture(scope="module")
def browser_page() -> Iterator[Page]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield browser.new_page()
        browser.close()


def names(answer: Answer, header: str) -> set[str]:
    return {name.strip().lower() for name in answer.headers.get(header, "").split(",")} - {""}


def test_a_preflight_is_answered_for_every_tenants_origins_and_no_others(target: Target) -> None:
    for origin in (target.own, "https://other.example"):
        answer = target.preflight(origin)
        assert (answer.status, answer.headers["access-control-allow-origin"]) == (204, origin)
        assert names(answer, "access-control-allow-methods") >= {"get", "post", "delete"}
        assert names(answer, "access-control-allow-headers") >= {
            "authorization",
            "content-type",
            "accept",
            "idempotency-key",
        }
        assert "origin" in names(answer, "vary")
    for origin in (
        target.strange,
        "null",
        "https://other.example.evil.example",
        "http://other.example",
        "https://OTHER.example",
        target.own + "/",
        "*",
    ):
        answer = target.preflight(origin)
        assert not [name for name in answer.headers if name.startswith("access-control")]
        assert "origin" in names(answer, "vary")


def test_a_call_is_held_to_the_tenants_own_origins(target: Target) -> None:
    answer = target.call("acme", target.own)
    assert (answer.status, answer.headers["access-control-allow-origin"]) == (200, target.own)
    assert names(answer, "access-control-expose-headers") >= {
        "gateway-seed", "gateway-image-id", "gateway-cost-usd", "gateway-safety", "gateway-source", "gateway-job-id",
        "gateway-variant", "x-request-id", "idempotency-replayed",
    }  # fmt: skip
    assert "origin" in names(answer, "vary")
    assert "access-control-allow-credentials" not in answer.headers
    for tenant, origin in (
        ("acme", "https://other.example"),
        ("other", target.own),
        ("closed", target.own),
        ("acme", target.strange),
        ("acme", "null"),
    ):
        refused = target.call(tenant, origin)
        assert (refused.status, refused.document["code"]) == (403, "forbidden")
        assert "access-control-allow-origin" not in refused.headers


def test_without_an_origin_nothing_is_said_of_origins_but_that_they_matter(target: Target) -> None:
    answer = target.call("closed", None)
    assert answer.status == 200
    assert names(answer, "vary") == {"origin"}
    assert not [name for name in answer.headers if name.startswith("access-control")]


def test_a_browser_can_read_why_its_key_was_refused(target: Target) -> None:
    answer = target.call("acme", target.own, key="kgw_live_nobody")
    assert (answer.status, answer.headers["access-control-allow-origin"]) == (401, target.own)
    stranger = target.call("acme", target.strange, key="kgw_live_nobody")
    assert stranger.status == 401
    assert "access-control-allow-origin" not in stranger.headers


@pytest.mark.timeout(90)
def test_a_page_of_the_shop_makes_and_edits_a_picture_and_shows_it(target: Target, browser_page: Page) -> None:
    browser_page.goto(target.own)
    made = browser_page.evaluate("([base, key]) => generate(base, key)", [target.url, target.keys["acme"]])
    assert (made["status"], made["width"]) == (200, 1024)
    assert (made["seen"]["Gateway-Seed"], made["seen"]["Gateway-Cost-Usd"], made["seen"]["Gateway-Source"]) == (
        "7",
        "0.040000",
        "upstream",
    )
    assert all(made["seen"].values())
    changed = browser_page.evaluate("([base, key]) => edit(base, key)", [target.url, target.keys["acme"]])
    assert (changed["status"], changed["seen"]["Gateway-Seed"]) == (200, "8")
    assert target.fleet.bill()["jobs"] == 2
    refused = browser_page.evaluate("([base, key]) => generate(base, key)", [target.url, "kgw_live_nobody"])
    assert (refused["status"], refused["problem"]["code"]) == (401, "unauthenticated")


@pytest.mark.timeout(90)
def test_a_script_reads_the_picture_that_its_page_has_shown(target: Target, browser_page: Page) -> None:
    key = target.keys["acme"]
    headers = [("Authorization", f"Bearer {key}"), ("Content-Type", "application/json"), ("Accept", "application/json")]
    made = send(target.url, "POST", "/v1/generate", headers, b'{"prompt": "a boat", "seed": 11}').document
    browser_page.goto(target.own)
    script = """async url => {
      const img = document.getElementById("made");
      img.src = url;
      await img.decode();
      try { return (await (await fetch(url)).blob()).size; } catch (error) { return String(error); }
    }"""
    assert browser_page.evaluate(script, target.url + made["image"]["url"]) == made["image"]["bytes"]


@pytest.mark.timeout(90)
def test_a_page_of_a_stranger_is_blocked_and_nothing_is_charged(target: Target, browser_page: Page) -> None:
    before = target.fleet.stats()["received"]
    browser_page.goto(target.strange)
    for tenant in ("acme", "other", "closed"):
        blocked = browser_page.evaluate("([base, key]) => generate(base, key)", [target.url, target.keys[tenant]])
        assert "Failed to fetch" in blocked["blocked"]
    # What a browser sends without a preflight: it cannot carry a key, so it buys nothing either.
    simple = "base => fetch(base + '/v1/generate', {method: 'POST', mode: 'no-cors', body: wish}).then(a => a.type)"
    assert browser_page.evaluate(simple, target.url) == "opaque"
    browser_page.goto(target.own)
    foreign = browser_page.evaluate("([base, key]) => generate(base, key)", [target.url, target.keys["other"]])
    assert "Failed to fetch" in foreign["blocked"]
    assert target.fleet.stats()["received"] == before
