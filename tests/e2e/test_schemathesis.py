"""The OpenAPI document and the gateway agree: what the document allows is taken, what it does not is refused."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.exchange import make_keys
from tests.fleet import ROOT, Fleet, fleet

EXAMPLES = "60"
SEED = os.environ.get("KGW_SCHEMATHESIS_SEED", "20260101")
TENANTS = '{"version": 1, "tenants": {"acme": {"name": "Acme"}}}\n'
OPS = "^/(metrics|healthz|readyz)$"


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    sandbox = ("--time-scale", "0", "--picture", "small")
    with fleet(tmp_path_factory.mktemp("schema"), TENANTS, sandbox=sandbox, GATEWAY_REDIS_TIMEOUT="5s") as found:
        yield found


@pytest.mark.parametrize("listener", ["public", "ops"])
def test_the_gateway_does_what_its_openapi_document_says(running: Fleet, tmp_path: Path, listener: str) -> None:
    replica, key = running.replicas[0], make_keys(running, ["acme"])["acme"]
    only = ["--exclude-path-regex", OPS] if listener == "public" else ["--include-path-regex", OPS]
    done = subprocess.run(
        [
            sys.executable, "-m", "schemathesis.cli", "run", replica.ops + "/openapi.json",
            "--url", replica.url if listener == "public" else replica.ops,
            "--checks", "all", "--mode", "all", "--max-examples", EXAMPLES, "--seed", SEED, "--continue-on-failure",
            "-H", f"Authorization: Bearer {key}", "--request-timeout", "10", "--no-color", "--warnings", "off", *only,
        ],
        cwd=tmp_path, env=dict(os.environ, PYTHONPATH=str(ROOT), SCHEMATHESIS_HOOKS="tests.e2e.schemathesis_hooks"),
        capture_output=True, text=True, timeout=150, check=False,
    )  # fmt: skip
    print(f"\nKGW_SCHEMATHESIS_SEED={SEED}\n{done.stdout[-12_000:]}{done.stderr[-3000:]}")
    assert done.returncode == 0
    assert "unhandled" not in replica.log.read_text()
