"""`check`: one line about what is right, a line with file, line and field about what is not, and nothing secret."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.settings import Settings
from tests.cli.running import COMPLETE, TENANTS, commands, run

CATALOG = """\
[[job]]
type = "inference.flux-2.txt2img.v1"
variant = "flux-2"
operation = "generate"
price_usd = "0.06"
typical_seconds = 9
[job.parameters]
prompt = { kind = "string", required = true }
"""


def test_what_is_right_is_said_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tenants.yaml").write_text(TENANTS)
    (tmp_path / "catalog.toml").write_text(CATALOG)
    runner = commands(monkeypatch, tmp_path, COMPLETE | {"GATEWAY_CATALOG_FILE": "catalog.toml"})
    found = run(runner, "check")
    assert (found.exit_code, found.stdout, found.stderr) == (0, "ok: 6 job types, 2 tenants\n", "")


def test_the_sandbox_needs_no_setting_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = run(commands(monkeypatch, tmp_path, {}), "check", "--sandbox")
    assert (found.exit_code, found.stdout) == (0, "ok: 5 job types, 1 tenants\n")
    assert list(tmp_path.iterdir()) == []


def test_a_misspelt_line_of_the_env_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A setting is not less wrong for standing in a file."""
    (tmp_path / ".env").write_text("GATEWAY_UPSTREAM_CONCURENCY=2\n")
    found = run(commands(monkeypatch, tmp_path, {}), "check", "--sandbox")
    assert found.exit_code == 1
    assert found.stderr.startswith("settings: GATEWAY_UPSTREAM_CONCURENCY is not a setting; did you mean")


@pytest.mark.parametrize("listen", ["8089", ":8089", "127.0.0.1", "127.0.0.1:x"])
def test_the_stand_in_listens_nowhere_by_mistake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, listen: str) -> None:
    """A port without a host would be every interface."""
    found = run(commands(monkeypatch, tmp_path, {}), "sandbox", "--listen", listen)
    assert (found.exit_code, found.stderr) == (1, f"{listen!r} must be host:port, such as 127.0.0.1:8080\n")


SETTINGS: list[tuple[dict[str, str], str]] = [
    ({"PRODIA_TOKEN": ""}, "settings: PRODIA_TOKEN: required without --sandbox"),
    (
        {"REDIS_URL": "", "GATEWAY_KEY_PEPPER": ""},
        "settings: REDIS_URL, GATEWAY_KEY_PEPPER: required without --sandbox",
    ),
    ({"GATEWAY_KEY_PEPPER": "too-short-a-pepper"}, "settings: GATEWAY_KEY_PEPPER must have at least 32 characters"),
    (
        {"PRODIA_BASE_URL": "http://inference.prodia.com/v2"},
        "settings: PRODIA_BASE_URL must be https, or http on loopback",
    ),
    ({"PRODIA_TOKEN_FILE": "token"}, "settings: PRODIA_TOKEN and PRODIA_TOKEN_FILE: set one of them"),
    ({"PRODIA_TOKEN": "", "PRODIA_TOKEN_FILE": "none"}, "settings: PRODIA_TOKEN_FILE cannot be read"),
    ({"PRODIA_TOKEN": "", "PRODIA_TOKEN_FILE": "empty"}, "settings: PRODIA_TOKEN_FILE is empty"),
    (
        {"GATEWAY_KEY_PEPPER_FILE": "pepper"},
        "settings: GATEWAY_KEY_PEPPER and GATEWAY_KEY_PEPPER_FILE: set one of them",
    ),
    ({"GATEWAY_KEY_PEPPER": "", "GATEWAY_KEY_PEPPER_FILE": "none"}, "settings: GATEWAY_KEY_PEPPER_FILE cannot be read"),
    (
        {"GATEWAY_KEY_PEPPER": "", "GATEWAY_KEY_PEPPER_FILE": "short"},
        "settings: GATEWAY_KEY_PEPPER must have at least 32 characters",
    ),
    ({"GATEWAY_LISTEN": "8080"}, "settings: GATEWAY_LISTEN must be host:port"),
    ({"GATEWAY_OPS_LISTEN": "here"}, "settings: GATEWAY_OPS_LISTEN must be host:port"),
    ({"GATEWAY_UPSTREAM_CONCURRENCY": "0"}, "settings: GATEWAY_UPSTREAM_CONCURRENCY: "),
    ({"GATEWAY_UPSTREAM_CONCURRENCY": "many"}, "settings: GATEWAY_UPSTREAM_CONCURRENCY: "),
    ({"GATEWAY_UPSTREAM_DEADLINE": "two minutes"}, "settings: GATEWAY_UPSTREAM_DEADLINE: must be a duration"),
    ({"GATEWAY_DRAIN_TIMEOUT": "2h"}, "settings: GATEWAY_DRAIN_TIMEOUT: "),
    ({"GATEWAY_REDIS_TIMEOUT": "0"}, "settings: GATEWAY_REDIS_TIMEOUT: "),
    ({"GATEWAY_OUTCOMES": "failed=keep"}, "settings: unknown policy 'keep' for 'failed'"),
    (
        {"GATEWAY_MODERATION_PATTERNS": "(unclosed"},
        "settings: GATEWAY_MODERATION_PATTERNS holds a wrong regular expression",
    ),
    ({"GATEWAY_LOG_LEVEL": "LOUD"}, "settings: GATEWAY_LOG_LEVEL: "),
    ({"GATEWAY_ACCEPT_VOLATILE_LEDGER": "maybe"}, "settings: GATEWAY_ACCEPT_VOLATILE_LEDGER: "),
]


@pytest.mark.parametrize(("change", "told"), SETTINGS)
def test_a_wrong_setting_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, str], told: str
) -> None:
    (tmp_path / "tenants.yaml").write_text(TENANTS)
    (tmp_path / "empty").write_text("\n")
    (tmp_path / "short").write_text("too-short-a-pepper\n")
    found = run(commands(monkeypatch, tmp_path, COMPLETE | change), "check")
    assert (found.exit_code, found.stdout) == (1, "")
    assert any(line.startswith(told) for line in found.stderr.splitlines()), found.stderr
    for secret in ("upstream-token-of-the-tests", "pepper-of-the-tests", "too-short-a-pepper"):
        assert secret not in found.stderr


@pytest.mark.parametrize("name", ["PRODIA_TOKEN", "GATEWAY_KEY_PEPPER"])
def test_a_mounted_secret_is_read_from_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    (tmp_path / "tenants.yaml").write_text(TENANTS)
    (tmp_path / "secret").write_text(COMPLETE[name] + "\n")
    runner = commands(monkeypatch, tmp_path, COMPLETE | {name: "", f"{name}_FILE": "secret"})
    assert run(runner, "check").exit_code == 0
    for field in ("prodia_token", "gateway_key_pepper"):
        secret = getattr(Settings(), field)
        assert secret is not None
        assert secret.get_secret_value() == COMPLETE[field.upper()]


def acme(block: str) -> str:
    return TENANTS.replace("Acme}", f"Acme, {block}}}")


FILES: list[tuple[str, str, str]] = [
    ("tenants.yaml", acme("wieght: 2"), "tenants.yaml:3: tenants.acme.wieght: is not a known field; did you mean"),
    ("tenants.yaml", acme("variants: {generate: [dev]}"), "tenants.yaml:3: tenants.acme.variants.generate"),
    ("tenants.yaml", acme("safety: {edit: {ceiling: 3}}"), "tenants.yaml:3: tenants.acme.safety.edit.ceiling: "),
    ("tenants.yaml", "version: 1\n", "tenants.yaml:1: tenants: is required"),
    ("tenants.yaml", "version: 1\ntenants: [\n", "tenants.yaml:2: is not YAML"),
    ("tenants.yaml", "", "tenants.yaml:1: is empty"),
    ("catalog.toml", CATALOG.replace('"0.06"', "0.06"), "catalog.toml:5: job.price_usd: "),
    ("catalog.toml", CATALOG.replace("required", "requird"), "catalog.toml:8: job.parameters.prompt.requird: "),
    ("catalog.toml", CATALOG.replace('"flux-2"', '"pro"'), "catalog.toml:2: job.variant: "),
    ("catalog.toml", CATALOG + "[[job", "catalog.toml:9: not TOML"),
]  # fmt: skip


@pytest.mark.parametrize(("file", "text", "told"), FILES)
def test_a_mistake_in_a_file_is_told_with_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, text: str, told: str
) -> None:
    (tmp_path / "tenants.yaml").write_text(TENANTS)
    (tmp_path / "catalog.toml").write_text(CATALOG)
    (tmp_path / file).write_text(text)
    found = run(commands(monkeypatch, tmp_path, COMPLETE | {"GATEWAY_CATALOG_FILE": "catalog.toml"}), "check")
    assert (found.exit_code, found.stdout) == (1, "")
    assert any(line.startswith(told) for line in found.stderr.splitlines()), found.stderr


def test_every_mistake_of_a_file_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tenants.yaml").write_text(
        "version: 1\ntenants:\n  acme:\n    weight: 0\n    timezone: Berlin\n    suspended: yes\n"
    )
    found = run(commands(monkeypatch, tmp_path, COMPLETE), "check")
    assert [line.split(": ")[0] for line in found.stderr.splitlines()] == [f"tenants.yaml:{line}" for line in (4, 5, 6)]


@pytest.mark.parametrize("name", ["GATEWAY_TENANTS_FILE", "GATEWAY_CATALOG_FILE"])
def test_a_file_that_is_not_there_or_is_no_text_is_told_without_a_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    (tmp_path / "tenants.yaml").write_text(TENANTS)
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00 nothing")
    for file in ("missing", "binary", "."):
        found = run(commands(monkeypatch, tmp_path, COMPLETE | {name: file}), "check")
        assert (found.exit_code, found.stdout) == (1, "")
        assert file in found.stderr


def test_a_catalogue_of_the_operators_own_gives_the_tenants_file_its_variants(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tenants.yaml").write_text(TENANTS.replace("Acme}", "Acme, variants: {generate: [flux-2]}}"))
    (tmp_path / "catalog.toml").write_text(CATALOG)
    assert run(commands(monkeypatch, tmp_path, COMPLETE), "check").exit_code == 1
    with_catalog = COMPLETE | {"GATEWAY_CATALOG_FILE": "catalog.toml"}
    assert run(commands(monkeypatch, tmp_path, with_catalog), "check").exit_code == 0
