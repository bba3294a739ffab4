"""docker-compose.yml is valid, every service in it is hardened, and what must stay inside stays inside."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from app.settings import Settings, address

from .compose import COMPOSE, megabytes, sandbox_values, seconds, stack, values
from .dockerfile import ROOT, stages

STACKS = [stack(), stack(sandbox_values())]
SERVICES = [(name, service) for name, service in stack()["services"].items()]
ONCE = {"sandbox-ledger", "sandbox-key"}
each_service = pytest.mark.parametrize(("name", "service"), SERVICES, ids=[name for name, _ in SERVICES])


def test_the_file_is_what_the_compose_specification_allows() -> None:
    """Against the specification's own schema."""
    command = [str(Path(sys.executable).parent / "check-jsonschema"), "--builtin-schema", "vendor.compose-spec"]
    done = subprocess.run([*command, str(COMPOSE)], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout


@each_service
def test_a_service_has_no_privilege(name: str, service: dict[str, Any]) -> None:
    """Not root, no capability, no way to gain one, nothing to write on but what is mounted."""
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", service["user"])
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["tmpfs"][0].startswith("/tmp:")
    assert not {"privileged", "cap_add", "devices", "pid", "ipc", "userns_mode", "extra_hosts"} & set(service)
    assert "docker.sock" not in str(service)
    if service["image"].startswith("kontext-gateway:"):
        assert service["user"] == stages()[-1].user


@each_service
def test_a_service_is_bounded_and_ends_in_order(name: str, service: dict[str, Any]) -> None:
    """Processor, memory, processes and logs have limits; what is asked to stop is given the time that it may take."""
    limits = service["deploy"]["resources"]["limits"]
    assert float(limits["cpus"]) > 0
    assert megabytes(limits["memory"]) >= 64
    assert int(limits["pids"]) > 0
    assert service["logging"]["options"].keys() >= {"max-size", "max-file"}
    drain = sum(Settings.model_fields[f"gateway_drain_{name}"].default for name in ("delay", "timeout"))
    assert seconds(service["stop_grace_period"]) > drain


@each_service
def test_a_service_is_watched_and_started_again(name: str, service: dict[str, Any]) -> None:
    """Its own probe or its image's, and a restart policy; a step that runs once has neither."""
    if name in ONCE:
        assert (service["restart"], service["healthcheck"]) == ("no", {"disable": True})
        assert service["profiles"] == ["sandbox"]
        return
    assert service["restart"] == "unless-stopped"
    if name == "gateway":
        assert "healthcheck" not in service
        assert stages()[-1].command("HEALTHCHECK")
    else:
        assert service["healthcheck"]["test"][0] == "CMD"


@each_service
def test_an_image_is_pinned_by_tag(name: str, service: dict[str, Any]) -> None:
    """A version, never `latest` and never nothing; our own is the version that the image is labelled with."""
    _, tag = service["image"].rsplit(":", 1)
    assert re.match(r"v?\d+\.\d+", tag), service["image"]
    if "build" in service:
        assert tag == stages()[-1].labels["org.opencontainers.image.version"]


def test_only_the_public_listener_and_prometheus_are_published_and_on_loopback() -> None:
    """The ops listener, the ledger and the cache have no port on the machine."""
    published = {(name, port) for name, service in SERVICES for port in service.get("ports", ())}
    assert published == {("gateway", "127.0.0.1:8080:8080"), ("prometheus", "127.0.0.1:9090:9090")}
    environment = stack()["services"]["gateway"]["environment"]
    assert address(environment["GATEWAY_LISTEN"]) == ("0.0.0.0", 8080)
    assert address(environment["GATEWAY_OPS_LISTEN"]) == ("0.0.0.0", 8081)


def test_the_servers_without_a_password_are_on_a_network_of_their_own() -> None:
    """`store` has no way out, and nobody but the gateway's processes is on it beside ledger and cache."""
    data = stack()
    assert data["networks"]["store"]["internal"] is True
    there = {name for name, service in SERVICES if "store" in service.get("networks", ())}
    assert there == {"gateway", "ledger", "cache", *ONCE}
    assert data["services"]["ledger"]["networks"] == data["services"]["cache"]["networks"] == ["store"]
    assert all("networks" in service or "network_mode" in service for _, service in SERVICES)


@pytest.mark.parametrize("data", STACKS, ids=["prodia", "sandbox"])
def test_the_gateways_environment_is_settings_that_it_takes(
    data: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Every name is a setting, and together they are accepted; secrets come as files only."""
    environment = data["services"]["gateway"]["environment"]
    assert {name.lower() for name in environment} <= set(Settings.model_fields)
    assert not {"PRODIA_TOKEN", "GATEWAY_KEY_PEPPER"} & set(environment)
    for name, path in environment.items():
        if name.endswith("_FILE") and path.startswith("/run/secrets/"):
            secret = Path(path).name
            assert secret in data["services"]["gateway"]["secrets"]
            assert data["secrets"][secret]["file"].endswith(f"/{secret}")
            (tmp_path / secret).write_text("a-secret-of-at-least-thirty-two-characters")
            path = str(tmp_path / secret)
        monkeypatch.setenv(name, path)
    monkeypatch.chdir(tmp_path)
    settings = Settings()
    assert settings.redis_url is not None
    assert settings.cache_redis_url is not None
    hosts = [url.get_secret_value().split("/")[2] for url in (settings.redis_url, settings.cache_redis_url)]
    assert hosts == ["ledger:6379", "cache:6379"]
    assert not settings.gateway_accept_volatile_ledger


def test_a_role_has_its_settings_and_twice_its_memory() -> None:
    """Each server reads its own file, and a rewrite of the append-only file has room to copy."""
    for role in ("ledger", "cache"):
        service = stack()["services"][role]
        assert f"./deploy/redis/{role}.conf:{service['command'][1]}:ro" in service["volumes"]
        lines = (ROOT / f"deploy/redis/{role}.conf").read_text().splitlines()
        config = dict(line.split(" ", 1) for line in lines if line[:1].isalpha())
        memory = megabytes(service["deploy"]["resources"]["limits"]["memory"])
        assert megabytes(config["maxmemory"]) * 2 <= memory
    assert any(volume.startswith("ledger-data:/data") for volume in stack()["services"]["ledger"]["volumes"])


def test_prometheus_scrapes_the_ops_listener_of_every_replica() -> None:
    """By the service's name and the port of GATEWAY_OPS_LISTEN, over a network that both are on."""
    services = stack()["services"]
    (job,) = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())["scrape_configs"]
    (found,) = job["dns_sd_configs"]
    assert found["names"] == ["gateway"]
    assert found["port"] == address(services["gateway"]["environment"]["GATEWAY_OPS_LISTEN"])[1]
    assert set(services["prometheus"]["networks"]) & set(services["gateway"]["networks"])


def test_the_stand_in_is_on_the_gateways_loopback_and_nowhere_else() -> None:
    """The sandbox stack's upstream is the address that the stand-in listens on; plain HTTP goes no further."""
    services = stack(sandbox_values())["services"]
    sandbox = services["sandbox"]
    assert sandbox["network_mode"] == "service:gateway"
    assert "ports" not in sandbox
    listen = sandbox["command"][sandbox["command"].index("--listen") + 1]
    assert address(listen)[0] == "127.0.0.1"
    assert services["gateway"]["environment"]["PRODIA_BASE_URL"] == f"http://{listen}/v2"
    assert {name for name, service in SERVICES if "profiles" in service} == {"sandbox", *ONCE}


def test_what_is_mounted_from_the_machine_is_there_and_cannot_be_written() -> None:
    """Files of the repository, and for the sandbox stack also its tenants and secrets."""
    for data in STACKS:
        for service in data["services"].values():
            for volume in service.get("volumes", ()):
                if isinstance(volume, dict):
                    assert volume["read_only"] is True
                    assert data is STACKS[0] or (ROOT / volume["source"] / "tenants.yaml").is_file()
                elif volume.startswith("./"):
                    source, _, mode = volume.split(":")
                    assert (ROOT / source).exists(), source
                    assert mode == "ro"
                else:
                    assert volume.split(":")[0] in data["volumes"]
    for secret in STACKS[1]["secrets"].values():
        assert (ROOT / secret["file"]).is_file()


def test_values_of_a_stack_are_explained_where_they_are_used() -> None:
    """The comment at the head names every value with its default; the sandbox's file sets no other."""
    head = COMPOSE.read_text("utf-8").partition("name:")[0]
    told = dict(re.findall(r"^#   (STACK_\w+) +(\S+)", head, flags=re.M))
    assert set(told) == set(values())
    assert all(default in (value, "Prodia") for value, default in ((values()[name], told[name]) for name in told))
    assert set(sandbox_values()) <= set(values())
    assert "STACK_PUBLISH" not in sandbox_values()
