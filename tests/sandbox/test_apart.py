"""The sandbox stands apart from the gateway, and says clearly when it cannot start."""

import asyncio
import signal
import socket
import subprocess
import sys
from typing import Any

import pytest

from app.sandbox import SandboxConfig, serve_sandbox

LOADED = "import sys, app.sandbox; print(*sorted(name for name in sys.modules if name.startswith('app.')))"
SERVER = """
import asyncio
from app.sandbox import SandboxConfig, serve_sandbox
asyncio.run(serve_sandbox(SandboxConfig(), ready=lambda url: print(url, flush=True)))
"""


def test_it_imports_nothing_of_the_gateway() -> None:
    loaded = subprocess.run([sys.executable, "-c", LOADED], capture_output=True, text=True, check=True).stdout.split()
    assert loaded[0] == "app.sandbox"
    assert [name for name in loaded if not name.startswith("app.sandbox")] == []


async def test_an_address_in_use_is_an_os_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(OSError, match="in use"):
        await serve_sandbox(SandboxConfig(), port=taken.getsockname()[1], stop=asyncio.Event())


def test_alone_it_ends_on_a_signal() -> None:
    with subprocess.Popen([sys.executable, "-c", SERVER], stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        assert server.stdout.readline().startswith("http://127.0.0.1:")
        server.send_signal(signal.SIGTERM)
        assert server.wait(10) == -signal.SIGTERM


@pytest.mark.parametrize(
    "wrong",
    [
        {"time_scale": -1.0},
        {"time_scale": float("nan")},
        {"picture_bytes": -1},
        {"capacity": -1},
        {"log_limit": 0},
        {"body_limit": 0},
        {"token": ""},
        {"output_filename": "a\r\nb"},
    ],
)
def test_a_setting_out_of_range_is_a_value_error(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        SandboxConfig(**wrong)


def test_the_token_is_not_shown() -> None:
    assert "hush" not in repr(SandboxConfig(token="hush"))
