"""How often a job was begun: what ends its workers is given up, what only had to wait is not."""

from __future__ import annotations

from importlib import resources

from app.store import keys
from tests.scripts.desk import TENANT, Desk

JOB = keys.job(TENANT, "job_1")


def _run(desk: Desk, script: str, *args: object) -> list[str] | int:
    text = resources.files("app.jobs").joinpath(f"{script}.lua").read_text("utf-8")
    reply = desk.client.eval(text, 1, JOB, *args)
    return [part.decode() for part in reply] if isinstance(reply, list) else int(reply)


def _queued(desk: Desk) -> None:
    desk.client.hset(JOB, mapping={"state": "queued", "worker": "", "starts": 0})


def test_workers_that_die_while_a_job_waits_for_its_turn_do_not_count(desk: Desk) -> None:
    _queued(desk)
    dead = ""
    for number in range(8):
        worker = f"inc_{number}"
        for again in range(3):
            assert _run(desk, "start", worker, "" if again else dead) == ["ok", "1"]
            assert _run(desk, "rest", worker, 0) == 1
            assert _run(desk, "rest", worker, 0) == 0
        dead = worker
    assert desk.client.hget(JOB, "starts") == b"0"


def test_workers_that_die_at_a_job_count_once_each(desk: Desk) -> None:
    _queued(desk)
    for number in range(4):
        for _ in range(2):  # a reply was lost
            found = _run(desk, "start", f"inc_{number}", f"inc_{number - 1}" if number else "")
            assert found == ["ok", str(number + 1)]
    assert _run(desk, "start", "inc_1", "") == ["taken", "inc_3"]
    assert _run(desk, "rest", "inc_1", 0) == 0
    assert desk.client.hget(JOB, "starts") == b"4"


def test_a_beginning_that_ended_in_a_mistake_counts_for_good(desk: Desk) -> None:
    _queued(desk)
    for number in range(3):
        assert _run(desk, "start", "inc_1", "") == ["ok", str(number + 1)]
        assert _run(desk, "rest", "inc_1", 1) == 1


def test_what_is_over_is_not_made_anew(desk: Desk) -> None:
    assert _run(desk, "rest", "inc_1", 0) == 0
    assert not desk.client.exists(JOB)
