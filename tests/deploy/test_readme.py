"""The chapter on containers: lines that need no Docker are run, lines that do are held to what the files name.

The gateway's own commands behind `docker compose run` are run too, without Docker, in the environment that the Compose
file gives them.
"""

from __future__ import annotations

import ast
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import redis

from tests.docs.page import console, named, table
from tests.fleet import APP

from .compose import SANDBOX_ENV, stack, values
from .dockerfile import ROOT
from .servers import server, url_of
from .test_prometheus import RULES

SERVICES = stack()["services"]
SECTION = "Containers"
# Of `docker compose`: options with a value, and the flags that each subcommand is given here.
GLOBAL = {"-p", "--env-file", "--profile"}
FLAGS = {
    "build": set(),
    "up": {"--detach", "--wait"},
    "run": {"--rm"},
    "exec": set(),
    "down": {"--volumes"},
}


@dataclass(frozen=True)
class Line:
    """One `docker compose` line: options before the subcommand, its flags, and the words behind them."""

    options: dict[str, str]
    subcommand: str
    flags: set[str]
    words: list[str]


def docker_lines() -> Iterator[Line]:
    """Every line that needs Docker, taken apart."""
    for command in console(SECTION):
        if not command.text.startswith("docker "):
            continue
        docker, compose, *words = shlex.split(command.text)
        assert (docker, compose) == ("docker", "compose"), command.text
        options = {}
        while words[0].startswith("-"):
            options[words[0]] = words[1]
            words = words[2:]
        subcommand, *words = words
        flags = set()
        while words and words[0].startswith("-"):
            flags.add(words.pop(0))
        yield Line(options, subcommand, flags, words)


def test_lines_for_docker_name_what_there_is() -> None:
    """Subcommands, flags, services, profiles and files; the sandbox's lines all speak of one stack."""
    profiles = {profile for service in SERVICES.values() for profile in service.get("profiles", ())}
    lines = list(docker_lines())
    assert len(lines) >= 8
    for line in lines:
        assert line.flags <= FLAGS[line.subcommand], line
        assert line.options.keys() <= GLOBAL, line
        if line.options:
            assert line.options.keys() == GLOBAL
            assert (ROOT / line.options["--env-file"]) == SANDBOX_ENV
            assert line.options["--profile"] in profiles
            assert line.options["-p"] != "kontext-gateway"
        if line.subcommand in ("run", "exec"):
            assert line.words[0] in SERVICES, line
        else:
            assert not line.words, line
        if line.subcommand == "exec":
            python, flag, code = line.words[1:]
            assert (python, flag) == ("python3", "-c")
            assert SERVICES[line.words[0]]["command"][-1] in code
            ast.parse(code)
    assert len({tuple(line.options.items()) for line in lines if line.options}) == 1


def test_the_steps_to_prodia_lead_to_a_key(tmp_path: Path) -> None:
    """Folders and secrets as README makes them, then check, ledger and key as the gateway's service would run them."""
    (tmp_path / "deploy").mkdir()
    (tmp_path / "deploy" / "tenants.example.yaml").write_bytes((ROOT / "deploy" / "tenants.example.yaml").read_bytes())
    path = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    for command in console(SECTION):
        if not command.text.startswith("docker "):
            subprocess.run(["sh", "-ec", command.text], cwd=tmp_path, env=path, check=True, timeout=30)
    assert (tmp_path / "secrets").stat().st_mode & 0o777 == 0o700
    assert {file.stat().st_mode & 0o777 for file in (tmp_path / "secrets").iterdir()} == {0o444}
    assert (tmp_path / "config").stat().st_mode & 0o005 == 0o005
    with server("ledger", tmp_path) as ledger:
        steps = [line.words[1:] for line in docker_lines() if line.subcommand == "run"]
        assert [step[0] for step in steps] == ["check", "ledger", "keys"]
        for step in steps:
            done = subprocess.run(
                [*APP, *step], env=path | _as_service(tmp_path, ledger), cwd=tmp_path, capture_output=True, text=True,
                timeout=30, check=False,
            )  # fmt: skip
            assert done.returncode == 0, (step, done.stderr)
        assert "kgw_live_" in done.stdout


def _as_service(folder: Path, ledger: redis.Redis) -> dict[str, str]:
    """The environment of the service `gateway`, with what is mounted in it at its place in `folder`."""
    found: dict[str, str] = SERVICES["gateway"]["environment"]
    mounts = {
        "/run/secrets": str(folder / values()["STACK_SECRETS"]),
        "/config": str(folder / values()["STACK_CONFIG"]),
    }
    environment = {"PYTHONPATH": str(ROOT)}
    for name, value in found.items():
        for inside, outside in mounts.items():
            value = outside + value.removeprefix(inside) if value.startswith(inside + "/") else value
        environment[name] = url_of(ledger) if name == "REDIS_URL" else value
    return environment


def test_services_and_values_of_the_stack_are_listed() -> None:
    """The tables are what docker-compose.yml has, with its addresses and defaults."""
    rows = {named(name)[0]: (meaning, named(place)) for name, meaning, place in table("Service")}
    assert list(rows) == list(SERVICES)
    for name, (meaning, place) in rows.items():
        assert place == [port.rpartition(":")[0] for port in SERVICES[name].get("ports", ())]
        assert ("profile `sandbox`" in meaning) == ("profiles" in SERVICES[name])
    assert {named(name)[0]: named(default)[0] for name, default, _ in table("Stack value")} == values()


@pytest.mark.parametrize("row", table("Alert"), ids=lambda row: row[0])
def test_an_alert_is_listed_as_it_is(row: list[str]) -> None:
    """Name and severity are those of the rule, and no rule is left out."""
    alerts = {rule["alert"]: rule for rule in RULES if "alert" in rule}
    assert alerts[named(row[0])[0]]["labels"]["severity"] == row[1]
    assert [named(row[0])[0] for row in table("Alert")] == list(alerts)
