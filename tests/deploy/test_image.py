"""What the Dockerfile builds, run as an engine would run it: the whole sandbox stack of docker-compose.yml by hand.

No container engine is used. The Dockerfile's lines are followed in a root of their own, and the services' commands and
environment are those of docker-compose.yml, with this machine's loopback in the place of its networks.
"""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
import subprocess
import urllib.request
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from app.store.blobs import IN_MEMORY
from tests.fleet import free_port, get_json, wait_until

from .compose import sandbox_values, stack
from .container import Built, Container, build
from .dockerfile import ROOT
from .servers import server, url_of


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """The image, built once."""
    return build(tmp_path_factory.mktemp("image"))


def test_the_wheel_holds_scripts_and_data_and_no_test(image: Built) -> None:
    """Every Lua script and TOML file of the package is in it; nothing outside of the package is."""
    names = set(zipfile.ZipFile(image.wheel).namelist())
    data = {str(path.relative_to(ROOT)) for kind in ("lua", "toml") for path in (ROOT / "app").rglob(f"*.{kind}")}
    assert len(data) > 10
    assert data <= names
    assert {name.split("/")[0] for name in names} == {"app", image.wheel.name.split("-py3-")[0] + ".dist-info"}
    assert not [name for name in names if re.search(r"test|\.env|\.git|secret", name)]


def test_the_environment_is_compiled_and_cannot_install(image: Built) -> None:
    """Byte code of our own modules and of the libraries is there; pip is not."""
    (packages,) = (image.root / "venv" / "lib").glob("python3.*/site-packages")
    for source in (packages / "app" / "pipeline.py", packages / "fastapi" / "applications.py"):
        assert list((source.parent / "__pycache__").glob(f"{source.stem}.*.pyc")), source
    assert not list(packages.glob("pip*"))
    assert not list((image.root / "venv" / "bin").glob("pip*"))
    assert not (image.root / "tools").exists()
    assert not (image.root / "src").exists()


@dataclass(frozen=True)
class Stack:
    """The sandbox stack, started: the gateway's container, where it answers, and the key that was printed."""

    gateway: Container
    url: str
    key: str

    def post(self, path: str, body: object) -> tuple[int, bytes]:
        """One call with the key."""
        headers = {"Authorization": f"Bearer {self.key}", "Content-Type": "application/json"}
        request = urllib.request.Request(self.url + path, json.dumps(body).encode(), headers)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.read()


@pytest.fixture
def running(image: Built, tmp_path: Path) -> Iterator[Stack]:
    """Redis from the shipped files, then the services of the profile `sandbox` in the order of their dependencies."""
    services = stack(sandbox_values())["services"]
    public, ops, upstream = free_port(), free_port(), free_port()
    with ExitStack() as parts:
        ledger, cache = (parts.enter_context(server(role, tmp_path)) for role in ("ledger", "cache"))
        places = {
            "redis://ledger:6379/0": url_of(ledger),
            "redis://cache:6379/0": url_of(cache),
            "0.0.0.0:8080": f"127.0.0.1:{public}",
            "0.0.0.0:8081": f"127.0.0.1:{ops}",
            "http://127.0.0.1:8089/v2": f"http://127.0.0.1:{upstream}/v2",
            "127.0.0.1:8089": f"127.0.0.1:{upstream}",
        }
        binds = {_readable(ROOT / sandbox_values()["STACK_CONFIG"], tmp_path / "config"): "/config"}
        binds[_readable(ROOT / sandbox_values()["STACK_SECRETS"], tmp_path / "secrets")] = "/run/secrets"

        def words(name: str) -> list[str]:
            given = services[name].get("command") or image.stage.command("CMD")
            return [places.get(word, word) for word in given]

        def environment(name: str) -> dict[str, str]:
            found: dict[str, str] = services[name].get("environment", {})
            return {name: places.get(value, value) for name, value in found.items()}

        def once(name: str) -> str:
            log = tmp_path / f"{name}.log"
            assert image.run(words(name), environment(name), binds, log) == 0, log.read_text()
            return log.read_text()

        assert "new ledger led_" in once("sandbox-ledger")
        assert "there is a ledger already" in once("sandbox-ledger")
        settings = environment("gateway") | {"GATEWAY_DRAIN_DELAY": "0"}
        gateway = image.container(words("gateway"), settings, binds, tmp_path / "gateway.log")
        started = parts.enter_context(gateway)
        stand_in = image.container(words("sandbox"), environment("sandbox"), {}, tmp_path / "sandbox.log")
        parts.enter_context(stand_in)
        for url in (f"http://127.0.0.1:{ops}/readyz", f"http://127.0.0.1:{upstream}/sandbox/stats"):
            wait_until(lambda url=url: _answers(url, started), 60, started.log.read_text)
        (key,) = re.findall(r"kgw_live_[0-9A-Za-z]{38}", once("sandbox-key"))
        yield Stack(started, f"http://127.0.0.1:{public}", key)


def _readable(source: Path, copy: Path) -> Path:
    """A copy that the image's user can read, whatever this machine's umask made of the checkout."""
    shutil.copytree(source, copy, ignore=shutil.ignore_patterns("secrets"))
    for path in (copy, *copy.iterdir()):
        path.chmod(0o755 if path.is_dir() else 0o444)
    return copy


def _answers(url: str, container: Container) -> bool:
    assert container.outer.poll() is None, container.log.read_text()
    try:
        return get_json(url) is not None
    except OSError:
        return False


def test_the_stack_makes_pictures_is_healthy_and_stops_with_0(running: Stack) -> None:
    """Generation, and an edit that is too large for memory, by the printed key; the probe; SIGTERM to process 1."""
    status, picture = running.post("/v1/generate", {"prompt": "a lighthouse at dawn", "seed": 7})
    assert (status, picture[:3]) == (200, b"\xff\xd8\xff")
    noise = Image.effect_noise((1000, 800), 100)
    noise.save(large := io.BytesIO(), "PNG")
    assert len(large.getvalue()) > IN_MEMORY
    upload = {"b64": base64.b64encode(large.getvalue()).decode()}
    status, edited = running.post("/v1/edit", {"prompt": "make the sky stormy", "image": upload})
    assert (status, edited[:3]) == (200, b"\xff\xd8\xff")
    assert (running.gateway.built.root / "data" / "spool").is_dir()
    probe = running.gateway.exec(*running.gateway.built.stage.command("HEALTHCHECK"))
    assert (probe.returncode, probe.stdout) == (0, "ready\n"), probe.stderr
    subprocess.run(["kill", "-TERM", str(running.gateway.pid)], check=True)
    assert running.gateway.outer.wait(30) == 0
    assert '"event":"stopped"' in running.gateway.log.read_text()


def test_the_probe_fails_while_the_gateway_is_not_ready(running: Stack, tmp_path: Path) -> None:
    """With a port where nobody answers, it is exit code 1 and no traceback."""
    other = running.gateway.exec("env", f"GATEWAY_OPS_LISTEN=127.0.0.1:{free_port()}", "kontext-gateway", "health")
    assert (other.returncode, other.stdout, other.stderr) == (1, "", "no answer\n")


def test_a_running_container_has_no_privilege_and_can_write_in_two_places_only(running: Stack) -> None:
    """By the kernel's word on its first process, and by trying to write."""
    status: dict[str, Any] = dict(
        line.split(":\t", 1)
        for line in Path(f"/proc/{running.gateway.pid}/status").read_text().splitlines()
        if ":\t" in line
    )
    user, group = running.gateway.built.stage.user.split(":")
    assert set(status["Uid"].split()) == {user}
    assert set(status["Gid"].split()) == {group}
    assert status["Groups"].strip() == ""
    assert status["NSpid"].split()[-1] == "1"
    for name in ("CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert int(status[name], 16) == 0, name
    assert status["NoNewPrivs"] == "1"
    mounts = [line.split() for line in Path(f"/proc/{running.gateway.pid}/mounts").read_text().splitlines()]
    assert {options.split(",")[0] for _, place, _, options, *_ in mounts if place == "/"} == {"ro"}
    for folder in ("/", "/venv", "/venv/bin", "/config", "/run/secrets", "/usr/bin", "/etc"):
        assert running.gateway.exec("touch", f"{folder}/written").returncode != 0, folder
    for folder in ("/data", "/tmp"):
        assert running.gateway.exec("touch", f"{folder}/written").returncode == 0, folder
