"""The stage of the client suites: a gateway on a real Valkey with the stand-in behind it, and tenants that are refused.

A suite's script, in the client's own language, is a process of its own: it finds the gateway's address and one key per
tenant in its environment, and writes one JSON line per step. What the gateway was really asked is read from its log.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.fleet import Fleet, Replica, fleet
from tests.pipeline.calls import call, generate, picture

HERE = Path(__file__).resolve().parent
VENV = HERE.parent.parent / ".venv"  # holds Node too
PYTHON = HERE.parent.parent / ".venv-clients" / "bin" / "python"

TENANTS = {
    "shop": "safety: {allow_without_knob: [dev]}",
    "other": "",
    "strict": "safety: {generate: {ceiling: 1}, edit: {ceiling: 1}, mode: reject}",
    "broke": 'limits: {budgets: [{usd: "0.04", per: month}]}',  # spent by the stage
    "hourly": "limits: {requests: {rate: 1/1h}}",  # taken by the stage
    "brisk": "limits: {requests: {rate: 1/2s, burst: 1}}",  # a refused client that waits gets its picture
}

Steps = Mapping[str, Any]  # what each step of a script said, by the step's name


@dataclass
class Stage:
    """One gateway with a key for each tenant, and what the stage itself asked of it."""

    fleet: Fleet
    folder: Path
    tokens: dict[str, str]
    own: dict[str, int] = field(default_factory=dict)

    @property
    def replica(self) -> Replica:
        """The gateway."""
        return self.fleet.replicas[0]

    @property
    def url(self) -> str:
        """Its public address, without a path."""
        return self.replica.url

    def requests(self, tenant: str) -> list[dict[str, Any]]:
        """The log lines of what a tenant's client asked, oldest first: one request is one line. Without the stage's
        own."""
        call(self.url, "/v1/me", "nobody's")  # answered after them: by now the line of each is written
        lines = [json.loads(line) for line in self.replica.log.read_text().splitlines() if '"event":"request"' in line]
        return [line for line in lines if line.get("tenant") == tenant][self.own.get(tenant, 0) :]

    def statuses(self, tenant: str) -> list[int]:
        """The statuses that a tenant's client was answered, oldest first."""
        return [line["status"] for line in self.requests(tenant)]

    def node(self, script: str, **environment: str) -> Steps:
        """Run a Node script of this folder to its end; its steps. Fails where the script does."""
        return self._run([str(VENV / "bin" / "node"), str(HERE / script)], environment)

    def example(self, language: str, code: str) -> str:
        """What an example of README prints, as it stands, in a folder of its own; its key is the shop's."""
        folder = self.folder / f"example-{language}"
        folder.mkdir(exist_ok=True)
        if language == "js":
            (folder / "node_modules").unlink(missing_ok=True)
            (folder / "node_modules").symlink_to(HERE / "node_modules")
        node = [str(VENV / "bin" / "node"), "--input-type=module", "-e"]
        program = node if language == "js" else [str(PYTHON), "-c"]
        done = self._process([*program, code], folder, {"GATEWAY_KEY": self.tokens["shop"]})
        return done.stdout

    def python(self, script: str, **environment: str) -> Steps:
        """Run a Python script of this folder in the clients' own environment; its steps. Fails where the script
        does."""
        return self._run([str(PYTHON), str(HERE / script)], environment)

    def _run(self, command: Sequence[str], environment: Mapping[str, str]) -> Steps:
        image = self.folder / "photo.png"
        image.write_bytes(picture())
        keys = {f"KEY_{name.upper()}": token for name, token in self.tokens.items()}
        done = self._process(command, HERE, {"PHOTO": str(image)} | keys | dict(environment))
        lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
        return {line.pop("step"): line for line in lines}

    def _process(
        self, command: Sequence[str], folder: Path, environment: Mapping[str, str]
    ) -> subprocess.CompletedProcess[str]:
        given = {"PATH": os.environ["PATH"], "HOME": str(self.folder), "GATEWAY_URL": self.url}
        done = subprocess.run(
            command, cwd=folder, env=given | dict(environment), capture_output=True, text=True, timeout=240, check=False
        )
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
        return done


@contextmanager
def stage(folder: Path, *, tenants: Mapping[str, str] = TENANTS, **environment: str) -> Iterator[Stage]:
    """Start everything, spend what is to be spent, yield it, end everything. `environment` goes to the gateway."""
    blocks = "".join(f"  {name}: {{{block}}}\n" for name, block in tenants.items())
    with fleet(folder, f"version: 1\ntenants:\n{blocks}", **environment) as running:
        made = Stage(running, folder, {name: running.token(name) for name in tenants})
        if "broke" in tenants:
            assert generate(made.url, made.tokens["broke"]).status == 200
        if "hourly" in tenants:
            assert call(made.url, "/v1/me", made.tokens["hourly"]).status == 200
        made.own = {name: len(made.requests(name)) for name in tenants}
        yield made
