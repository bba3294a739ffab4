"""Switches and faults as one document: from a file and over the control endpoint, with the same effect on the wire."""

import json
from pathlib import Path
from typing import Any

import pytest

from app.sandbox import Fault, FaultError, SandboxConfig, load_scenario
from app.sandbox.scenario import SWITCHES, switches_of

from .running import EDIT, GENERATE, Box, document, picture, running

AS_JSON = '{"faults": [{"kind": "busy", "count": 2}], "switches": {"seed": 7, "history": "array"}}'
AS_TOML = '[switches]\nseed = 7\nhistory = "array"\n[[fault]]\nkind = "busy"\ncount = 2\n'
WRONG: list[tuple[Any, str]] = [
    ({"sead": 1}, "switches.sead"),
    ({"token": "x"}, "switches.token"),
    ({"seed": "1"}, "switches.seed"),
    ({"seed": True}, "switches.seed"),
    ({"time_scale": -1}, "switches.time_scale"),
    ({"time_scale": float("nan")}, "switches.time_scale"),
    ({"bill_failures": 1}, "switches.bill_failures"),
    ({"unknown_type_status": 404}, "switches.unknown_type_status"),
    ({"history": "list"}, "switches.history"),
    ({"capacity": -1}, "switches.capacity"),
    ({"picture": "huge"}, "switches.picture"),
    ({"output_filename": "a\nb"}, "switches.output_filename"),
    ([], "switches"),
]


def switch(box: Box, **switches: Any) -> dict[str, Any]:
    answer = box.client.patch("/sandbox/switches", json=switches)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def statuses(box: Box, many: int = 40) -> list[int]:
    return [box.job(accept="image/jpeg").status_code for _ in range(many)]


@pytest.fixture
def own() -> Any:
    """A sandbox whose switches a test may turn."""
    with running(SandboxConfig(time_scale=0, picture="small")) as box:
        yield box


def test_a_file_holds_faults_and_switches_in_json_and_in_toml(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(AS_JSON)
    (tmp_path / "a.toml").write_text(AS_TOML)
    first, second = (load_scenario(SandboxConfig(token="t"), tmp_path / name) for name in ("a.json", "a.toml"))
    assert first == second
    assert (first.seed, first.history, list(first.faults), first.token) == (7, "array", [Fault("busy", count=2)], "t")
    (tmp_path / "b.json").write_text('[{"kind": "busy", "options": {"retry_after": null}}]')
    assert load_scenario(first, tmp_path / "b.json").seed == 7
    assert list(load_scenario(first, tmp_path / "b.json").faults) == [Fault("busy", options={"retry_after": None})]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.json", "{"),
        ("a.json", "[" * 100_000),
        ("a.toml", "= 1"),
        ("a.json", '[{"kind": "odd"}]'),
        ("a.toml", '[[faults]]\nkind = "busy"\n'),
        ("a.toml", "[switch]\nseed = 1\n"),
        ("a.json", '{"fault": []}'),
    ],
)
def test_a_file_with_a_mistake_is_a_fault_error(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(FaultError):
        load_scenario(SandboxConfig(), tmp_path / name)


@pytest.mark.parametrize(("switches", "field"), WRONG)
def test_a_wrong_switch_is_refused_by_name_and_changes_nothing(
    box: Box, tmp_path: Path, switches: Any, field: str
) -> None:
    before = box.client.get("/sandbox/switches").json()
    for method, path, body in (
        ("PATCH", "/sandbox/switches", switches),
        ("PUT", "/sandbox/faults", {"faults": [{"kind": "busy"}], "switches": switches}),
    ):
        answer = box.client.request(method, path, content=json.dumps(body))
        assert (answer.status_code, answer.json()["error"]["field"]) == (422, field)
    assert box.client.get("/sandbox/switches").json() == before
    assert box.client.get("/sandbox/faults").json() == []
    (tmp_path / "a.json").write_text(json.dumps({"switches": switches}))
    with pytest.raises(FaultError) as refused:
        load_scenario(SandboxConfig(), tmp_path / "a.json")
    assert refused.value.field == field


def test_switches_that_were_read_can_be_put_back(own: Box) -> None:
    read = own.client.get("/sandbox/switches").json()
    assert list(read) == list(SWITCHES)
    assert read == switches_of(SandboxConfig(time_scale=0, picture="small"))
    assert switch(own, **read) == read


def test_an_unknown_type_is_400_or_429_as_switched(own: Box) -> None:
    assert own.job("inference.unknown.v1").status_code == 400
    switch(own, unknown_type_status=429)
    refused = own.job("inference.unknown.v1")
    assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
    switch(own, unknown_type_status=400)
    assert document(own.job("inference.unknown.v1"))["state"]["current"] == "failed"


def test_billing_of_failures_is_switched_while_it_runs(own: Box) -> None:
    own.faults({"kind": "failed", "job_type": GENERATE}, {"kind": "moderated_output", "job_type": EDIT})
    bills = []
    for on in (False, True, False):
        switch(own, bill_failures=on)
        assert (own.job().status_code, own.job(EDIT, picture=picture()).status_code) == (400, 400)
        bills.append(own.bill()["jobs"])
    assert bills == [0, 2, 2]
    assert [row["outcome"] for row in own.bill()["rows"]] == ["failed", "moderated"]


@pytest.mark.parametrize(("history", "shown"), [("null", None), ("array", [{"message": "completed"}])])
def test_history_is_null_or_an_array(own: Box, history: str, shown: object) -> None:
    switch(own, history=history)
    assert document(own.job())["state"] == {"current": "completed", "history": shown}


def test_equal_file_names_are_taken_or_refused(own: Box) -> None:
    files = [
        ("input", ("image.jpg", picture(), "image/jpeg")),
        ("input", ("image.jpg", picture(), "image/jpeg")),
        ("job", ("job.json", json.dumps({"type": EDIT, "config": {"prompt": "make it red"}}), "application/json")),
    ]

    def sent() -> int:
        headers = {"authorization": "Bearer sandbox-token", "accept": "multipart/form-data"}
        return own.client.post("/v2/job", headers=headers, files=files).status_code  # type: ignore[arg-type]

    assert sent() == 200
    switch(own, strict_filenames=True)
    assert sent() == 400
    switch(own, strict_filenames=False)
    assert sent() == 200


def test_capacity_and_pace_are_switched_while_it_runs(own: Box) -> None:
    switch(own, capacity=0)
    assert own.job().status_code == 429
    switch(own, capacity=None, time_scale=0.05)
    assert document(own.job())["metrics"]["elapsed"] >= 0.05 * 6 * 0.94


def test_the_same_seed_gives_the_same_draws_again(own: Box, tmp_path: Path) -> None:
    """By the switch, by the document that sets the faults, and by a file: all three meet the same jobs."""
    faults = [{"kind": "busy", "probability": 0.3}]
    own.client.put("/sandbox/faults", json=faults)
    switch(own, seed=7)
    first = statuses(own)
    switch(own, seed=8)
    other = statuses(own)
    switch(own, seed=7)
    assert statuses(own) == first != other
    own.client.put("/sandbox/faults", json={"faults": faults, "switches": {"seed": 7}})
    assert statuses(own) == first
    own.client.put("/sandbox/faults", json=faults)
    assert statuses(own) == first
    assert 4 <= first.count(429) <= 20
    (tmp_path / "a.toml").write_text('[switches]\nseed = 7\n[[fault]]\nkind = "busy"\nprobability = 0.3\n')
    with running(load_scenario(SandboxConfig(time_scale=0, picture="small"), tmp_path / "a.toml")) as box:
        assert statuses(box) == first


def test_another_switch_leaves_the_counts_of_faults_alone(own: Box) -> None:
    own.faults({"kind": "busy", "count": 2})
    assert own.job().status_code == 429
    switch(own, history="array")
    assert statuses(own, 3) == [429, 200, 200]


@pytest.mark.parametrize("setting", ["count", "after", "job_type"])
def test_a_file_chooses_the_jobs_that_are_met_as_the_endpoint_does(own: Box, tmp_path: Path, setting: str) -> None:
    fault = {"kind": "error", setting: {"count": 2, "after": 2, "job_type": EDIT}[setting]}
    own.faults(fault)
    over_http = statuses(own, 4)
    (tmp_path / "a.json").write_text(json.dumps([fault]))
    with running(load_scenario(SandboxConfig(time_scale=0, picture="small"), tmp_path / "a.json")) as box:
        assert statuses(box, 4) == over_http
    assert over_http == {"count": [500, 500, 200, 200], "after": [200, 200, 500, 500], "job_type": [200] * 4}[setting]
