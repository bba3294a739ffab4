"""OpenAI's client for Node as it is published, in a page: a browser lets through what it sends of itself."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from playwright.sync_api import sync_playwright

from tests.clients.stage import HERE
from tests.e2e.exchange import make_keys, send
from tests.e2e.test_cors import CHROMIUM, QUIET
from tests.fleet import fleet

SCRIPT = """async ([base, token]) => {
  const { default: OpenAI } = await import("/openai/index.mjs");
  const client = new OpenAI({ baseURL: base + "/v1", apiKey: token, dangerouslyAllowBrowser: true, maxRetries: 0 });
  try {
    return (await client.images.generate({ model: "flux-kontext-pro", prompt: "a lighthouse" })).data.length;
  } catch (error) { return String(error); }
}"""


class _Modules(SimpleHTTPRequestHandler):
    extensions_map = SimpleHTTPRequestHandler.extensions_map | {".mjs": "text/javascript"}

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@contextmanager
def shop() -> Iterator[str]:
    """A page that has the client's modules; its origin."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Modules, directory=HERE / "node_modules")) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.timeout(90)
def test_it_makes_a_picture_with_a_client_token(tmp_path: Path) -> None:
    with shop() as origin:
        text = json.dumps({"version": 1, "tenants": {"acme": {"cors": {"origins": [origin]}}}}) + "\n"
        with fleet(tmp_path, text, sandbox=("--time-scale", "0", "--picture", "small")) as running:
            url, key = running.replicas[0].url, make_keys(running, ["acme"])["acme"]
            headers = [("Authorization", f"Bearer {key}"), ("Content-Type", "application/json")]
            token = send(url, "POST", "/v1/client-tokens", headers, b"{}").document["token"]
            with sync_playwright() as playwright:
                browser = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
                page = browser.new_page()
                page.goto(origin + "/openai/package.json")
                assert page.evaluate(SCRIPT, [url, token]) == 1
                browser.close()
