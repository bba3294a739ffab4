"""`serve --sandbox` in an empty folder: ready in seconds, three lines that run as printed, a ledger that stays."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from app.store.embedded import Embedded
from tests.cli.running import Sandbox, seconds
from tests.fleet import APP, ROOT, free_port, get_json, wait_until
from tests.pipeline.calls import call, generate


@pytest.fixture
def sandbox(tmp_path: Path) -> Iterator[Sandbox]:
    """One in an empty folder; whatever is left running at the end is a failure."""
    found = Sandbox(tmp_path)
    yield found
    embedded = Embedded(tmp_path / ".kontext-gateway")
    try:
        wait_until(lambda: embedded.running() is None, 10, lambda: "the embedded Valkey was left running")
    finally:
        embedded.stop()


def spent(sandbox: Sandbox, token: str) -> int:
    caps = call(sandbox.url, "/v1/me", token).json["limits"]
    return int(next(cap["spent_micro_usd"] for cap in caps if cap["kind"] == "budget" and cap["level"] == "tenant"))


def test_three_lines_to_a_first_picture_and_a_ledger_that_is_there_after_a_restart(sandbox: Sandbox) -> None:
    began = time.monotonic()
    with sandbox.running() as process:
        assert seconds(began) < 10
        assert len(sandbox.lines) == 3
        for line in sandbox.lines:
            done = subprocess.run(
                ["sh", "-c", line], cwd=sandbox.folder, capture_output=True, text=True, timeout=30, check=False
            )
            assert (done.returncode, done.stderr) == (0, ""), line
        assert '"tenant":"demo"' in done.stdout
        first, stormy = ((sandbox.folder / name).read_bytes() for name in ("first.jpg", "stormy.jpg"))
        assert first[:3] == stormy[:3] == b"\xff\xd8\xff"
        assert first != stormy
        token = sandbox.key
        assert spent(sandbox, token) == 80_000
        assert sandbox.key not in (sandbox.folder / "stdout").read_text()
        listed = sandbox.command("keys", "list")
        assert (listed.returncode, len(listed.stdout.splitlines())) == (0, 1)
        assert sandbox.command("health").stdout == "ready\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(15) == 0
    data = sandbox.folder / ".kontext-gateway"
    assert stat.S_IMODE((data / "pepper").stat().st_mode) == 0o600
    assert sandbox.command("health").stderr == "no answer\n"
    with sandbox.running():
        assert sandbox.key != token
        assert spent(sandbox, token) == spent(sandbox, sandbox.key) == 80_000
        again = generate(sandbox.url, token, prompt="a lighthouse at dawn", seed=7)
        assert (again.source, again.body) == ("cache", first)
        assert len((data / "bill.jsonl").read_text().splitlines()) == 2


def test_a_stop_during_a_job_finishes_the_job_first(sandbox: Sandbox) -> None:
    sandbox.more["GATEWAY_SANDBOX_TIME_SCALE"] = "0.3"
    with sandbox.running() as process, ThreadPoolExecutor() as pool:
        token = sandbox.key
        answer = pool.submit(generate, sandbox.url, token)
        wait_until(lambda: b'"pro"' in call(sandbox.url, "/v1/me", token).body and _in_progress(sandbox) == 1, 10)
        process.send_signal(signal.SIGTERM)
        assert answer.result().status == 200
        assert process.wait(15) == 0
    with sandbox.running():
        assert spent(sandbox, token) == 40_000


def _in_progress(sandbox: Sandbox) -> float:
    import urllib.request

    with urllib.request.urlopen(f"http://127.0.0.1:{sandbox.ops}/metrics", timeout=5) as answer:
        text = answer.read().decode()
    return float(
        next(
            line.split()[1]
            for line in text.splitlines()
            if line.startswith("kontext_gateway_upstream_requests_in_progress ")
        )
    )


def test_after_a_kill_the_next_start_finds_its_ledger_again(sandbox: Sandbox) -> None:
    with sandbox.running() as process:
        token = sandbox.key
        assert generate(sandbox.url, token).status == 200
        process.kill()
        process.wait()
    with sandbox.running() as process:
        assert spent(sandbox, token) == 40_000
        assert generate(sandbox.url, token).status == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(15) == 0


def test_a_second_start_in_the_same_folder_harms_nothing(sandbox: Sandbox) -> None:
    with sandbox.running():
        second = sandbox.command("serve", "--sandbox")
        assert (second.returncode, second.stderr) == (1, "another gateway runs on this GATEWAY_DATA_DIR\n")
        assert generate(sandbox.url, sandbox.key).status == 200
        assert get_json(f"http://127.0.0.1:{sandbox.ops}/readyz")["status"] == "ready"


@pytest.mark.parametrize("name", ["GATEWAY_LISTEN", "GATEWAY_OPS_LISTEN", "GATEWAY_SANDBOX_LISTEN"])
def test_an_address_that_is_taken_is_named_and_nothing_is_left_behind(sandbox: Sandbox, name: str) -> None:
    """The data directory's path is so long that the socket lies in a temporary folder of its own."""
    with socket.socket() as taken, TemporaryDirectory() as short:
        sandbox.more |= {"GATEWAY_DATA_DIR": str(sandbox.folder / ("long-" * 20)), "TMPDIR": short}
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        sandbox.more[name] = f"127.0.0.1:{taken.getsockname()[1]}"
        done = sandbox.command("serve", "--sandbox")
        assert done.returncode == 1
        assert done.stderr == f"cannot listen on {sandbox.more[name]}: Address already in use\n"
        assert list(Path(short).iterdir()) == []


def test_the_stand_in_of_serve_is_found_by_a_file_or_put_where_it_is_wanted(sandbox: Sandbox) -> None:
    where = sandbox.folder / ".kontext-gateway" / "sandbox-url"
    with sandbox.running() as process:
        assert get_json(where.read_text().strip() + "/sandbox/faults") == []
        process.send_signal(signal.SIGTERM)
        assert process.wait(15) == 0
    assert not where.exists()
    wanted = f"127.0.0.1:{free_port()}"
    sandbox.more |= {"GATEWAY_SANDBOX_LISTEN": wanted, "GATEWAY_REDIS_TIMEOUT": "2s"}
    with sandbox.running():
        assert where.read_text() == f"http://{wanted}\n"
        get_json(f"http://{wanted}/sandbox/faults", data=[{"kind": "moderated_prompt"}], method="PUT")
        assert generate(sandbox.url, sandbox.key).code == "content_moderated"


def test_a_file_with_faults_and_switches_is_played_by_serve_and_a_wrong_one_named(sandbox: Sandbox) -> None:
    script = sandbox.folder / "script.toml"
    script.write_text('[switches]\nbill_failures = true\ntime_scale = 0.01\n[[fault]]\nkind = "failed"\n')
    sandbox.more |= {"GATEWAY_SANDBOX_FAULTS": str(script), "GATEWAY_REDIS_TIMEOUT": "2s"}
    where = sandbox.folder / ".kontext-gateway" / "sandbox-url"
    with sandbox.running():
        assert generate(sandbox.url, sandbox.key).code == "upstream_failed"
        url = where.read_text().strip()
        assert get_json(f"{url}/sandbox/bill")["jobs"] == 1
        assert get_json(f"{url}/sandbox/switches")["time_scale"] == float(
            sandbox.environment["GATEWAY_SANDBOX_TIME_SCALE"]
        )
    script.write_text("[switches]\nsead = 1\n")
    done = sandbox.command("serve", "--sandbox")
    assert (done.returncode, done.stderr.partition(":")[0]) == (1, "switches.sead")


def test_options_of_the_stand_in_have_precedence_over_its_file(tmp_path: Path) -> None:
    (tmp_path / "script.toml").write_text('[switches]\nseed = 3\nhistory = "array"\ntime_scale = 5\n')
    options = ("--faults", "script.toml", "--seed", "4", "--set", "time_scale=0", "--set", "output_filename=a.jpg")
    url = f"http://127.0.0.1:{free_port()}"
    process = subprocess.Popen(
        [*APP, "sandbox", "--listen", url[7:], *options, "--set", "unknown_type_status=429"],
        cwd=tmp_path, env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == f"sandbox ready at {url}\n"
        found = get_json(f"{url}/sandbox/switches")
        assert {"seed": 4, "history": "array", "time_scale": 0, "output_filename": "a.jpg"}.items() <= found.items()
        job = b'{"type": "inference.unknown.v1", "config": {}}'
        answer = call(url, "/v2/job", "sandbox-token", body=job, headers={"Content-Type": "application/json"})
        assert answer.status == 429
    finally:
        process.terminate()
        process.wait(10)
        process.stdout.close()  # type: ignore[union-attr]


def test_the_stand_in_can_be_run_alone(tmp_path: Path) -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)}
    command = [
        *APP,
        "sandbox",
        "--listen",
        f"127.0.0.1:{port}",
        "--token",
        "a-token",
        "--time-scale",
        "0",
        "--bill",
        "bill.jsonl",
    ]
    process = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == f"sandbox ready at {url}\n"
        body = b'{"type": "inference.flux-kontext.pro.txt2img.v2", "config": {"prompt": "a boat at sea"}}'
        headers = {"Content-Type": "application/json", "Accept": "image/jpeg"}
        answer = call(url, "/v2/job", "a-token", body=body, headers=headers)
        assert (answer.status, answer.body[:3]) == (200, b"\xff\xd8\xff")
        assert call(url, "/v2/job", "another-token", body=body, headers=headers).status == 401
        assert get_json(f"{url}/sandbox/bill")["jobs"] == 1
        assert len((tmp_path / "bill.jsonl").read_text().splitlines()) == 1
    finally:
        process.terminate()
        process.wait(10)
        process.stdout.close()  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--faults", "missing.toml"], "missing.toml"),
        (["--faults", "wrong.toml"], "0.kind: must be one of"),
        (["--set", "unknown_type_status=404"], "switches.unknown_type_status: Input should be 400 or 429"),
        (["--set", "seed"], "switches.seed: Input should be a valid integer"),
        (["--picture", "huge"], "switches.picture: Input should be 'full' or 'small'"),
        (["--time-scale", "-1"], "time_scale must be between 0 and 1000"),
    ],
)
def test_a_wrong_option_of_the_stand_in_is_told(tmp_path: Path, arguments: list[str], told: str) -> None:
    (tmp_path / "wrong.toml").write_text('[[fault]]\nkind = "explode"\n')
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*APP, "sandbox", "--listen", f"127.0.0.1:{free_port()}", *arguments],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=20, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (1, "")
    assert told in done.stderr
    assert "Traceback" not in done.stderr
