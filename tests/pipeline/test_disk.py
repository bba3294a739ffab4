"""The data directory: one that cannot be written is refused at start, one that fills up costs nobody anything."""

from __future__ import annotations

import os
import random
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from tests.fleet import fleet, wait_until
from tests.pipeline.calls import Policies, call, edit, generate, jobs, new_key, picture, rows, together
from tests.pipeline.test_start import environment, run

LEFT = 300_000  # bytes: too few for the upload, and enough for a part of it


@contextmanager
def mounted(folder: Path, options: str) -> Iterator[Path]:
    """A small file system of its own."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def large(seed: int) -> bytes:
    """A PNG of about 600 KB."""
    written = BytesIO()
    Image.frombytes("RGB", (450, 450), random.Random(seed).randbytes(450 * 450 * 3)).save(written, "PNG")
    return written.getvalue()


def free(folder: Path) -> int:
    """Bytes that are free on its file system."""
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize


@pytest.mark.parametrize("mode", [(), ("--sandbox",)], ids=["serve", "sandbox"])
def test_a_data_directory_that_cannot_be_written_is_refused_at_start(tmp_path: Path, mode: tuple[str, ...]) -> None:
    """A read-only file system, with and without the folder in it, and a file in its place; the setting is named."""
    env = environment(tmp_path, "redis://127.0.0.1:9/0")
    (tmp_path / "file").touch()
    with mounted(tmp_path / "disk", "size=1m") as disk:
        (disk / "used" / "spool").mkdir(parents=True)
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        for data, why in (
            (disk, "Read-only file system"),
            (disk / "used", "Read-only file system"),
            (tmp_path / "file", "Not a directory"),
        ):
            refused = run(tmp_path, env | {"GATEWAY_DATA_DIR": str(data)}, "serve", *mode)
            assert refused.returncode == 1
            assert (
                refused.stderr.splitlines()[-1] == f"GATEWAY_DATA_DIR: files cannot be written in {data}/spool: {why}"
            )
            assert "Traceback" not in refused.stderr


def test_a_disk_that_is_full_refuses_large_uploads_and_nothing_else(tmp_path: Path) -> None:
    """Nothing is charged, held or sent, what was written in part is given back, and with room it goes on."""
    block = 'limits: {budgets: [{usd: "5.00", per: day}], concurrency: 4}'
    fast = ("--time-scale", "0", "--picture", "small")
    with (
        mounted(tmp_path / "disk", "size=2m") as disk,
        fleet(tmp_path, Policies({"acme": block}).text, sandbox=fast, GATEWAY_DATA_DIR=str(disk)) as running,
    ):
        _, token = new_key(running, "acme")
        (replica,) = running.replicas
        assert edit(replica.url, token, {"image": large(1)}).status == 200
        (disk / "ballast").write_bytes(bytes(free(disk) - LEFT))
        before = free(disk)
        answers = together(
            [lambda seed=seed: edit(replica.url, token, {"image": large(2)}, seed=seed) for seed in (5, 5, 6)]
        )  # type: ignore[misc]
        assert [answer.refusal for answer in answers] == [(503, "overloaded", "no")] * 3
        assert {answer.headers["retry-after"] for answer in answers} == {"5"}
        wait_until(lambda: free(disk) == before, 10)
        assert edit(replica.url, token, {"image": picture()}).status == 200
        assert generate(replica.url, token).status == 200
        (budget,) = call(replica.url, "/v1/me", token).json["limits"]
        assert (budget["spent_micro_usd"], budget["reserved_micro_usd"]) == (120_000, 0)
        assert (len(jobs(running)), len(rows(running, "acme"))) == (3, 3)
        assert replica.total("kontext_gateway_rejections_total", tenant="acme", reason="overloaded") == 3
        (disk / "ballast").unlink()
        assert edit(replica.url, token, {"image": large(2)}, seed=5).status == 200
        assert "unhandled" not in replica.log.read_text()
        assert "ignored" not in replica.log.read_text()
