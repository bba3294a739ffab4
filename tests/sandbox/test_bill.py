"""The bill: every billed job once, in whole micro-dollars, on disk before its answer."""

import csv
import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx2
import pytest

from app.sandbox import SandboxConfig, create_sandbox

from .running import AUTHORISED, DEV, EDIT, GENERATE, MAX_GENERATE, Box, document, picture, running

PRICES = {GENERATE: 40_000, MAX_GENERATE: 80_000, EDIT: 40_000, DEV: 25_000}


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_bill_is_the_sum_of_the_prices(box: Box) -> None:
    reported = 0.0
    for kind in PRICES:
        upload = None if "txt2img" in kind else picture()
        reported += document(box.job(kind, price=True, picture=upload))["price"]["dollars"]
    bill = box.bill()
    assert bill["micro_usd"] == sum(PRICES.values()) == round(reported * 1_000_000)
    assert [(row["type"], row["micro_usd"]) for row in bill["rows"]] == list(PRICES.items())
    assert box.stats()["billed_micro_usd"] == bill["micro_usd"]


def test_a_row_says_what_was_asked_and_never_the_prompt(box: Box) -> None:
    answer = document(box.job(prompt="a secret wish", seed=9, safety_tolerance=1))
    (row,) = box.bill()["rows"]
    assert row.pop("at").endswith("Z")
    assert row == {
        "id": answer["id"],
        "type": GENERATE,
        "micro_usd": 40_000,
        "outcome": "completed",
        "seed": 9,
        "prompt_sha256": hashlib.sha256(b"a secret wish").hexdigest(),
        "safety_tolerance": 1,
    }
    assert "secret" not in box.client.get("/sandbox/jobs").text


def test_the_bill_is_also_csv(box: Box) -> None:
    box.job()
    box.job(MAX_GENERATE)
    rows = list(csv.DictReader(io.StringIO(box.client.get("/sandbox/bill.csv").text)))
    assert [row["micro_usd"] for row in rows] == ["40000", "80000"]


def test_the_file_continues_and_reset_only_clears_the_view(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "bill.jsonl"
    config = SandboxConfig(time_scale=0, picture="small", bill_path=path)
    with running(config) as box:
        box.job()
        box.client.post("/sandbox/reset")
        assert box.bill() == {"jobs": 0, "micro_usd": 0, "dollars": 0.0, "rows": []}
        box.job()
        assert box.bill()["jobs"] == 1
    with path.open("a") as file:
        file.write('{"id":"torn')
    with running(config) as box:
        assert box.bill()["jobs"] == 2
        box.job()
    assert [row["micro_usd"] for row in lines(path)] == [40_000] * 3


@pytest.mark.parametrize("text", ["dear sir\n", "dear sir", "[1]\n", '{"id":"1"}\n'])
def test_a_file_that_is_no_bill_is_refused_and_left_alone(tmp_path: Path, text: str) -> None:
    path = tmp_path / "letter.txt"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"not a bill row"):
        create_sandbox(SandboxConfig(bill_path=path))
    assert path.read_text() == text


def test_the_answer_waits_for_its_own_fsync_and_many_share_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "bill.jsonl"
    syncs: list[float] = []
    real = os.fsync

    def slow(file: int) -> None:
        time.sleep(0.1)
        real(file)
        syncs.append(time.monotonic())

    monkeypatch.setattr(os, "fsync", slow)
    answered: list[float] = []
    with running(SandboxConfig(time_scale=0, picture="small", bill_path=path)) as box:

        def ask() -> None:
            assert box.job().status_code == 200
            answered.append(time.monotonic())

        threads = [threading.Thread(target=ask) for _ in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(lines(path)) == 20
    assert min(answered) > syncs[0]
    assert len(syncs) <= 8


def test_a_bill_that_cannot_be_written_answers_500_and_leaves_no_half_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "bill.jsonl"

    def full(file: int) -> None:
        raise OSError(28, "No space left on device")

    with running(SandboxConfig(time_scale=0, picture="small", bill_path=path)) as box:
        with monkeypatch.context() as patched:
            patched.setattr(os, "fsync", full)
            answer = box.job()
        assert (answer.status_code, answer.text) == (500, "internal server error\n")
        assert path.read_bytes() == b""
        assert box.bill()["jobs"] == 0
        assert box.job().status_code == 200
        assert len(lines(path)) == 1


SERVER = """
import asyncio, sys
from pathlib import Path
from app.sandbox import SandboxConfig, serve_sandbox
config = SandboxConfig(time_scale=0, picture="small", bill_path=Path(sys.argv[1]))
asyncio.run(serve_sandbox(config, ready=lambda url: print(url, flush=True)))
"""


def test_every_answered_job_is_on_the_bill_after_a_kill(tmp_path: Path) -> None:
    path = tmp_path / "bill.jsonl"
    with subprocess.Popen([sys.executable, "-c", SERVER, str(path)], stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        url = server.stdout.readline().strip()
        answered: list[str] = []

        def ask() -> None:
            sent = {"type": GENERATE, "config": {"prompt": "a red fox"}}
            with httpx2.Client(base_url=url, trust_env=False, headers=AUTHORISED) as client:
                while True:
                    try:
                        answer = client.post("/v2/job", json=sent, headers={"accept": "application/json"})
                    except httpx2.TransportError:
                        return
                    answered.append(answer.json()["id"])

        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        time.sleep(0.5)
        server.send_signal(signal.SIGKILL)
        for thread in threads:
            thread.join()
    assert len(answered) > 20
    assert set(answered) <= {row["id"] for row in lines(path)}
