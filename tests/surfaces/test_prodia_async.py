"""`/v2/job/async` and its reads: to the byte, for its own caller alone, and through a restart."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from app.domain.ids import job_of
from app.surfaces.prodia_queued import pack
from tests.e2e.exchange import Answer, make_keys, send
from tests.faults.checker import check, received, settle_down
from tests.fleet import fleet, wait_until
from tests.pipeline.calls import call, picture, rows, together
from tests.pipeline.queued import cancel, slow, until
from tests.surfaces.conftest import Desk
from tests.surfaces.jobs import BOTH, EDIT, GENERATE, body, document, post
from tests.surfaces.test_prodia import written

GOLDEN = Path(__file__).parent / "golden_async"
PHOTO = picture()
PATH = "/v2/job/async"
READS = ("job.state.current", "job.json", "output", "output/output.jpg")
NOBODY = "01234567-89ab-4cde-8f01-23456789abcd"


def put(url: str, token: str | None, content: bytes, *, price: bool = False, **how: Any) -> Answer:
    """A job that goes into the queue."""
    return post(url, token, content, target=PATH + ("?price=true" if price else ""), **how)


def read(url: str, token: str | None, job: str, what: str, method: str = "GET") -> Answer:
    """What is said of it."""
    given = [("Authorization", f"Bearer {token}")] if token else []
    return send(url, method, f"{PATH}/{job}/{what}", given)


def state(url: str, token: str, job: str) -> str:
    answer = read(url, token, job, "job.state.current")
    assert answer.status == 200, answer.body
    return answer.body.decode()


def queued(url: str, token: str, content: bytes, **how: Any) -> str:
    """Its id."""
    answer = put(url, token, content, **how)
    assert answer.status == 201, answer.body
    return str(answer.document["id"])


def over(url: str, token: str, job: str) -> str:
    """Its state once it has ended."""
    wait_until(lambda: state(url, token, job) != "processing", 40)
    return state(url, token, job)


def golden(desk: Desk) -> Iterator[tuple[str, Answer]]:
    """One answer of every kind."""
    url, tokens = desk.url, desk.tokens
    single, shop = tokens["single"], tokens["shop"]
    desk.fleet.faults([{"kind": "slow", "count": 1, "options": {"after_seconds": 4}}])
    first = queued(url, single, body(GENERATE, seed=501))
    until(url, single, job_of(first), "running")
    yield "running", read(url, single, first, "job.json")
    name = {"Idempotency-Key": "second"}
    waits = put(url, single, body(GENERATE, seed=502, aspect_ratio="16:9"), price=True, headers=name)
    yield "queued", waits
    yield "queued_again", put(url, single, body(GENERATE, seed=502, aspect_ratio="16:9"), headers=name)
    second = waits.document["id"]
    yield "state_processing", read(url, single, second, "job.state.current")
    yield "outputs_of_none", read(url, single, second, "output")
    yield "output_too_early", read(url, single, second, "output/output.jpg")
    third = queued(url, single, body(GENERATE, seed=503))
    assert cancel(url, single, job_of(third)).status == 200
    yield "cancelled", read(url, single, third, "job.json")
    assert (over(url, single, first), over(url, single, second)) == ("processed", "processed")
    yield "state_processed", read(url, single, second, "job.state.current")
    yield "processed", read(url, single, first, "job.json")
    yield "processed_with_its_price", read(url, single, second, "job.json")
    yield "outputs", read(url, single, second, "output")
    yield "output", read(url, single, second, "output/output.jpg")
    yield "output_by_another_name", read(url, single, second, "output/output.png")
    edit = put(
        url, shop, body(EDIT, seed=504, include_messages=True), inputs=(PHOTO, PHOTO), accept=f"{BOTH}; image/png"
    )
    assert edit.headers["gateway-left-out"] == "include_messages"
    assert over(url, shop, edit.document["id"]) == "processed"
    yield "outputs_in_a_format", read(url, shop, edit.document["id"], "output")
    yield "output_in_a_format", read(url, shop, edit.document["id"], "output/output.png")
    desk.fleet.faults([{"kind": "moderated_prompt", "count": 1}])
    bad = queued(url, shop, body(GENERATE, seed=505))
    assert over(url, shop, bad) == "failed"
    yield "state_failed", read(url, shop, bad, "job.state.current")
    yield "failed", read(url, shop, bad, "job.json")
    yield "refused_parameter", put(url, shop, body(GENERATE, safety_tolerance=7))
    yield "refused_type", put(url, shop, body("inference.flux-kontext.ultra.txt2img.v9"), accept="application/json")
    yield "refused_key", put(url, "kgw_live_nobody", body(GENERATE))
    yield "refused_by_ceiling", put(url, tokens["strict"], body(GENERATE, safety_tolerance=2))
    yield "refused_by_budget", put(url, tokens["broke"], body(GENERATE, seed=1))
    yield "unreadable", put(url, shop, b"{")
    yield "wrong_method", send(url, "GET", PATH, [("Authorization", f"Bearer {shop}"), ("Accept", BOTH)])
    yield "unknown_job", read(url, shop, NOBODY, "job.json")
    yield "read_without_key", read(url, None, bad, "job.json")
    yield "read_by_another_method", read(url, shop, bad, "job.json", "DELETE")
    for tenant, how in (("queue-brisk", "by_rate"), ("queue-hourly", "by_a_rate_that_lasts")):
        assert put(url, tokens[tenant], body(GENERATE, seed=1)).status == 201
        yield f"refused_{how}", put(url, tokens[tenant], body(GENERATE, seed=1))
        yield f"read_refused_{how}", read(url, tokens[tenant], NOBODY, "job.state.current")


def test_every_kind_of_answer_is_what_it_was_to_the_byte(desk: Desk) -> None:
    """With KGW_GOLDEN=write the answers of today are written down instead."""
    answers = {name: written(answer) for name, answer in golden(desk)}
    if os.environ.get("KGW_GOLDEN") == "write":
        GOLDEN.mkdir(exist_ok=True)
        for name, text in answers.items():
            (GOLDEN / f"{name}.txt").write_text(text)
    assert answers == {file.stem: file.read_text() for file in GOLDEN.glob("*.txt")}


def test_it_is_the_job_and_the_picture_of_the_call_that_waits(desk: Desk) -> None:
    """Same bytes, same config, and from the cache: they share all but the queue."""
    url, shop = desk.url, desk.tokens["shop"]
    before = _bought(desk)
    job = queued(url, shop, body(EDIT, seed=521), inputs=(PHOTO,), price=True)
    assert over(url, shop, job) == "processed"
    sync = post(url, shop, body(EDIT, seed=521), inputs=(PHOTO,), accept="image/jpeg")
    assert (sync.status, sync.headers["gateway-source"]) == (200, "cache")
    assert read(url, shop, job, "output/output.jpg").body == sync.body
    again = queued(url, shop, body(EDIT, seed=521), inputs=(PHOTO,), price=True)
    assert over(url, shop, again) == "processed"
    told, told_again = (read(url, shop, one, "job.json").document for one in (job, again))
    assert told["config"] == document(post(url, shop, body(EDIT, seed=521), inputs=(PHOTO,)))["config"]
    assert (told["price"]["dollars"], told_again["price"]["dollars"]) == (0.04, 0)
    assert "metrics" not in told_again  # nothing was made
    assert _bought(desk) - before == 1
    assert read(url, shop, again, "output/output.jpg").body == sync.body


def _bought(desk: Desk) -> int:
    return sum(row["state"] == "SETTLED" for row in rows(desk.fleet, "shop"))


def test_the_ceiling_is_in_what_is_queued_and_budget_and_places_hold_together(desk: Desk) -> None:
    url, clamped, broke = desk.url, desk.tokens["clamped"], desk.tokens["queue-broke"]
    job = queued(url, clamped, body(GENERATE, seed=531, safety_tolerance=6))
    assert over(url, clamped, job) == "processed"
    assert read(url, clamped, job, "job.json").document["config"]["safety_tolerance"] == 1
    answers = together([lambda seed=seed: put(url, broke, body(GENERATE, seed=seed)) for seed in range(540, 548)])
    assert sorted({answer.status for answer in answers}) in ([201, 403], [201, 429], [201, 403, 429])
    (one,) = [answer.document["id"] for answer in answers if answer.status == 201]
    assert over(url, broke, one) == "processed"
    refused = put(url, broke, body(GENERATE, seed=548))
    assert (refused.status, refused.document["gateway"]["code"]) == (403, "budget_exhausted")
    assert len(rows(desk.fleet, "queue-broke")) == 1
    (mark,) = [answer for answer in answers if answer.status == 201]
    assert mark.headers["gateway-job-id"] == job_of(one)


def test_a_job_is_nobody_elses(desk: Desk) -> None:
    """Not another tenant's, not another key's of the same, and not a job that was not queued."""
    url, shop = desk.url, desk.tokens["shop"]
    job = queued(url, shop, body(GENERATE, seed=551, prompt="a secret lighthouse"))
    over(url, shop, job)
    waited = document(post(url, shop, body(GENERATE, seed=552)))["id"]
    (second,) = make_keys(desk.fleet, ["shop"]).values()
    nothing = [read(url, shop, NOBODY, what).document["error"] for what in READS]
    for token, one in ((desk.tokens["other"], job), (second, job), (shop, waited)):
        answers = [read(url, token, one, what) for what in READS]
        assert [answer.status for answer in answers] == [404] * 4
        assert [answer.document["error"] for answer in answers] == nothing
    for spoiled in (
        job[:-1] + ("0" if job[-1] != "0" else "1"),
        job.replace("-4", "-7", 1),
        job_of(job),
        "x",
        "%2e%2e",
    ):
        assert [read(url, shop, spoiled, what).status for what in READS] == [404] * 4, spoiled
    assert [read(url, shop, job, what).status for what in READS] == [200] * 4


def test_a_name_makes_one_job_and_is_not_that_of_a_call_that_waits(desk: Desk) -> None:
    url, shop = desk.url, desk.tokens["shop"]
    name, before = {"Idempotency-Key": "order-7"}, desk.fleet.stats()["received"]
    answers = together([lambda: put(url, shop, body(GENERATE), headers=name)] * 4)
    (job,) = {answer.document["id"] for answer in answers}
    assert {answer.status for answer in answers} == {201}
    (seed,) = {answer.document["config"]["seed"] for answer in answers}  # the first call's
    assert over(url, shop, job) == "processed"
    assert read(url, shop, job, "job.json").document["config"]["seed"] == seed
    other = put(url, shop, body(GENERATE, prompt="another boat"), headers=name)
    assert (other.status, other.document["gateway"]["code"]) == (400, "idempotency_mismatch")
    assert desk.fleet.stats()["received"] == before + 1
    assert post(url, shop, body(GENERATE), headers=name).status == 200
    assert desk.fleet.stats()["received"] == before + 2


def test_what_is_deleted_is_told_to_be_gone(desk: Desk) -> None:
    """The picture first, then with all content the job, and what was asked of it."""
    url, other, prompt = desk.url, desk.tokens["other"], "a lighthouse to be forgotten"
    name = {"Idempotency-Key": "forgotten"}
    job = queued(url, other, body(GENERATE, seed=561, prompt=prompt), headers=name)
    over(url, other, job)
    image = read(url, other, job, "job.json").document["gateway"]["image"]["id"]
    assert call(url, f"/v1/images/{image}", other, method="DELETE").status == 204
    assert [read(url, other, job, what).status for what in READS] == [200, 200, 404, 404]
    desk.fleet.command("content", "delete", "--tenant", "other")
    assert [read(url, other, job, what).status for what in READS] == [404] * 4
    gone = put(url, other, body(GENERATE, seed=561, prompt=prompt), headers=name)
    assert (gone.status, gone.document["gateway"]["code"]) == (400, "idempotency_gone")
    with desk.fleet.redis as client:
        for key in client.scan_iter("kg:{t:other}:*"):
            assert prompt.encode() not in (client.dump(key) or b""), key


def test_what_waits_is_forgotten_with_its_tenants_content(tmp_path: Path) -> None:
    text, prompt = "version: 1\ntenants:\n  acme: {}\n", "a lighthouse that waits"
    with fleet(tmp_path, text, sandbox=("--picture", "small"), GATEWAY_QUEUE_SEATS="0") as running:
        token, url = running.token("acme"), running.urls[0]
        job = queued(url, token, body(GENERATE, prompt=prompt))
        assert read(url, token, job, "job.json").document["config"]["prompt"] == prompt
        running.command("content", "delete", "--tenant", "acme", code=1)
        assert "config" not in read(url, token, job, "job.json").document
        with running.redis as client:
            for key in client.scan_iter("kg:{t:acme}:*"):
                assert prompt.encode() not in (client.dump(key) or b""), key


def test_a_queued_job_survives_the_death_of_every_process(tmp_path: Path) -> None:
    """The one that waited is bought once and told of as it was asked; the one that may have been sent is not sent
    again."""
    text = "version: 1\ntenants:\n  acme: {limits: {concurrency: 1}}\n"
    with fleet(tmp_path, text, sandbox=("--time-scale", "0.01", "--picture", "small")) as running:
        token, first = running.token("acme"), running.replicas[0]
        slow(running, 30)
        sent = queued(first.url, token, body(GENERATE, seed=1))
        until(first.url, token, job_of(sent), "running")
        waits = queued(first.url, token, body(EDIT, seed=2, aspect_ratio="3:2"), inputs=(PHOTO,), price=True)
        first.kill()
        second = running.start()
        assert state(second.url, token, waits) == "processing"
        assert over(second.url, token, waits) == "processed"
        told = read(second.url, token, waits, "job.json").document
        assert (told["type"], told["config"]["aspect_ratio"], told["config"]["seed"]) == (EDIT, "3:2", 2)
        assert (told["price"]["dollars"], told["gateway"]["charged"]) == (0.04, "yes")
        assert read(second.url, token, waits, "output/output.jpg").body.startswith(b"\xff\xd8\xff")
        assert over(second.url, token, sent) == "failed"
        lost = read(second.url, token, sent, "job.json").document
        assert lost["error"].endswith(" It may have been charged.")
        assert received(running) == 2
        settle_down(running, "acme")
        check(running, "acme", exact=False)


def test_a_call_that_never_waits_is_not_queued(desk: Desk) -> None:
    before = received(desk.fleet)
    told = put(desk.url, desk.tokens["shop"], body(GENERATE, seed=560), headers={"Cache-Control": "only-if-cached"})
    assert (told.status, told.document["gateway"]["code"], told.document["gateway"]["charged"]) == (
        400, "invalid_request", "no",
    )  # fmt: skip
    assert received(desk.fleet) == before


def test_what_is_kept_of_a_job_that_cost_nothing_is_small() -> None:
    assert len(pack({"prompt": "<" * 4096}, priced=False)) < 256
