"""A caller that went away finds its job in the list of its key, and its picture behind the link there."""

from __future__ import annotations

import json
import socket
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.fleet import Fleet, fleet, wait_until
from tests.pipeline.calls import Policies, call, generate, new_key


def listed(url: str, token: str, query: str = "") -> list[dict[str, Any]]:
    answer = call(url, f"/v1/jobs{query}", token)
    assert answer.status == 200, answer.body
    found: list[dict[str, Any]] = answer.json["data"]
    return found


def ask_and_leave(url: str, token: str, seen: Any, headers: str = "", **fields: Any) -> None:
    """Send a generation and cut the connection as soon as `seen` holds."""
    body = json.dumps({"prompt": "a lighthouse at dawn"} | fields)
    with socket.create_connection((urlsplit(url).hostname, urlsplit(url).port)) as connection:
        head = (
            f"POST /v1/generate HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\nContent-Type: application/json"
        )
        connection.sendall(f"{head}\r\nContent-Length: {len(body)}\r\n{headers}\r\n{body}".encode())
        wait_until(seen, 10)


def test_a_caller_that_left_finds_its_job_and_fetches_the_bytes(running: Fleet, urls: tuple[str, str]) -> None:
    key_id, token = new_key(running, "claims")
    running.faults([{"kind": "slow", "count": 1, "options": {"after_seconds": 1}}])

    def running_job() -> bool:
        return [job["state"] for job in listed(urls[1], token)] == ["running"]

    ask_and_leave(urls[0], token, running_job)  # without a seed: no repeat would find it
    running.faults([])
    (job,) = listed(urls[1], token)
    assert (job["image"], job["cost"]["micro_usd"], job["charged"]) == (None, 0, "unknown")
    wait_until(lambda: listed(urls[1], token)[0]["state"] == "succeeded", 10)
    (job,) = listed(urls[1], token)
    assert (job["object"], job["operation"], job["variant"]) == ("kontext.job", "generate", "pro")
    assert (job["charged"], job["cost"]) == ("yes", {"micro_usd": 40_000, "usd": "0.040000"})
    with urllib.request.urlopen(urls[1] + job["image"]["url"], timeout=10) as answer:
        data = answer.read()
    assert (len(data), answer.headers["etag"]) == (job["image"]["bytes"], f'"{job["image"]["sha256"]}"')
    again = generate(urls[0], token, {"Accept": "application/json"}, seed=job["seed"])
    assert (again.json["source"], again.json["id"], again.json["image"]["id"]) == (
        "cache",
        job["id"],
        job["image"]["id"],
    )
    assert again.json["image"].keys() == job["image"].keys()
    assert f"k={key_id}" in job["image"]["url"]
    assert b"lighthouse" not in call(urls[0], "/v1/jobs", token).body


def test_a_picture_that_is_not_kept_for_reuse_can_be_claimed(running: Fleet, urls: tuple[str, str]) -> None:
    _, token = new_key(running, "uncached")
    made = generate(urls[0], token, {"Accept": "application/json"}, seed=3)
    (job,) = listed(urls[1], token)
    assert (job["id"], job["image"]["id"]) == (made.json["id"], made.json["image"]["id"])


def test_the_list_is_newest_first_and_as_short_as_asked(running: Fleet, urls: tuple[str, str]) -> None:
    _, token = new_key(running, "claims")
    for seed in (101, 102, 103):
        assert generate(urls[seed % 2], token, seed=seed).status == 200
    assert [job["seed"] for job in listed(urls[0], token)] == [103, 102, 101]
    assert [job["seed"] for job in listed(urls[0], token, "?limit=2")] == [103, 102]
    assert generate(urls[0], token, seed=101).source == "cache"
    assert len(listed(urls[0], token)) == 3  # what was not made for this key is no job of its own


@pytest.mark.parametrize(
    "query", ["?limit=0", "?limit=101", "?limit=", "?limit=1&limit=2", "?limit=%D9%A3", "?limits=3"]
)
def test_a_wrong_query_is_refused_by_name(running: Fleet, urls: tuple[str, str], query: str) -> None:
    _, token = new_key(running, "claims")
    answer = call(urls[0], f"/v1/jobs{query}", token)
    assert (answer.status, answer.json["field"]) == (422, query[1:].partition("=")[0])


def test_a_job_that_failed_says_how_and_what_it_cost(running: Fleet, urls: tuple[str, str]) -> None:
    _, token = new_key(running, "claims")
    for kind, options in (("failed", {}), ("moderated_output", {}), ("cut_after_accept", {})):
        running.faults([{"kind": kind, "count": 1, "options": options}])
        generate(urls[0], token)
    running.faults([])
    found = [
        (job["state"], job["error"]["code"], job["charged"], job["cost"]["micro_usd"]) for job in listed(urls[0], token)
    ]
    assert found == [
        ("failed", "upstream_failed", "unknown", 40_000),
        ("failed", "content_moderated", "no", 0),
        ("failed", "upstream_failed", "no", 0),
    ]


def test_a_job_that_was_never_sent_says_why(tmp_path: Path) -> None:
    policies = Policies({"busy": "", "waits": ""})
    with fleet(tmp_path, policies.text, GATEWAY_UPSTREAM_CONCURRENCY="1") as running:
        policies.fleet, url = running, running.replicas[0].url
        (_, busy), (_, token) = new_key(running, "busy"), new_key(running, "waits")
        running.faults([{"kind": "slow", "count": 1, "options": {"after_seconds": 4}}])
        with ThreadPoolExecutor() as pool:
            first = pool.submit(generate, url, busy)
            wait_until(lambda: running.stats()["in_progress"] == 1, 10)
            ask_and_leave(url, token, lambda: [job["state"] for job in listed(url, token)] == ["queued"])
            second = pool.submit(generate, url, token, safety_tolerance=4)
            wait_until(lambda: [job["state"] for job in listed(url, token)] == ["queued", "cancelled"], 10)
            policies.set("waits", "safety: {generate: {ceiling: 3}}")
            assert first.result().status == 200
            assert second.result().code == "safety_ceiling"
        found = [(job["state"], job.get("error", {}).get("code"), job["charged"]) for job in listed(url, token)]
        assert found == [("failed", "safety_ceiling", "no"), ("cancelled", None, "no")]


def test_a_key_lists_nobody_elses_jobs(running: Fleet, urls: tuple[str, str]) -> None:
    _, token = new_key(running, "claims")
    assert generate(urls[0], token, seed=7).status == 200
    for tenant in ("claims", "report-other"):
        _, other = new_key(running, tenant)
        assert listed(urls[0], other) == []


def test_a_picture_under_a_lowered_ceiling_is_listed_without_its_link(
    running: Fleet, urls: tuple[str, str], policies: Policies
) -> None:
    _, token = new_key(running, "claims")
    assert generate(urls[0], token, seed=8, safety_tolerance=4).status == 200
    assert listed(urls[0], token)[0]["image"] is not None
    policies.set("claims", "safety: {generate: {ceiling: 3}}")
    assert listed(urls[0], token)[0]["image"] is None
    policies.set("claims", "")
    assert listed(urls[0], token)[0]["image"] is not None
