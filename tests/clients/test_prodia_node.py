"""The official client, npm `prodia`, unmodified: what it makes, what it throws, and how often it asked for that."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.clients.stage import Stage, stage
from tests.fleet import TOKEN
from tests.pipeline.calls import jobs

SCRIPT = "prodia.mjs"
MADE = ("generate", "png", "webp", "jpeg", "max", "bytes", "buffer", "blob", "file", "twice", "dev")
THROWN = ("parameter", "unknown", "input", "stranger")
MAGIC = {"image/jpeg": "\xff\xd8\xff\xe0", "image/png": "\x89PNG", "image/webp": "RIFF"}


@pytest.fixture(scope="module")
def on(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    with stage(tmp_path_factory.mktemp("prodia"), GATEWAY_REDIS_TIMEOUT="5s") as running:
        yield running


def test_it_generates_and_edits_in_every_format_and_from_every_kind_of_input(on: Stage) -> None:
    """A `File` arrives twice, every input is named image.jpg, and all kinds of input are the same picture."""
    made = on.node(SCRIPT, STEPS=",".join(MADE))
    kinds = {"png": "image/png", "webp": "image/webp"}
    for name, step in made.items():
        kind = kinds.get(name, "image/jpeg")
        assert (step["kind"], step["magic"], step["job"]["state"]["current"]) == (kind, MAGIC[kind], "completed"), name
    assert made["jpeg"]["sha256"] == made["generate"]["sha256"]
    assert made["jpeg"]["job"]["gateway"]["source"] == "cache"
    assert len({made[name]["sha256"] for name in ("bytes", "buffer", "blob", "file", "twice")}) == 1
    edits = [job for job in jobs(on.fleet) if "pro.img2img" in job["type"]]
    assert [len(job["inputs"]) for job in edits] == [1]
    assert on.statuses("shop") == [200] * len(MADE)


def test_it_throws_its_own_errors_at_once_and_asks_once(on: Stage) -> None:
    before = len(on.requests("shop"))
    thrown = on.node(SCRIPT, STEPS=",".join(THROWN))
    assert {name: step["error"] for name, step in thrown.items()} == {
        "parameter": "ProdiaUserError", "unknown": "ProdiaUserError", "input": "ProdiaUserError",
        "stranger": "ProdiaBadResponseError",
    }  # fmt: skip
    assert "at '/config/steps': maximum: got 1,000, want 50 (id: " in thrown["parameter"]["message"]
    assert thrown["stranger"]["message"].startswith("401 token is invalid")
    assert on.statuses("shop")[before:] == [400, 400, 400]


@pytest.mark.parametrize(
    ("step", "tenant", "says"),
    [
        ("ceiling", "strict", "above this tenant's ceiling of 1"),
        ("budget", "broke", "$0.000000 is left of the tenant's budget"),
        ("lasting", "hourly", "1 requests in 3600 s"),
    ],
)
def test_a_refusal_that_no_repeat_can_help_is_a_user_error_and_is_not_repeated(
    on: Stage, step: str, tenant: str, says: str
) -> None:
    """It sleeps for one second of its own before it throws; a longer Retry-After would have it sleep for hours."""
    thrown = on.node(SCRIPT, STEPS=step)[step]
    assert thrown["error"] == "ProdiaUserError"
    assert says in thrown["message"]
    assert on.statuses(tenant) == [403]


def test_a_rate_that_ends_soon_is_waited_for_and_the_repeat_gets_its_picture(on: Stage) -> None:
    """The one repeat that helps: after Retry-After the rate lets it in. Without repeats it is a capacity error."""
    patient = on.node(SCRIPT, STEPS="patient")["patient"]
    assert patient["job"]["state"]["current"] == "completed"
    statuses = on.statuses("brisk")
    assert statuses.count(200) == 2
    assert set(statuses) == {200, 429}
    assert statuses.count(429) <= 2
    hasty = on.node(SCRIPT, STEPS="hasty")["hasty"]
    assert hasty["error"] == "ProdiaCapacityError"
    assert len(on.statuses("brisk")) == len(statuses) + 2


def test_what_may_have_been_charged_is_not_asked_for_again(on: Stage) -> None:
    """Of another status than 400 the client would buy the picture a second time by itself."""
    asked, sent = len(on.requests("shop")), on.fleet.stats()["received"]
    on.fleet.faults([{"kind": "cut_after_accept"}])
    thrown = on.node(SCRIPT, STEPS="once")["once"]
    on.fleet.faults([])
    assert thrown["error"] == "ProdiaUserError"
    assert "It may have been charged." in thrown["message"]
    assert on.statuses("shop")[asked:] == [400]
    assert on.fleet.stats()["received"] == sent + 1


def test_what_was_certainly_not_charged_it_asks_for_once_more(on: Stage) -> None:
    """Of a 502 or 503 the client makes one repeat by itself; it costs nothing, and a moment later it may succeed."""
    asked, billed = len(on.requests("shop")), on.fleet.stats()["billed_micro_usd"]
    on.fleet.faults([{"kind": "unauthorised"}])
    thrown = on.node(SCRIPT, STEPS="once")["once"]
    assert thrown["error"] == "ProdiaBadResponseError"
    assert thrown["message"].startswith("502 ")
    assert on.statuses("shop")[asked:] == [502, 502]
    on.fleet.faults([{"kind": "unauthorised", "count": 1}])
    made = on.node(SCRIPT, STEPS="once")["once"]
    on.fleet.faults([])
    assert made["job"]["state"]["current"] == "completed"
    assert on.statuses("shop")[asked:] == [502, 502, 502, 200]
    assert on.fleet.stats()["billed_micro_usd"] == billed + 40_000


def test_the_stand_in_answers_it_as_the_gateway_does(on: Stage) -> None:
    steps = ",".join((*MADE, *THROWN))
    ours = on.node(SCRIPT, STEPS=steps)
    theirs = on.node(SCRIPT, STEPS=steps, GATEWAY_URL=on.fleet.upstream, KEY_SHOP=TOKEN)
    for name in (*MADE, *THROWN):
        mine, its = ours[name], theirs[name]
        assert mine.keys() == its.keys(), name
        if "error" in mine:
            assert (mine["error"], mine["message"].split("(id")[0]) == (its["error"], its["message"].split("(id")[0])
            continue
        for fact in ("kind", "magic", "file", "bytes", "sha256"):
            assert mine[fact] == its[fact], name
        assert mine["job"].keys() - {"gateway"} == its["job"].keys()
        assert mine["job"]["state"] == its["job"]["state"]
        assert mine["job"]["config"] == its["job"]["config"]
