"""Whoever queued a job is told of its end: signed, again until it is heard, and under one id."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from app.jobs.hooks import FIELD
from tests.docs.page import blocks
from tests.faults.clients import PROMPT
from tests.fleet import Fleet, fleet, get_json, wait_until
from tests.jobs.receiver import Receiver, receiving
from tests.pipeline.calls import Policies, generate, new_key
from tests.pipeline.queued import ASYNC, cancel, end, slow, until

FAST = ("--time-scale", "0.01", "--picture", "small")
SETTINGS = {"GATEWAY_WEBHOOK_LOOPBACK": "true", "GATEWAY_WEBHOOK_PAUSES": "0.1s,0.2s,0.3s"}


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    with receiving() as found:
        yield found


@pytest.fixture(scope="module")
def policies(receiver: Receiver) -> Policies:
    allow = f"webhooks: {{allow: ['{receiver.url}/in', 'https://hooks.acme.example/']}}"
    return Policies({"acme": f"{allow}, limits: {{concurrency: 1}}", "none": "", "unsigned": allow, "moved": allow})


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, policies: Policies) -> Iterator[Fleet]:
    folder: Path = tmp_path_factory.mktemp("hooks")
    with fleet(folder, policies.text, replicas=2, sandbox=FAST, **SETTINGS) as found:
        policies.fleet = found
        yield found


@pytest.fixture(scope="module")
def secret(running: Fleet) -> str:
    return running.command("webhooks", "rotate", "--tenant", "acme").strip()


@pytest.fixture(autouse=True)
def clean(receiver: Receiver, running: Fleet, secret: str) -> None:
    running.faults([])
    receiver.got.clear()
    receiver.forged.clear()
    receiver.headers.clear()
    receiver.statuses, receiver.status, receiver.drop, receiver.stall = [], 204, 0.0, 0.0
    receiver.secrets = [secret]


def told(running: Fleet, token: str, url: str, **fields: object) -> str:
    """The id of a job whose end is told to that URL."""
    answer = generate(running.urls[0], token, ASYNC, webhook_url=url, **fields)
    assert answer.status == 202, answer.body
    return str(answer.json["id"])


def listed(running: Fleet, *options: str, tenant: str = "acme") -> list[dict[str, object]]:
    lines = running.command("webhooks", "list", "--tenant", tenant, "--json", *options).splitlines()
    return [json.loads(line) for line in lines]


def test_the_end_of_a_job_is_told_signed_and_without_prompt_or_picture(running: Fleet, receiver: Receiver) -> None:
    token = new_key(running, "acme")[1]
    job = told(running, token, f"{receiver.url}/in/x?y=1", seed=5, user="ada", prompt=PROMPT)
    wait_until(lambda: len(receiver.events) == 1, 20)
    (event,) = receiver.events
    found = end(running.urls[1], token, job)
    assert (event["type"], event["data"]["id"], event["data"]["state"]) == ("job.succeeded", job, "succeeded")
    assert event["data"]["cost"]["micro_usd"] == 40_000
    assert event["data"]["image"]["id"] == found["image"]["id"]
    text = json.dumps(event)
    assert not any(secret in text for secret in (PROMPT, "b64_json", "url", "ada", token))
    assert receiver.headers[0]["webhook-id"] == f"msg_{job.removeprefix('job_')}"
    assert not receiver.forged
    running.faults([{"kind": "moderated_prompt", "count": 1}])
    job = told(running, token, f"{receiver.url}/in")
    wait_until(lambda: len(receiver.events) == 2, 20)
    event = receiver.events[1]
    assert (event["type"], event["data"]["error"]["code"]) == ("job.failed", "content_moderated")
    assert event["data"]["error"]["charged"] == "no"


def test_a_name_does_not_go_with_another_webhook(running: Fleet, receiver: Receiver) -> None:
    token, name = new_key(running, "acme")[1], ASYNC | {"Idempotency-Key": "told"}
    first, again = (generate(running.urls[at], token, name, webhook_url=f"{receiver.url}/in/a") for at in (0, 1))
    assert (first.status, again.status, again.json["id"]) == (202, 202, first.json["id"])
    for url in ({"webhook_url": f"{receiver.url}/in/b"}, {}):
        assert generate(running.urls[1], token, name, **url).refusal == (422, "idempotency_mismatch", "no")
    assert generate(running.urls[0], token, {"Idempotency-Key": "told"}).refusal == (422, "idempotency_mismatch", "no")
    wait_until(lambda: len(receiver.events) == 1, 20)


def test_a_repeat_whose_job_was_deleted_is_told_so_and_not_to_take_another_name(
    running: Fleet, receiver: Receiver
) -> None:
    token, name = new_key(running, "acme")[1], ASYNC | {"Idempotency-Key": "deleted"}
    url = f"{receiver.url}/in"
    end(running.urls[0], token, str(generate(running.urls[0], token, name, webhook_url=url).json["id"]))
    wait_until(lambda: len(receiver.events) == 1, 20)
    running.command("content", "delete", "--tenant", "acme")
    for wait in ({}, {"Prefer": "wait=5"}):
        refusal = generate(running.urls[1], token, name | wait, webhook_url=url).refusal
        assert refusal == (410, "idempotency_gone", "yes")


def test_the_bodies_of_the_calls_that_can_be_queued_have_a_webhook(running: Fleet) -> None:
    schemas = get_json(running.replicas[0].ops + "/openapi.json")["components"]["schemas"]
    bodies = ("Generate", "Edit", "EditForm", "Quote", "QuoteForm", "OpenAIGenerate", "OpenAIEdit", "OpenAIEditForm")
    for name in bodies:
        has = {FIELD in body["properties"] for body in schemas[name]["anyOf"]}
        assert has == {name in ("Generate", "Edit", "EditForm")}, name


def test_it_is_sent_again_under_its_id_until_it_is_taken(running: Fleet, receiver: Receiver) -> None:
    receiver.statuses = [500, 302]
    job = told(running, new_key(running, "acme")[1], f"{receiver.url}/in")
    wait_until(lambda: sum(map(len, receiver.got.values())) == 3, 20)
    assert len(receiver.got) == 1
    assert receiver.wandered == []
    assert len({headers["webhook-id"] for headers in receiver.headers}) == 1
    assert not receiver.forged
    wait_until(lambda: not listed(running, "--state", "due"), 10)
    assert [hook["attempts"] for hook in listed(running, "--state", "done") if hook["job"] == job] == [3]


def test_one_that_nobody_takes_is_dead_and_can_be_sent_again(running: Fleet, receiver: Receiver) -> None:
    receiver.status = 503
    job = told(running, new_key(running, "acme")[1], f"{receiver.url}/in")
    wait_until(lambda: [hook["job"] for hook in listed(running, "--state", "dead")] == [job], 20)
    (dead,) = listed(running, "--state", "dead")
    assert (dead["attempts"], dead["last"]) == (4, "503")
    receiver.status = 200
    assert running.command("webhooks", "redeliver", "--tenant", "acme", str(dead["id"])) == "1 due again\n"
    wait_until(lambda: not listed(running, "--state", "dead") and not listed(running, "--state", "due"), 10)
    assert list(receiver.got) == [dead["id"]]
    assert len(receiver.got[str(dead["id"])]) == 5
    running.command("webhooks", "redeliver", "--tenant", "acme", "msg_none", code=1)
    running.command("webhooks", "redeliver", "--tenant", "acme", code=1)


def test_a_receiver_that_wants_no_more_is_not_asked_again(running: Fleet, receiver: Receiver) -> None:
    receiver.status = 410
    job = told(running, new_key(running, "acme")[1], f"{receiver.url}/in")
    wait_until(lambda: job in [hook["job"] for hook in listed(running, "--state", "dead")], 20)
    assert sum(map(len, receiver.got.values())) == 1
    receiver.status = 204
    running.command("webhooks", "redeliver", "--tenant", "acme", "--all")
    wait_until(lambda: sum(map(len, receiver.got.values())) == 2, 20)  # or the next test is told of it


def test_the_old_secret_signs_too_until_its_overlap_ends(running: Fleet, receiver: Receiver, secret: str) -> None:
    fresh = running.command("webhooks", "rotate", "--tenant", "acme", "--overlap", "1h").strip()
    assert fresh.startswith("whsec_")
    assert fresh != secret
    token, receiver.secrets = new_key(running, "acme")[1], [fresh, secret]
    told(running, token, f"{receiver.url}/in")
    wait_until(lambda: len(receiver.events) == 1, 20)
    assert not receiver.forged
    with running.redis as client:
        ends = int(client.hget("kg:{t:acme}:hook-salts", "until") or 0)
        assert abs(ends - time.time() - 3600) < 300
        client.hset("kg:{t:acme}:hook-salts", "until", ends - 3600 - 300)
    receiver.secrets = [fresh]
    told(running, token, f"{receiver.url}/in")
    wait_until(lambda: len(receiver.events) == 2, 20)
    assert not receiver.forged
    assert len(receiver.headers[-1]["webhook-signature"].split()) == 1
    receiver.secrets = [secret]
    told(running, token, f"{receiver.url}/in")
    wait_until(lambda: bool(receiver.forged), 20)
    with running.redis as client:
        stored = client.hgetall("kg:{t:acme}:hook-salts")
    assert not any(part.encode() in b"".join(stored.values()) for part in (secret[6:30], fresh[6:30]))


def test_only_listed_urls_of_tenants_with_a_secret_are_taken(running: Fleet, receiver: Receiver) -> None:
    url = f"{receiver.url}/in"
    for tenant, wanted in (
        ("acme", f"{receiver.url}/elsewhere"), ("acme", "https://evil.example/"), ("acme", "https://10.0.0.1/"),
        ("acme", 7), ("none", url), ("unsigned", url),
    ):  # fmt: skip
        answer = generate(running.urls[0], new_key(running, tenant)[1], ASYNC, webhook_url=wanted)
        assert (answer.status, answer.json["field"]) == (422, "webhook_url")
    with running.redis as client:
        assert not client.zcard("kg:{t:none}:open")
        assert not client.exists("kg:{t:none}:queue")


def test_a_list_that_changed_is_the_one_that_counts_when_it_is_sent(
    running: Fleet, receiver: Receiver, policies: Policies
) -> None:
    running.command("webhooks", "rotate", "--tenant", "moved")
    slow(running, 1.0)
    token = new_key(running, "moved")[1]
    job = told(running, token, f"{receiver.url}/in")
    until(running.urls[0], token, job, "running")
    policies.set("moved", "webhooks: {allow: ['https://hooks.acme.example/']}")
    wait_until(
        lambda: [hook["last"] for hook in listed(running, "--state", "dead", tenant="moved")] == ["not_allowed"], 20
    )
    assert not receiver.got
    (dead,) = listed(running, "--state", "dead", tenant="moved")
    assert dead["attempts"] == 4  # a list, or a suspension, may be taken back meanwhile


def test_a_cancelled_job_is_not_told_of(running: Fleet, receiver: Receiver) -> None:
    token, receiver.secrets = new_key(running, "acme")[1], []
    slow(running, 1.0)
    first, second = (told(running, token, f"{receiver.url}/in") for _ in range(2))
    assert cancel(running.urls[1], token, second).status == 200
    wait_until(lambda: list(receiver.got) == [f"msg_{first.removeprefix('job_')}"], 20)
    wait_until(lambda: not listed(running, "--state", "due"), 10)
    assert not listed(running, "--state", "due")


def test_the_command_that_tests_one_says_how_it_was_answered(running: Fleet, receiver: Receiver) -> None:
    fresh = running.command("webhooks", "rotate", "--tenant", "acme").strip()
    receiver.secrets = [fresh]
    url = f"{receiver.url}/in"
    assert running.command("webhooks", "test", "--tenant", "acme", "--url", url) == "delivered: 204\n"
    assert receiver.events[0]["type"] == "webhook.test"
    receiver.status = 500
    running.command("webhooks", "test", "--tenant", "acme", "--url", url, code=1)
    running.command("webhooks", "test", "--tenant", "acme", "--url", "https://127.0.0.1/", code=1)
    running.command("webhooks", "rotate", "--tenant", "nobody", code=1)


def test_the_lines_of_readme_verify_what_is_sent(running: Fleet, receiver: Receiver) -> None:
    block = next(block.text for block in blocks() if block.language == "python" and "def genuine(" in block.text)
    names: dict[str, Any] = {}
    exec(compile(block, "README.md", "exec"), names)  # noqa: S102
    fresh = running.command("webhooks", "rotate", "--tenant", "acme", "--overlap", "0").strip()
    receiver.secrets = []
    told(running, new_key(running, "acme")[1], f"{receiver.url}/in")
    wait_until(lambda: bool(receiver.got), 20)
    ((body,),) = receiver.got.values()
    (headers,) = receiver.headers
    genuine = names["genuine"]
    assert genuine(headers, body, fresh)
    assert not genuine(headers, body + b" ", fresh)
    assert not genuine(headers | {"webhook-id": "msg_other"}, body, fresh)
    assert not genuine(headers | {"webhook-timestamp": str(int(headers["webhook-timestamp"]) - 301)}, body, fresh)
    assert not genuine(headers, body, "whsec_" + "A" * 44)
