"""The Dockerfile passes the linter and keeps the rules that make an image safe to run."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

from app.settings import Settings

from .dockerfile import DOCKERFILE, ROOT, stages

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))


def test_the_linter_finds_nothing() -> None:
    """hadolint, with every rule on and no exception."""
    done = subprocess.run(
        [str(Path(sys.executable).parent / "hadolint"), "--no-color", str(DOCKERFILE)],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "")
    assert "hadolint ignore" not in DOCKERFILE.read_text()


def test_the_image_runs_as_nobody_in_particular_and_stops_in_order() -> None:
    """A numeric user that is not root, exec forms, SIGTERM, a probe, and only the public port exposed."""
    build, final = stages()
    assert build.base == final.base
    assert re.fullmatch(r"python:3\.11-slim-\w+(@sha256:[0-9a-f]{64})?", final.base)
    assert re.fullmatch(r"[1-9]\d{3,}:[1-9]\d{3,}", final.user)
    words = [word for word, _ in final.instructions]
    assert words.index("USER") > max(n for n, word in enumerate(words) if word in ("RUN", "COPY"))
    assert final.command("ENTRYPOINT") == ["kontext-gateway"]
    assert final.command("CMD") == ["serve"]
    assert final.command("HEALTHCHECK") == ["kontext-gateway", "health"]
    assert final.all("STOPSIGNAL") == ["SIGTERM"]
    assert final.all("EXPOSE") == [Settings.model_fields["gateway_listen"].default.rpartition(":")[2]]


def test_the_final_stage_has_nothing_to_build_with_and_no_secret() -> None:
    """It installs nothing, removes the base's installers, and takes one folder from the build stage."""
    _, final = stages()
    runs = final.all("RUN")
    assert any(re.search(r"pip uninstall .*\bpip setuptools wheel$", run) for run in runs)
    assert not [run for run in runs if re.search(r"\b(apt|apt-get|curl|wget|pip install)\b", run)]
    assert final.all("COPY") == ["--from=build /venv /venv"]
    assert "ARG" not in {word for stage in stages() for word, _ in stage.instructions}
    for name in final.environment:
        assert not re.search(r"TOKEN|PEPPER|SECRET|PASSWORD|REDIS_URL", name)


def test_every_install_is_from_a_lock_with_hashes_or_from_the_wheel() -> None:
    """No line lets pip choose a version or fetch something that is not locked."""
    build, _ = stages()
    installs = re.findall(r"pip (?:--python \S+ )?(?:install|wheel) .*?(?=&&|$)", " && ".join(build.all("RUN")))
    assert len(installs) >= 4
    for line in installs:
        locked = re.search(r"--require-hashes .*-r requirements(-build)?\.lock", line)
        assert locked or ("--no-deps" in line and ("--no-index" in line or "--no-build-isolation" in line)), line
    lock = (ROOT / "requirements-build.lock").read_text()
    assert PROJECT["dependency-groups"]["build"] == PROJECT["build-system"]["requires"]
    assert "hatchling==" in lock


def test_labels_say_what_the_project_says() -> None:
    """Name, version, licence and base by their OCI names."""
    _, final = stages()
    label = {name.removeprefix("org.opencontainers.image."): value for name, value in final.labels.items()}
    assert (label["title"], label["version"], label["licenses"]) == (
        PROJECT["project"]["name"], PROJECT["project"]["version"], PROJECT["project"]["license"],
    )  # fmt: skip
    assert label["base.name"] == f"docker.io/library/{final.base.partition('@')[0]}"


def test_the_builder_is_sent_only_what_the_dockerfile_copies() -> None:
    """.dockerignore leaves everything out but the sources of COPY; no secret can slip into a layer."""
    build, _ = stages()
    copied = {name for rest in build.all("COPY") for name in rest.split()[:-1]}
    rules = [rule for rule in (ROOT / ".dockerignore").read_text().splitlines() if rule and not rule.startswith("#")]
    assert rules[0] == "*"
    assert {rule[1:] for rule in rules if rule.startswith("!")} == copied
    assert all((ROOT / name).exists() for name in copied)
    assert rules[-1] == "**/__pycache__"
