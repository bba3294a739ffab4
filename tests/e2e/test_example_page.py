"""The page of `deploy/examples` in a real browser: it edits with a client token from its own origin and no other."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import pytest
from PIL import Image
from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.e2e.exchange import make_keys
from tests.e2e.test_cors import CHROMIUM, QUIET
from tests.fleet import ROOT, Fleet, fleet
from tests.images.pictures import picture
from tests.processes import free_port, wait_until

BACKEND = ROOT / "deploy" / "examples" / "backend.py"
PHOTO = {"name": "harbour.jpg", "mimeType": "image/jpeg", "buffer": picture("jpeg", 640, 480)}


@contextmanager
def backend(gateway: str, key: str, port: int) -> Iterator[str]:
    """The example's back end, as its first lines say to start it; its origin."""
    url = f"http://127.0.0.1:{port}"
    environment = os.environ | {"GATEWAY_URL": gateway, "GATEWAY_KEY": key, "PORT": str(port)}
    process = subprocess.Popen([sys.executable, str(BACKEND)], env=environment, stderr=subprocess.DEVNULL)
    try:
        wait_until(lambda: _answers(url), 20)
        yield url
    finally:
        process.kill()
        process.wait()


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


@dataclass
class Target:
    """A gateway, a shop on an allowed origin, and the same shop on one that is not."""

    fleet: Fleet
    key: str
    own: str
    strange: str


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    port = free_port()
    text = json.dumps({"version": 1, "tenants": {"acme": {"cors": {"origins": [f"http://127.0.0.1:{port}"]}}}}) + "\n"
    with ExitStack() as stack:
        folder = tmp_path_factory.mktemp("page")
        running = stack.enter_context(fleet(folder, text, sandbox=("--time-scale", "0.2")))
        url, key = running.replicas[0].url, make_keys(running, ["acme"])["acme"]
        own = stack.enter_context(backend(url, key, port))
        yield Target(running, key, own, stack.enter_context(backend(url, key, free_port())))


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield found
        found.close()


@dataclass
class Visit:
    """One visitor's page, everything that it sent, and every error that its console told."""

    page: Page
    sent: list[tuple[str, str, str, dict[str, str]]] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)

    def edit(self, wish: str) -> None:
        """Say what should change, and ask for it."""
        self.page.get_by_label("What should change?").fill(wish)
        self.page.get_by_role("button", name="Edit", exact=True).click()


@contextmanager
def visit(browser: Browser, url: str) -> Iterator[Visit]:
    """A fresh visitor."""
    page = browser.new_page(viewport={"width": 1100, "height": 900})
    seen = Visit(page)

    def note(request: object) -> None:
        data = request.post_data_buffer or b""  # type: ignore[attr-defined]
        seen.sent.append(
            (request.method, request.url, data.decode("latin-1"), request.headers)  # type: ignore[attr-defined]
        )

    page.on("request", note)
    page.on("pageerror", lambda error: seen.broken.append(str(error)))
    page.goto(url)
    yield seen
    page.close()
    assert seen.broken == []


@pytest.mark.timeout(120)
def test_a_visitor_edits_a_picture_and_goes_on_from_the_result(target: Target, browser: Browser) -> None:
    with visit(browser, target.own) as seen:
        page = seen.page
        expect(page.get_by_role("progressbar")).to_be_hidden()
        page.get_by_label("Picture to edit").set_input_files(PHOTO)
        expect(page.get_by_alt_text("The picture before the edit")).to_be_visible()
        seen.edit("make the sky stormy")
        expect(page.get_by_role("progressbar", name="Progress against the typical time")).to_be_visible()
        expect(page.get_by_role("status")).to_contain_text("Editing")
        after = page.get_by_alt_text("The picture after the edit")
        expect(after).to_be_visible(timeout=30_000)
        assert after.evaluate("img => img.naturalWidth") >= 256
        expect(page.get_by_role("progressbar")).to_be_hidden()
        expect(page.get_by_role("alert")).to_be_hidden()
        page.get_by_role("button", name="Go on from this one").click()
        first = len(seen.sent)
        seen.edit("add a small boat")
        expect(page.get_by_alt_text("The picture after the edit")).to_be_visible(timeout=30_000)
        (again,) = [body for _, url, body, _ in seen.sent[first:] if url.endswith("/v1/edit")]
        assert json.loads(again)["image"].keys() == {"image_id"}
        gateway = target.fleet.replicas[0].url
        assert {url for _, url, _, _ in seen.sent if not url.startswith((target.own, gateway, "blob:"))} == set()
        everything = page.content() + json.dumps(seen.sent)
        assert "kgw_client_" in everything
        assert "kgw_live_" not in everything
        assert sum(url.endswith("/token") for _, url, _, _ in seen.sent) == 1
        with urllib.request.urlopen(
            urllib.request.Request(
                f"{gateway}/v1/usage?group_by=user", headers={"Authorization": f"Bearer {target.key}"}
            )
        ) as answer:
            rows = json.load(answer)["rows"]
        assert all(row["user"].startswith("visitor-") for row in rows)


def _gif() -> bytes:
    made = io.BytesIO()
    Image.new("RGB", (300, 300), "teal").save(made, "GIF")
    return made.getvalue()


DROP = """async ([name, type, bytes]) => {
  const carried = new DataTransfer();
  carried.items.add(new File([new Uint8Array(bytes)], name, {type}));
  const options = {dataTransfer: carried, bubbles: true, cancelable: true};
  document.getElementById("drop").dispatchEvent(new DragEvent("drop", options));
}"""


@pytest.mark.timeout(120)
def test_a_picture_can_be_dropped_and_what_is_none_is_said_to_be(target: Target, browser: Browser) -> None:
    with visit(browser, target.own) as seen:
        page, before = seen.page, target.fleet.stats()["received"]
        seen.edit("make the sky stormy")
        expect(page.get_by_role("alert")).to_contain_text("Choose a picture first")
        page.evaluate(DROP, ["notes.txt", "text/plain", [1, 2]])
        expect(page.get_by_role("alert")).to_contain_text("Choose a PNG, JPEG or WebP picture")
        page.evaluate(DROP, ["harbour.jpg", "image/jpeg", list(picture("jpeg", 300, 300))])
        expect(page.get_by_role("alert")).to_be_hidden()
        expect(page.get_by_text("harbour.jpg")).to_be_visible()
        seen.edit("x")
        expect(page.get_by_role("alert")).to_contain_text("Say what should change")
        page.evaluate(DROP, ["broken.jpg", "image/jpeg", [255, 216, 255, 0]])
        expect(page.get_by_role("alert")).to_contain_text("cannot be read as a picture")
        expect(page.get_by_text("harbour.jpg")).to_be_visible()
        page.evaluate(DROP, ["moving.jpg", "image/jpeg", list(_gif())])  # a browser shows it, the gateway refuses it
        expect(page.get_by_text("moving.jpg")).to_be_visible()
        seen.edit("make the sky stormy")
        expect(page.get_by_role("alert")).to_contain_text("unsupported_type")
        expect(page.get_by_role("alert")).to_contain_text("req_")
        assert target.fleet.stats()["received"] == before


@pytest.mark.timeout(120)
def test_a_visitor_who_used_up_the_token_is_told_so(target: Target, browser: Browser) -> None:
    with visit(browser, target.own) as seen:
        page = seen.page
        page.get_by_label("Picture to edit").set_input_files(PHOTO)
        for number in range(5):
            seen.edit(f"make it {number} times larger")
            expect(page.get_by_role("button", name="Edit", exact=True)).to_be_enabled(timeout=30_000)
            expect(page.get_by_role("alert")).to_be_hidden()
        seen.edit("once more")
        expect(page.get_by_role("alert")).to_contain_text("You have used up the pictures of this visit")
        expect(page.get_by_role("alert")).to_contain_text("image_quota_exhausted")


@pytest.mark.timeout(120)
def test_the_page_on_another_origin_edits_nothing(target: Target, browser: Browser) -> None:
    with visit(browser, target.strange) as seen:
        page, before = seen.page, target.fleet.stats()["received"]
        page.get_by_label("Picture to edit").set_input_files(PHOTO)
        seen.edit("make the sky stormy")
        expect(page.get_by_role("alert")).to_contain_text("origin is not allowed")
        assert target.fleet.stats()["received"] == before


def test_the_page_is_one_file_that_asks_nobody_else() -> None:
    text = (ROOT / "deploy" / "examples" / "edit.html").read_text()
    assert "http://" not in text
    assert "https://" not in text
    assert not [name for name in ("<link", "<script src", "@import", "url(") if name in text]
