"""The lines of README for Prodia's clients, as they stand there."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.clients.stage import HERE, VENV, stage
from tests.docs.page import blocks

SHOWN = [block.text for block in blocks() if block.language == "js" and block.section == "Prodia's clients"]


def test_readme_has_lines_for_both_clients() -> None:
    assert ['"prodia/v2"' in text or '"@ai-sdk/prodia"' in text for text in SHOWN] == [True, True]


def test_the_lines_of_readme_run(tmp_path: Path) -> None:
    (tmp_path / "node_modules").symlink_to(HERE / "node_modules")
    with stage(tmp_path / "stage", tenants={"shop": ""}, GATEWAY_REDIS_TIMEOUT="5s") as on:
        for number, text in enumerate(SHOWN):
            script = tmp_path / f"{number}.mjs"
            script.write_text(text)
            given = {"GATEWAY_URL": on.url, "GATEWAY_KEY": on.tokens["shop"], "HOME": str(tmp_path)}
            done = subprocess.run(
                [str(VENV / "bin" / "node"), str(script)], cwd=tmp_path, env=given, capture_output=True, text=True,
                timeout=60, check=False,
            )  # fmt: skip
            assert done.returncode == 0, done.stderr
            words = done.stdout.split()[:2]
            assert words == (["upstream", "0.040000"] if '"prodia/v2"' in text else ["image/png", "image/jpeg"])
        assert on.statuses("shop") == [200] * 4


@pytest.mark.parametrize("text", SHOWN)
def test_no_line_holds_a_key(text: str) -> None:
    assert "kgw_" not in text
