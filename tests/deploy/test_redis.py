"""The shipped Redis settings do what each role needs, on a real server, and the gateway tells one from the other."""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path

import pytest
import redis

from tests.cli.running import COMPLETE, TENANTS
from tests.docs.page import blocks
from tests.fleet import APP, ROOT, free_port, get_json, wait_until

from .servers import server, url_of


def _environment(folder: Path, url: str) -> dict[str, str]:
    (folder / "tenants.yaml").write_text(TENANTS)
    return COMPLETE | {
        "PATH": "/usr/bin:/bin",
        "PYTHONPATH": str(ROOT),
        "REDIS_URL": url,
        "GATEWAY_TENANTS_FILE": str(folder / "tenants.yaml"),
        "GATEWAY_DATA_DIR": str(folder / "data"),
        "GATEWAY_LISTEN": f"127.0.0.1:{free_port()}",
        "GATEWAY_OPS_LISTEN": f"127.0.0.1:{free_port()}",
        "GATEWAY_DRAIN_DELAY": "0",
    }


def _serve(folder: Path, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    subprocess.run([*APP, "ledger", "init"], env=environment, cwd=folder, check=True, capture_output=True, timeout=30)
    with (folder / "log").open("wb") as log:
        return subprocess.Popen([*APP, "serve"], env=environment, cwd=folder, stdout=log, stderr=log)


def test_a_gateway_takes_the_ledgers_settings(tmp_path: Path) -> None:
    """It starts on them without any leave to be volatile, and is ready."""
    with server("ledger", tmp_path) as ledger:
        environment = _environment(tmp_path, url_of(ledger))
        process = _serve(tmp_path, environment)
        try:
            ops = f"http://{environment['GATEWAY_OPS_LISTEN']}"
            wait_until(lambda: process.poll() is not None or _ready(ops), 20, (tmp_path / "log").read_text)
            assert process.poll() is None, (tmp_path / "log").read_text()
            process.terminate()
            assert process.wait(20) == 0
        finally:
            process.kill()
            process.wait()


def _ready(ops: str) -> bool:
    try:
        return bool(get_json(ops + "/readyz")["status"] == "ready")
    except OSError:
        return False


def test_a_gateway_refuses_the_caches_settings_for_its_ledger(tmp_path: Path) -> None:
    """Swapped URLs end in a word at start, not in forgotten spending."""
    with server("cache", tmp_path) as cache:
        process = _serve(tmp_path, _environment(tmp_path, url_of(cache)))
        try:
            assert process.wait(30) == 1
        finally:
            process.kill()
            process.wait()
    assert "the ledger's Redis may evict keys" in (tmp_path / "log").read_text()


def test_a_full_ledger_refuses_and_a_full_cache_forgets(tmp_path: Path) -> None:
    """With a few megabytes instead of hundreds: no key of the ledger goes, and every write to the cache is taken."""
    with server("ledger", tmp_path, "--maxmemory", "4mb") as ledger:
        with pytest.raises(redis.exceptions.OutOfMemoryError):
            _fill(ledger)
        assert ledger.info("stats")["evicted_keys"] == 0
    with server("cache", tmp_path, "--maxmemory", "4mb") as cache:
        assert _fill(cache) == 200
        assert cache.info("stats")["evicted_keys"] > 0


def _fill(client: redis.Redis) -> int:
    """Write 20 MB in 200 values; how many were taken."""
    return sum(bool(client.set(str(number), b"x" * 100_000)) for number in range(200))


def test_a_killed_ledger_comes_back_with_what_was_written_and_a_cache_writes_no_file(tmp_path: Path) -> None:
    """The append-only file outlives the process; the cache leaves its folder empty."""
    with server("ledger", tmp_path) as ledger:
        ledger.set("spent", 40_000)
    with server("ledger", tmp_path) as ledger:
        assert ledger.get("spent") == b"40000"
    with server("cache", tmp_path) as cache:
        cache.set("picture", b"x" * 100_000)
        assert [path.name for path in (tmp_path / "cache").iterdir()] == ["log"]


USER = ROOT / "deploy" / "redis" / "gateway-user.conf"


def _asked(server: redis.Redis) -> set[str]:
    """Every command in the gateway's scripts and modules, as rules of an ACL name it."""
    known = {name.decode().upper() for name in server.execute_command("COMMAND LIST")} - {"READONLY"}  # an error's word
    found = set()
    for path in (ROOT / "app").rglob("*.lua"):
        for command, word in re.findall(r"redis\.p?call\(\s*'([A-Z]+)'(?:, '([A-Z]+)')?", path.read_text()):
            found.add(f"{command}|{word}" if command == "XGROUP" else command)
    for path in (ROOT / "app").rglob("*.py"):
        words = {node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant)}
        found |= {f"{word}|LOAD" if word == "SCRIPT" else word for word in words & known}
    return {name.lower() for name in found}


def test_the_user_may_do_what_the_gateway_asks_and_nothing_else(tmp_path: Path) -> None:
    """Every command that stands in the sources, and SELECT for another database than 0; keys of the gateway only."""
    (line,) = (line for line in USER.read_text().splitlines() if not line.startswith("#"))
    start, *rules = line.split(" +")
    assert start == "user gateway on #sha256-of-its-password resetchannels ~kg:* -@all"
    with server("ledger", tmp_path) as ledger:
        assert rules == sorted(_asked(ledger) | {"select"})


def test_a_user_without_a_password_of_its_own_keeps_the_server_from_starting(tmp_path: Path) -> None:
    """The shipped line is no way in for whoever has read it."""
    config = ["--port", str(free_port()), "--bind", "127.0.0.1", "--dir", str(tmp_path), "--include", str(USER)]
    done = subprocess.run(["redis-server", *config], capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode == 1
    assert "password hash must be exactly 64 characters" in done.stdout + done.stderr


def test_readme_shows_the_user_as_it_is_shipped() -> None:
    """To be copied from either."""
    (shown,) = (block.text for block in blocks() if block.text.startswith("user gateway "))
    assert shown.strip() in USER.read_text().splitlines()
