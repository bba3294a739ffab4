"""Faults as data: what is taken, what is refused and by which name, from objects and the control endpoint."""

import json
from typing import Any

import pytest

from app.sandbox import Fault, FaultError

from .running import GENERATE, Box


@pytest.mark.parametrize(
    ("fault", "field"),
    [
        ({"kind": "explode"}, "kind"),
        ({"kind": 1}, "kind"),
        ({"kind": "busy", "job_type": "inference.unknown.v1"}, "job_type"),
        ({"kind": "moderated_input", "job_type": GENERATE}, "job_type"),
        ({"kind": "busy", "count": 0}, "count"),
        ({"kind": "busy", "count": True}, "count"),
        ({"kind": "busy", "probability": 1.1}, "probability"),
        ({"kind": "busy", "probability": float("nan")}, "probability"),
        ({"kind": "busy", "after": -1}, "after"),
        ({"kind": "busy", "options": []}, "options"),
        ({"kind": "busy", "options": {"retry_after": [1, 2, 3]}}, "options.retry_after"),
        ({"kind": "busy", "options": {"retry_after": "1\r\nx: y"}}, "options.retry_after"),
        ({"kind": "busy", "options": {"billed": True}}, "options.billed"),
        ({"kind": "busy", "options": {"as_date": 1}}, "options.as_date"),
        ({"kind": "error", "options": {"status": 200}}, "options.status"),
        ({"kind": "hang", "options": {"seconds": 1e9}}, "options.seconds"),
        ({"kind": "cut_mid_body", "options": {"fraction": 1.0}}, "options.fraction"),
        ({"kind": "malformed", "options": {"variant": "odd"}}, "options.variant"),
        ({"kind": "overcharge", "options": {"dollars": "0.05"}}, "options.dollars"),
    ],
)
def test_a_mistake_is_refused_by_the_name_of_its_field(box: Box, fault: dict[str, Any], field: str) -> None:
    with pytest.raises(FaultError) as refused:
        Fault(**fault)
    assert refused.value.field == field
    box.faults({"kind": "busy"})
    answer = box.client.put("/sandbox/faults", content=json.dumps([{"kind": "busy"}, fault]))
    assert answer.status_code == 422
    assert answer.json()["error"]["field"] == f"1.{field}"
    assert [each["kind"] for each in box.client.get("/sandbox/faults").json()] == ["busy"]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b"7", "faults"),
        (b'{"fault":[]}', "fault"),
        (b'{"faults":{}}', "faults"),
        (b"not json", "faults"),
        (b"[" * 100_000, "faults"),
        (b"[1]", "0"),
        (b"[{}]", "0.kind"),
        (b'[{"kind":"busy","odds":1}]', "0.odds"),
    ],
)
def test_what_is_not_a_list_of_faults_is_refused(box: Box, body: bytes, field: str) -> None:
    answer = box.client.put("/sandbox/faults", content=body)
    assert (answer.status_code, answer.json()["error"]["field"]) == (422, field)


def test_faults_that_were_read_can_be_put_back(box: Box) -> None:
    box.faults({"kind": "busy", "probability": 0.5, "options": {"retry_after": [1, "x"]}}, {"kind": "hang"})
    read = box.client.get("/sandbox/faults").json()
    assert box.client.put("/sandbox/faults", json=read).json() == read
