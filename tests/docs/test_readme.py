"""README does what it says: its install line works in a clean copy, and its examples answer as they are shown to."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
import redis
from PIL import Image

from app.domain import tokens
from tests.fleet import free_port, get_json

from .page import ROOT, Command, blocks, console

FIRST_USE = (
    "Use it", "Prodia's clients", "Safety ceilings", "Input pictures", "Browser apps", "Metrics", "Health", "Errors",
)  # fmt: skip


def the_block(section: str) -> str:
    """The one `sh` block of a section."""
    (found,) = [block.text for block in blocks() if block.language == "sh" and block.section == section]
    return found


@dataclass
class Running:
    """A gateway with its sandbox that somebody started, and a folder to run examples in."""

    process: subprocess.Popen[bytes]
    url: str
    ops: str
    key: str
    folder: Path

    @property
    def environment(self) -> dict[str, str]:
        """What the examples find in their shell."""
        return {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "GATEWAY_URL": self.url,
            "GATEWAY_KEY": self.key,
            "CURL_HOME": str(self.folder),
        }

    def run(self, command: Command) -> tuple[list[str], list[str]]:
        """Run one example as it stands: the lines it prints and the HTTP statuses its curl met."""
        (self.folder / ".curlrc").write_text('write-out = "%{stderr}status=%{http_code}\\n"\nmax-time = 60\n')
        text = command.text.replace("http://127.0.0.1:8081", self.ops).replace("http://127.0.0.1:8080", self.url)
        done = subprocess.run(
            ["sh", "-c", text], cwd=self.folder, env=self.environment, capture_output=True, timeout=90, check=False
        )
        assert done.returncode == 0, (command.text, done.stderr)
        return done.stdout.decode("utf-8", "replace").splitlines(), re.findall(r"status=(\d{3})", done.stderr.decode())


@contextmanager
def started(command: list[str], *, cwd: Path, folder: Path, seconds: float, **extra: str) -> Iterator[Running]:
    """A gateway with its sandbox, ready once it has printed its key; it is ended with SIGTERM and must end in order."""
    folder.mkdir()
    port, ops = free_port(), free_port()
    foreign = ("GATEWAY_", "PRODIA_", "REDIS_", "CACHE_", "PYTHON", "PIP_REQUIRE", "VIRTUAL_ENV")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(foreign)} | {
        "GATEWAY_LISTEN": f"127.0.0.1:{port}",
        "GATEWAY_OPS_LISTEN": f"127.0.0.1:{ops}",
        "GATEWAY_DATA_DIR": str(folder / "data"),
        "GATEWAY_SANDBOX_TIME_SCALE": "0.05",
    }
    with (folder / "log").open("wb") as out:
        process = subprocess.Popen(
            command, cwd=cwd, env=environment | extra, stdout=out, stderr=out, start_new_session=True
        )
    try:
        key = _printed_key(process, folder / "log", seconds)
        yield Running(process, f"http://127.0.0.1:{port}", f"http://127.0.0.1:{ops}", key, folder)
        os.kill(_child(process.pid) if command[0] == "sh" else process.pid, signal.SIGTERM)
        assert process.wait(20) == 0
        assert '"event":"stopped"' in (folder / "log").read_text()
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _child(shell: int) -> int:
    (only,) = Path(f"/proc/{shell}/task/{shell}/children").read_text().split()
    return int(only)


def _printed_key(process: subprocess.Popen[bytes], log: Path, seconds: float) -> str:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        found = re.search(tokens.PREFIX + "[0-9A-Za-z]{38}", log.read_text() if log.exists() else "")
        if found:
            return found[0]
        assert process.poll() is None, log.read_text()
        time.sleep(0.1)
    raise AssertionError(f"no key was printed within {seconds} s: {log.read_text()}")


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """The gateway of this working tree."""
    folder = tmp_path_factory.mktemp("readme") / "run"

    command = [sys.executable, "-m", "app", "serve", "--sandbox"]
    with started(command, cwd=ROOT, folder=folder, seconds=30, PYTHONPATH=str(ROOT)) as running:
        yield running


def _is_picture(path: Path, kind: str) -> None:
    with Image.open(path) as picture:
        picture.load()
        assert picture.format == kind
        assert min(picture.size) >= 256


def test_the_install_line_starts_a_gateway_that_makes_and_edits_pictures(tmp_path: Path) -> None:
    """The block of `Run it`, verbatim in a clean copy of the tree; then README's first picture and first edit."""
    copy, folder = _clean_copy(tmp_path / "checkout"), tmp_path / "run"
    with started(["sh", "-c", the_block("Run it")], cwd=copy, folder=folder, seconds=240) as running:
        first = next(c for c in console("Use it") if "/v1/generate" in c.text)
        edit = next(c for c in console("Use it") if "/v1/edit" in c.text)
        for example in (first, edit):
            assert running.run(example)[1] == ["200"]
        _is_picture(folder / "first.jpg", "JPEG")
        _is_picture(folder / "stormy.jpg", "JPEG")
        assert (folder / "first.jpg").read_bytes() != (folder / "stormy.jpg").read_bytes()


def _clean_copy(copy: Path) -> Path:
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if listed.returncode:
        unwanted = shutil.ignore_patterns(
            ".git", ".venv*", "node_modules", "__pycache__", ".*_cache", ".kontext-gateway", ".env"
        )
        return Path(shutil.copytree(ROOT, copy, ignore=unwanted))
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, copy / name)
    return copy


def test_the_test_line_names_a_script_that_is_there() -> None:
    """The block of `Test it` is one command on a file of the repository that a shell can read."""
    shell, script = the_block("Test it").split()
    assert shell == "sh"
    assert subprocess.run(["sh", "-n", str(ROOT / script)], check=False).returncode == 0


def test_examples_of_first_use_answer_as_shown(gateway: Running) -> None:
    """Every example with curl meets the status that is shown, 2xx where none is; every line shown is printed."""
    examples = [c for c in console(*FIRST_USE) if not c.text.startswith(("export ", "kontext-gateway "))]
    assert sum(c.text.startswith("curl") for c in examples) >= 12
    for example in examples:
        printed, statuses = gateway.run(example)
        for status in statuses:
            assert status == example.status if example.status else status.startswith("2"), (example.text, printed)
        assert bool(statuses) == example.text.startswith("curl"), example.text
        for line in example.shown:
            form = re.escape(line).replace(re.escape("..."), ".*")
            assert any(re.fullmatch(form, one.strip(), re.IGNORECASE) for one in printed), (line, printed)
    for name, kind in (
        ("first.jpg", "JPEG"),
        ("stormy2.jpg", "JPEG"),
        ("rain.jpg", "JPEG"),
        ("first.png", "PNG"),
        ("stormy.webp", "WEBP"),
    ):
        _is_picture(gateway.folder / name, kind)


def _python(gateway: Running, section: str) -> str:
    """What the Python example of a section prints, as it stands, in a fresh interpreter."""
    (example,) = [block.text for block in blocks() if block.language == "python" and block.section == section]
    environment = gateway.environment | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", example], cwd=gateway.folder, env=environment, capture_output=True, text=True,
        timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_python_example_runs(gateway: Running) -> None:
    """The one that needs nothing but the standard library."""
    assert re.fullmatch(r"(upstream|cache) 0\.\d{6}\n", _python(gateway, "Use it"))
    _is_picture(gateway.folder / "noon.jpg", "JPEG")


def test_the_example_of_the_python_client_runs(gateway: Running) -> None:
    """Its edits start from one picture, and its refusal is one that costs nothing."""
    made, quoted, refused = _python(gateway, "Command line and Python").splitlines()
    assert re.fullmatch(r"(upstream|cache) 7 0\.\d{6} job_\w+", made)
    assert re.fullmatch(r"0\.0[04]0000 True [1-9]\d*", quoted)
    assert refused == "invalid_request prompt no"
    _is_picture(gateway.folder / "night.jpg", "JPEG")


def test_the_commands_for_pictures_print_what_is_shown(gateway: Running) -> None:
    """Every line, in any order, and nothing else; the files are there in the format of their ending."""
    for example in console("Command line and Python"):
        printed, _ = gateway.run(example)
        forms = [re.escape(line).replace(re.escape("..."), ".*") for line in example.shown]
        assert len(printed) == len(forms), (example.text, printed)
        assert all(any(re.fullmatch(form, line) for line in printed) for form in forms), (example.text, printed)
    for name, kind in (("dusk.jpg", "JPEG"), ("stormy-dusk.webp", "WEBP"), ("oil.jpg", "JPEG"), ("dusk-2.jpg", "JPEG"),
                       ("boats/blue.png", "PNG")):  # fmt: skip
        _is_picture(gateway.folder / name, kind)


def test_the_commands_on_a_ledger_run_on_a_sandbox_that_runs(gateway: Running) -> None:
    """create, list, rotate, revoke and usage as they stand, with the id of the key that was made."""
    environment = gateway.environment | {"PYTHONPATH": str(ROOT), "GATEWAY_DATA_DIR": str(gateway.folder / "data")}
    key_id = ""
    on_ledger = [c.text for c in console("Use it") if c.text.startswith("kontext-gateway")]
    for command in (*on_ledger, *(c.text for c in console("Keys"))):
        text = re.sub(r"key_[0-9a-f]{12}", key_id, command).replace("kontext-gateway", f"{sys.executable} -m app", 1)
        done = subprocess.run(
            ["sh", "-c", text],
            cwd=gateway.folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        assert done.returncode == 0, (command, done.stderr)
        if " create " in command:
            key_id = done.stdout.split()[0]
            assert tokens.well_formed(done.stdout.split()[-1])
        elif " usage " in command:
            assert (json.loads(done.stdout)["tenant"], json.loads(done.stdout)["per"]) == ("demo", "month")
        elif " content delete " in command:
            counts = r"\d+ pictures, \d+ lineage, 0 uploads, \d+ jobs, \d+ webhooks, \d+ answers"
            assert re.fullmatch(rf"{counts} deleted of demo\n", done.stdout)
        else:
            assert key_id in done.stdout
    assert key_id


def test_lost_charges_are_ended_by_the_bill_as_shown(gateway: Running) -> None:
    """One of two lost jobs is billed: it is settled, the other refunded, and a second run has nothing left to do."""
    more = {"PYTHONPATH": str(ROOT), "GATEWAY_DATA_DIR": str(gateway.folder / "data")}
    environment = gateway.environment | more
    examples = console("Reconcile with the bill")
    for example in examples:
        text = example.text.replace(".kontext-gateway", "data").replace("kontext-gateway", f"{sys.executable} -m app")
        printed_as_shown(Command(text, example.shown), gateway.folder, environment)
    again = Command(text, ["0 charges ended"])
    printed_as_shown(again, gateway.folder, environment)
    assert len(examples) == 7


@contextmanager
def stand_in(command: str, folder: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """The stand-in as README starts it, on a free port: its URL and the environment of the examples."""
    address = f"127.0.0.1:{free_port()}"
    words = command.replace("127.0.0.1:8089", address).split()[1:]
    environment = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    log = folder / "stand-in.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "app", *words], cwd=folder, env=environment, stdout=out, stderr=out
        )
    try:
        until = time.monotonic() + 20
        while f"sandbox ready at http://{address}" not in log.read_text():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < until
            time.sleep(0.05)
        yield f"http://{address}", environment
    finally:
        process.kill()
        process.wait()


def printed_as_shown(command: Command, folder: Path, environment: dict[str, str]) -> str:
    """Run one example; every line that is shown under it must be printed."""
    done = subprocess.run(
        ["sh", "-c", command.text], cwd=folder, env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, (command.text, done.stderr)
    for line in command.shown:
        form = re.escape(line).replace(re.escape("..."), ".*")
        assert any(re.fullmatch(form, one) for one in done.stdout.splitlines()), (command.text, line, done.stdout)
    return done.stdout


def test_the_sandbox_examples_run_against_a_sandbox_alone(tmp_path: Path) -> None:
    """A fault and a switch are set, counters and bill are read, on a sandbox started as README starts it."""
    start, *examples = [c for c in console("Sandbox") if "sandbox-url" not in c.text]
    with stand_in(start.text, tmp_path) as (url, environment):
        for example in examples:
            text = example.text.replace("http://127.0.0.1:8089", url) + " -f"
            printed_as_shown(Command(text, example.shown), tmp_path, environment)
        assert len(examples) == 4


def test_the_stand_in_of_a_running_gateway_is_found_as_shown(gateway: Running) -> None:
    """By the file in the data directory; the fault that is set there meets the next job."""
    fault, bill = [c for c in console("Sandbox") if "sandbox-url" in c.text]
    for example in (fault, bill):
        text = example.text.replace(".kontext-gateway", "data") + " -f"
        assert printed_as_shown(Command(text), gateway.folder, gateway.environment)
    request = urllib.request.Request(
        f"{gateway.url}/v1/generate", b'{"prompt": "a boat"}',
        {"Authorization": f"Bearer {gateway.key}", "Content-Type": "application/json"},
    )  # fmt: skip
    with pytest.raises(urllib.error.HTTPError, match="422") as refused:
        urllib.request.urlopen(request, timeout=30)
    refused.value.close()


def test_the_chapter_on_testing_a_client_shows_what_happens(tmp_path: Path) -> None:
    """Start, client, 429, cut and bill as written; then the storm, which plays its switches and its faults."""
    start, export, *steps, storm = console("Test your own client against it")
    with stand_in(start.text, tmp_path) as (url, environment):
        assert export.text == "export PRODIA_URL=http://127.0.0.1:8089 PRODIA_TOKEN=sandbox-token"
        environment |= {"PRODIA_URL": url, "PRODIA_TOKEN": "sandbox-token"}
        for step in steps:
            printed_as_shown(step, tmp_path, environment)
        assert sum(bool(step.shown) for step in steps) == 6
    with stand_in(storm.text, tmp_path) as (url, _):
        faults, switches = (get_json(f"{url}/sandbox/{name}") for name in ("faults", "switches"))
        assert [fault["kind"] for fault in faults] == ["busy", "failed", "cut_mid_body"]
        assert {"seed": 7, "time_scale": 0, "bill_failures": True}.items() <= switches.items()


def test_the_chapter_on_prodia_leads_to_a_gateway_that_is_ready(tmp_path: Path) -> None:
    """Redis, `.env`, tenants file, check, ledger, key, serve and a first picture, step by step as written; the stand-in
    takes Prodia's place."""
    port, listen, ops = free_port(), free_port(), free_port()
    environment = {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "GATEWAY_LISTEN": f"127.0.0.1:{listen}",
        "GATEWAY_OPS_LISTEN": f"127.0.0.1:{ops}",
        "GATEWAY_DRAIN_DELAY": "0",
    }
    (tenants,) = [b.text for b in blocks() if b.section == "Run it against Prodia" and b.language == "yaml"]
    (tmp_path / "tenants.yaml").write_text(tenants)
    path, *steps, key, serve, ready, first = [
        c.text.replace("6379", str(port)).replace("8081", str(ops)).replace("8080", str(listen))
        for c in console("Run it against Prodia")
    ]
    assert path.startswith("export PATH=")
    assert serve == "kontext-gateway serve"
    try:
        for step in steps:
            printed_as_shown(Command(step), tmp_path, environment)
        token = printed_as_shown(Command(key), tmp_path, environment).splitlines()[-1]
        with (
            stand_in("kontext-gateway sandbox --listen 127.0.0.1:8089 --token your-prodia-token", tmp_path) as (url, _),
            (tmp_path / "log").open("wb") as out,
        ):
            environment |= {"PRODIA_BASE_URL": url + "/v2", "GATEWAY_KEY": token}
            process = subprocess.Popen(serve.split(), cwd=tmp_path, env=environment, stdout=out, stderr=out)
            try:
                _until_ready(f"http://127.0.0.1:{ops}/readyz", process, tmp_path / "log")
                assert "ready" in printed_as_shown(Command(ready), tmp_path, environment)
                printed_as_shown(Command(first + " -f"), tmp_path, environment)
                assert (tmp_path / "lighthouse.jpg").read_bytes().startswith(b"\xff\xd8\xff")
                process.send_signal(signal.SIGTERM)
                assert process.wait(20) == 0
            finally:
                process.kill()
                process.wait()
    finally:
        with suppress(redis.exceptions.ConnectionError), redis.Redis(port=port) as server:
            server.shutdown(nosave=True)


def _until_ready(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    until = time.monotonic() + 20
    while time.monotonic() < until:
        assert process.poll() is None, log.read_text()
        with suppress(OSError), urllib.request.urlopen(url, timeout=2) as answer:
            assert answer.status == 200
            return
        time.sleep(0.1)
    raise AssertionError(log.read_text())
