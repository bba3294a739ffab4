"""Commands run in this process against a folder of their own, and `serve --sandbox` as a process."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from app.cli import cli
from tests.fleet import APP, ROOT, free_port, wait_until

SETTINGS = ("PRODIA_", "REDIS_", "CACHE_REDIS_", "GATEWAY_")
COMPLETE = {
    "PRODIA_TOKEN": "upstream-token-of-the-tests",
    "REDIS_URL": "redis://127.0.0.1:9/0",
    "GATEWAY_KEY_PEPPER": "pepper-of-the-tests-0123456789abcdef",
    "GATEWAY_TENANTS_FILE": "tenants.yaml",
}
TENANTS = "version: 1\ntenants:\n  acme: {name: Acme}\n  globex: {name: Globex}\n"


def commands(monkeypatch: pytest.MonkeyPatch, folder: Path, environment: Mapping[str, str]) -> CliRunner:
    """A runner in `folder` with these settings and no others."""
    for name in [name for name in os.environ if name.startswith(SETTINGS)]:
        monkeypatch.delenv(name)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(folder)
    return CliRunner()


def run(runner: CliRunner, *arguments: str) -> Result:
    """One command; a traceback fails the test."""
    result = runner.invoke(cli, list(arguments))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@dataclass
class Sandbox:
    """`serve --sandbox` in a folder, with what it printed."""

    folder: Path
    port: int = field(default_factory=free_port)
    ops: int = field(default_factory=free_port)
    more: dict[str, str] = field(default_factory=dict)

    @property
    def environment(self) -> dict[str, str]:
        """Its whole environment."""
        return {
            "PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "GATEWAY_LISTEN": f"127.0.0.1:{self.port}",
            "GATEWAY_OPS_LISTEN": f"127.0.0.1:{self.ops}", "GATEWAY_SANDBOX_TIME_SCALE": "0.02", **self.more,
        }  # fmt: skip

    @property
    def url(self) -> str:
        """Its public listener."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def printed(self) -> str:
        """What it wrote to standard error."""
        return (self.folder / "stderr").read_text()

    @property
    def key(self) -> str:
        """The demo tenant's key as printed."""
        found = re.search(r"kgw_live_[0-9A-Za-z]{38}", self.printed)
        assert found, self.printed
        return found[0]

    @property
    def lines(self) -> list[str]:
        """The lines to copy."""
        return [line.strip() for line in self.printed.splitlines() if line.strip().startswith("curl ")]

    @contextmanager
    def running(self) -> Iterator[subprocess.Popen[bytes]]:
        """Start it, wait until it has printed its lines, end it."""
        with (self.folder / "stderr").open("wb") as errors, (self.folder / "stdout").open("ab") as out:
            process = subprocess.Popen(
                [*APP, "serve", "--sandbox"], cwd=self.folder, env=self.environment, stdout=out, stderr=errors
            )
            try:
                wait_until(lambda: process.poll() is not None or len(self.lines) == 3, 20, lambda: self.printed)
                assert process.poll() is None, self.printed
                yield process
            finally:
                if process.poll() is None:
                    process.send_signal(signal.SIGTERM)
                    try:
                        process.wait(20)
                    finally:
                        process.kill()
                        process.wait()

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Another command in the same folder."""
        return subprocess.run(
            [*APP, *arguments],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )


def seconds(began: float) -> float:
    """How long ago."""
    return time.monotonic() - began
