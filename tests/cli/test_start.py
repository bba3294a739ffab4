"""A command starts without the servers that it does not run."""

from __future__ import annotations

import subprocess
import sys

HEAVY = ("aiohttp", "app.sandbox", "app.serve", "fastapi", "uvicorn")


def test_the_commands_load_no_server() -> None:
    ask = f"import sys, app.cli; print(sorted(set({HEAVY!r}) & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "[]\n"
