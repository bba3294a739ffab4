"""Other gateways in front of the same canned upstream: LiteLLM's proxy and Portkey's gateway, installed from their
registries when the benchmark is asked for them.

Both forward an OpenAI-shaped picture of the same size; none of them decides about budgets before it forwards. One that
cannot be installed or started is a line that says why.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from tests.fleet import free_port

from .load import Body
from .stand import Stand, Target

BODY = Body(
    "application/json",
    b'{"model": "bench", "n": 1, "prompt": "a lighthouse at dawn ',
    b'"}',
)
KEY = "sk-bench-0123456789"
PATH = "/v1/images/generations"
INSTALL_SECONDS, START_SECONDS = 900, 120
LITELLM = """
model_list:
  - model_name: bench
    litellm_params: {{model: openai/bench, api_base: "{upstream}/v1", api_key: x}}
    model_info: {{mode: image_generation}}
general_settings: {{master_key: {key}}}
router_settings: {{redis_host: 127.0.0.1, redis_port: {redis}}}
litellm_settings:
  callbacks: [prometheus]
  cache: true
  cache_params: {{type: redis, host: 127.0.0.1, port: {redis}}}
"""


def start(stand: Stand, folder: Path) -> list[Target | str]:
    """Install into `folder` what is not there yet, and start."""
    return [_tried(name, begin, stand, folder) for name, begin in (("LiteLLM", _litellm), ("Portkey", _portkey))]


def _tried(name: str, begin: Callable[[Stand, Path], Target], stand: Stand, folder: Path) -> Target | str:
    try:
        target = begin(stand, folder.resolve() / name.lower())
        taken = stand.load(target, stand.seeds(3), 1)
    except (OSError, AssertionError, subprocess.SubprocessError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        return f"{name}: not measured, {lines[-1][:200]}"
    return f"{name}: not measured, it answers {dict(taken.failed)}" if taken.failed else target


def _litellm(stand: Stand, folder: Path) -> Target:
    python = folder / "bin" / "python"
    if not python.exists():
        _install([sys.executable, "-m", "venv", str(folder)])
        _install([str(python), "-m", "pip", "install", "-q", "litellm[proxy]", "prometheus_client"])
    redis = stand.fleet.redis_url.rpartition(":")[2].partition("/")[0]
    file = stand.folder / "litellm.yaml"
    file.write_text(LITELLM.format(upstream=stand.upstream, key=KEY, redis=redis))
    port = free_port()
    arguments = ["--config", str(file), "--host", "127.0.0.1", "--port", str(port), "--num_workers", "1"]
    url, pid = stand.run(
        [str(folder / "bin" / "litellm"), *arguments], port, seconds=START_SECONDS, LITELLM_LOG="ERROR",
        LITELLM_LOCAL_MODEL_COST_MAP="True",
    )  # fmt: skip
    version = _output([str(python), "-c", "import importlib.metadata as m; print(m.version('litellm'))"])
    return Target(f"LiteLLM {version}", (pid,), (url + PATH,), {"Authorization": f"Bearer {KEY}"}, BODY)


def _portkey(stand: Stand, folder: Path) -> Target:
    package = folder / "node_modules" / "@portkey-ai" / "gateway"
    if not package.exists():
        folder.mkdir(parents=True, exist_ok=True)
        _install(["npm", "install", "--prefix", str(folder), "--no-audit", "--no-fund", "@portkey-ai/gateway"])
    port = free_port()
    program = ["node", str(package / "build" / "start-server.js"), f"--port={port}", "--headless"]
    url, pid = stand.run(program, port, seconds=START_SECONDS, NODE_ENV="production")
    version = _output(["node", "-p", f"require('{package}/package.json').version"])
    headers = {
        "Authorization": "Bearer x",
        "x-portkey-provider": "openai",
        "x-portkey-custom-host": stand.upstream + "/v1",
    }
    return Target(f"Portkey {version}", (pid,), (url + PATH,), headers, BODY)


def _install(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_SECONDS, check=False)
    if done.returncode:
        raise OSError(done.stderr or f"{command[0]} failed")


def _output(command: list[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout.strip()
