"""Stored pictures: how one came to be, whose business that is, and how it is deleted."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from app.store.seal import Seal
from tests.e2e.exchange import Answer, make_keys, send
from tests.faults.books import Books
from tests.faults.storm import PATIENT
from tests.fleet import PEPPER, Fleet, fleet, wait_until
from tests.images.pictures import picture
from tests.redis_server import VOLATILE, RedisServer

TENANTS: dict[str, Any] = {
    "acme": {"name": "Acme"},
    "other": {"name": "Other"},
    "brief": {"cache": {"ttl": "1s"}},
    "pool1": {"cache": {"scope": "pool:shared"}},
    "pool2": {"cache": {"scope": "pool:shared"}},
}
PHOTO = picture("jpeg", 640, 480)
PROMPT = "make the canary-4711 sky stormy"


@dataclass
class Target:
    """Two replicas on a ledger and a cache of their own, and a key for each tenant."""

    fleet: Fleet
    cache: RedisServer
    keys: dict[str, str]

    def call(
        self, method: str, path: str, key: str, body: object = None, *, at: int = 0, name: str = "", prefer: str = ""
    ) -> Answer:
        headers = [
            ("Authorization", f"Bearer {self.keys.get(key, key)}"),
            ("Content-Type", "application/json"),
            ("Accept", "application/json"),
            *([("Idempotency-Key", name)] if name else []),
            *([("Prefer", prefer)] if prefer else []),
        ]
        data = b"" if body is None else json.dumps(body).encode()
        return send(self.fleet.replicas[at].url, method, path, headers, data)

    def edit(self, key: str, image: str | bytes, seed: int, *, name: str = "", **fields: object) -> dict[str, Any]:
        """A fresh edit of an upload, or of a stored picture by its id."""
        by_id = {"image_id": image} if isinstance(image, str) else {"b64": base64.b64encode(image).decode()}
        answer = self.call(
            "POST", "/v1/edit", key, {"prompt": PROMPT, "seed": seed, "image": by_id} | fields, name=name
        )
        assert answer.status == 200, answer.body
        return answer.document

    def chain(self, key: str, edits: int, first: int) -> list[dict[str, Any]]:
        """An edit of an upload, then edits of edits; newest first."""
        made = [self.edit(key, PHOTO, first)]
        for seed in range(first + 1, first + edits):
            made.insert(0, self.edit(key, made[0]["image"]["id"], seed))
        return made

    def lineage(self, key: str, image: str) -> dict[str, Any]:
        answer = self.call("GET", f"/v1/images/{image}/lineage", key)
        assert answer.status == 200, answer.body
        return answer.document


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    folder = tmp_path_factory.mktemp("references")
    text = json.dumps({"version": 1, "tenants": TENANTS}) + "\n"
    sandbox = ("--time-scale", "0", "--picture", "small")
    with (
        RedisServer(folder / "cache", VOLATILE) as cache,
        fleet(
            folder, text, replicas=2, sandbox=sandbox, CACHE_REDIS_URL=cache.url, GATEWAY_REDIS_TIMEOUT="2s"
        ) as running,
    ):
        yield Target(running, cache, make_keys(running, TENANTS))


def test_a_chain_of_edits_is_followed_back_to_its_upload(target: Target) -> None:
    made = target.chain("acme", 3, 10)
    found = target.lineage("acme", made[0]["image"]["id"])
    assert (found["object"], found["image"], found["complete"]) == ("kontext.lineage", made[0]["image"]["id"], True)
    assert found["cost"] == {"micro_usd": 120_000, "usd": "0.120000"}
    for step, reply in zip(found["steps"], made, strict=True):
        assert step | {"inputs": [], "prompt_digest": ""} == {
            "image": reply["image"]["id"], "stored": True, "job": reply["id"], "created": reply["created"],
            "operation": "edit", "variant": "pro", "job_type": reply["job_type"], "seed": reply["seed"],
            "safety": {"applied": 2}, "cost": {"micro_usd": 40_000, "usd": "0.040000"}, "prompt_digest": "",
            "inputs": [],
        }  # fmt: skip
    assert [step["inputs"] for step in found["steps"]] == [
        [{"name": "image", "sha256": reply["input"]["sha256"], "image": parent}]
        for reply, parent in zip(made, [made[1]["image"]["id"], made[2]["image"]["id"], None], strict=True)
    ]
    assert found["steps"][-1]["inputs"][0]["sha256"] == hashlib.sha256(PHOTO).hexdigest()
    assert len({step["prompt_digest"] for step in found["steps"]}) == 1


def test_a_queued_edit_knows_what_it_started_from(target: Target) -> None:
    parent = target.edit("acme", PHOTO, 15)["image"]["id"]
    body = {"prompt": PROMPT, "seed": 16, "image": {"image_id": parent}}
    job = target.call("POST", "/v1/edit", "acme", body, prefer="respond-async").document["id"]
    wait_until(lambda: target.call("GET", f"/v1/jobs/{job}", "acme").document["state"] == "succeeded", 20)
    image = target.call("GET", f"/v1/jobs/{job}", "acme").document["image"]["id"]
    assert [step["image"] for step in target.lineage("acme", image)["steps"]] == [image, parent]


def test_a_generated_picture_is_the_end_of_its_chain(target: Target) -> None:
    answer = target.call("POST", "/v1/generate", "acme", {"prompt": PROMPT, "seed": 1, "safety_tolerance": 0})
    edited = target.edit("acme", answer.document["image"]["id"], 2)
    steps = target.lineage("acme", edited["image"]["id"])["steps"]
    assert [(step["operation"], step["safety"]["applied"]) for step in steps] == [("edit", 2), ("generate", 0)]
    assert steps[1]["inputs"] == []


def test_a_digest_tells_equal_prompts_of_a_tenant_and_no_others(target: Target) -> None:
    def digest(key: str, seed: int, prompt: str) -> str:
        image = target.edit(key, PHOTO, seed, prompt=prompt)["image"]["id"]
        return str(target.lineage(key, image)["steps"][0]["prompt_digest"])

    found = digest("acme", 20, "a boat")
    assert re.fullmatch(r"[0-9a-f]{64}", found)
    assert digest("acme", 21, "a boat") == found
    assert len({found, digest("acme", 22, "a boat "), digest("other", 20, "a boat")}) == 3
    kept = b"".join(target.fleet.redis.get(name) or b"" for name in target.fleet.redis.keys("kg:*:line:*"))
    assert b"canary" not in kept
    assert b"a boat" not in kept


def test_lineage_outlives_the_bytes_and_expires_by_itself(target: Target) -> None:
    made = target.chain("brief", 2, 30)
    newest = made[0]["image"]["id"]
    cached = redis_of(target.cache)
    for name in cached.keys("kg:{t:brief}:result:*"):
        cached.delete(name)
    assert target.call("GET", f"/v1/images/{newest}", "brief").status == 404
    found = target.lineage("brief", newest)
    assert [step["stored"] for step in found["steps"]] == [False, False]
    assert found["complete"]
    ledger = target.fleet.redis
    lives = [ledger.ttl(name) for name in ledger.keys("kg:{t:brief}:line:*")]
    assert lives
    assert all(89 * 86_400 < life <= 90 * 86_400 for life in lives)


def test_nothing_is_told_to_others(target: Target) -> None:
    image = target.chain("acme", 2, 40)[0]["image"]["id"]
    unknown = "img_" + "0" * 48
    for method, path in (("GET", "/v1/images/{}/lineage"), ("DELETE", "/v1/images/{}")):
        theirs, nobodys = (target.call(method, path.format(name), "other") for name in (image, unknown))
        assert (theirs.status, nobodys.status) == (404, 404)
        assert {k: v for k, v in theirs.document.items() if k != "request_id"} == {
            k: v for k, v in nobodys.document.items() if k != "request_id"
        }
        near = image[:-1] + ("0" if image[-1] != "0" else "1")
        for odd in (near, "img_..", "..%2f..%2fetc", "*", "img_" + "0" * 47 + "*", "img_" + "A" * 48, "%00"):
            assert target.call(method, path.format(odd), "acme").status == 404
    assert target.call("GET", f"/v1/images/{image}", "acme").status == 200
    assert len(target.lineage("acme", image)["steps"]) == 2


@pytest.mark.parametrize("expires", ["9" * 5_000, "9" * 13, "\u0661", "-1", "1e9", ""])
def test_a_link_with_no_legal_end_is_no_picture(target: Target, expires: str) -> None:
    link = f"/v1/images/img_{'0' * 48}?t=acme&k=key_0&e={quote(expires)}&s={'0' * 64}"
    answer = send(target.fleet.replicas[0].url, "GET", link)
    assert (answer.status, answer.document["code"], answer.document["charged"]) == (404, "not_found", "no")


def test_every_method_of_a_path_is_told(target: Target) -> None:
    for path in ("/v1/images/img_" + "0" * 48, "/v1/jobs/job_" + "0" * 26):
        answer = target.call("PUT", path, "acme")
        assert (answer.status, answer.headers["allow"]) == (405, "DELETE, GET")
    assert target.call("PUT", "/v1/images/edits", "acme").headers["allow"] == "POST"


def test_of_a_pool_each_tenant_knows_its_own_part(target: Target) -> None:
    first = target.edit("pool1", PHOTO, 50)
    shared = target.edit("pool2", PHOTO, 50)
    image = first["image"]["id"]
    assert (shared["source"], shared["image"]["id"]) == ("cache", image)
    assert target.edit("pool1", PHOTO, 50)["source"] == "cache"
    steps = [target.lineage(key, image)["steps"][0] for key in ("pool1", "pool2")]
    assert [step["cost"]["micro_usd"] for step in steps] == [40_000, 0]
    assert steps[0]["prompt_digest"] != steps[1]["prompt_digest"]
    assert target.call("DELETE", f"/v1/images/{image}", "pool2").status == 204  # its own part
    assert target.call("GET", f"/v1/images/{image}/lineage", "pool2").status == 404
    assert target.call("GET", f"/v1/images/{image}", "pool1").status == 200
    assert target.call("DELETE", f"/v1/images/{image}", "pool1").status == 204
    assert [target.call("GET", f"/v1/images/{image}", key).status for key in ("pool1", "pool2")] == [404, 404]


def test_a_deleted_picture_is_gone_for_every_carrier(target: Target) -> None:
    made = target.chain("acme", 3, 60)
    newest, middle, oldest = (one["image"]["id"] for one in made)
    named = target.edit("acme", oldest, 61, name="a-name")
    assert named["image"]["id"] == middle
    assert target.call("DELETE", f"/v1/images/{middle}", "acme").status == 204
    for path in (f"/v1/images/{middle}", made[1]["image"]["url"], f"/v1/images/{middle}/lineage"):
        assert target.call("GET", path, "acme").status == 404
        assert target.call("GET", path, "acme", at=1).status == 404
    by_id = {"prompt": PROMPT, "image": {"image_id": middle}}
    assert target.call("POST", "/v1/edit", "acme", by_id).status == 404
    repeat = {"prompt": PROMPT, "seed": 61, "image": {"image_id": oldest}}
    assert target.call("POST", "/v1/edit", "acme", repeat, name="a-name").status == 410
    assert middle not in {
        (job["image"] or {}).get("id") for job in target.call("GET", "/v1/jobs", "acme").document["data"]
    }
    assert target.call("DELETE", f"/v1/images/{middle}", "acme").status == 404
    found = target.lineage("acme", newest)
    assert ([step["image"] for step in found["steps"]], found["complete"]) == ([newest], False)
    before = target.fleet.bill()["jobs"]
    again = target.edit("acme", oldest, 61)  # asked for again, it is made and paid for again
    assert (again["source"], again["cost"]["micro_usd"]) == ("upstream", 40_000)
    assert target.fleet.bill()["jobs"] == before + 1


def test_a_repeat_in_the_deleting_process_is_no_hit(target: Target) -> None:
    made = target.edit("acme", PHOTO, 70)
    assert target.edit("acme", PHOTO, 70)["source"] == "cache"  # and kept in the process for repeats
    target.call("DELETE", f"/v1/images/{made['image']['id']}", "acme")
    assert target.edit("acme", PHOTO, 70)["source"] == "upstream"


def test_a_deletion_that_cannot_be_made_is_not_said_to_be(target: Target) -> None:
    image = target.edit("acme", PHOTO, 80)["image"]["id"]
    target.cache.freeze()
    try:
        answer = target.call("DELETE", f"/v1/images/{image}", "acme")
        assert (answer.status, answer.document["code"]) == (503, "ledger_unavailable")
    finally:
        target.cache.thaw()


def redis_of(server: RedisServer) -> Any:
    """A client of a server."""
    return server.client()


def test_all_content_of_a_tenant_is_deleted_and_its_books_stay(tmp_path: Path) -> None:
    text = json.dumps({"version": 1, "tenants": TENANTS}) + "\n"
    sandbox = ("--time-scale", "0", "--picture", "small")
    with (
        RedisServer(tmp_path / "cache", VOLATILE) as cache,
        fleet(tmp_path, text, replicas=2, sandbox=sandbox, CACHE_REDIS_URL=cache.url, **PATIENT) as running,
    ):
        target = Target(running, cache, make_keys(running, TENANTS))
        made = {key: target.chain(key, 3, at) for key, at in (("acme", 1), ("other", 11), ("pool1", 21))}
        target.edit("pool2", PHOTO, 21)
        named = target.edit("acme", PHOTO, 5, name="a-name")
        queued = {"prompt": PROMPT, "seed": 6}
        job = target.call("POST", "/v1/generate", "acme", queued, prefer="respond-async").document["id"]
        wait_until(lambda: target.call("GET", f"/v1/jobs/{job}", "acme").document["state"] == "succeeded", 20)
        for at in (0, 1, 0, 1):  # both processes keep a copy
            body = {"prompt": PROMPT, "seed": 1, "image": {"b64": base64.b64encode(PHOTO).decode()}}
            assert target.call("POST", "/v1/edit", "acme", body, at=at).document["source"] == "cache"
        wait_until(lambda: _saved(target, "acme") == 160_000 and _saved(target, "pool2") == 40_000, 10)
        before = {key: (Books.read(running.redis, key), target.call("GET", "/v1/usage", key).body) for key in TENANTS}
        for tenant, pictures in (("acme", 5), ("pool1", 3)):
            told = json.loads(running.command("content", "delete", "--tenant", tenant, "--json"))
            own = int(tenant == "acme")  # one call with a name, and one that was queued
            counts = {"pictures": pictures, "lineage": pictures, "uploads": 0, "jobs": own, "webhooks": 0}
            counts["answers"] = own
            assert told == {"tenant": tenant, "deleted": counts, "running": 0}
        for tenant in ("acme", "pool1"):
            for one in made[tenant]:
                image = one["image"]["id"]
                for path in (f"/v1/images/{image}", f"/v1/images/{image}/lineage", one["image"]["url"]):
                    assert target.call("GET", path, tenant).status == 404
        lines = [f"kg:{{t:{tenant}}}:line:".encode() for tenant in ("acme", "pool1", "other")]
        assert [line in _log(running) for line in lines] == [True, True, True]  # as README says
        running.redis.config_set("aof-use-rdb-preamble", "no")  # as text
        running.redis.bgrewriteaof()
        wait_until(lambda: [line in _log(running) for line in lines] == [False, False, True], 20)
        told = target.call("GET", f"/v1/jobs/{job}", "acme").document
        assert (told["state"], told["image"], told.get("result")) == ("succeeded", None, None)
        values = _everything(running.redis) + _everything(cache.client())
        for one in (*made["acme"], named):
            assert one["image"]["sha256"].encode() not in values
        body = {"prompt": PROMPT, "seed": 5, "image": {"b64": base64.b64encode(PHOTO).decode()}}
        jobs = running.bill()["jobs"]
        assert target.call("POST", "/v1/edit", "acme", body, name="a-name").status == 410  # and not bought again
        assert running.bill()["jobs"] == jobs
        for key in TENANTS:
            was, usage = before[key]
            now = Books.read(running.redis, key)
            assert now.rows == was.rows
            assert now.windows == was.windows
            assert target.call("GET", "/v1/usage", key).body == usage
        assert len(target.lineage("other", made["other"][0]["image"]["id"])["steps"]) == 3
        assert target.call("GET", f"/v1/images/{made['other'][0]['image']['id']}", "other").status == 200
        for at in (0, 1):
            body = {"prompt": PROMPT, "seed": 1, "image": {"b64": base64.b64encode(PHOTO).decode()}}
            source = target.call("POST", "/v1/edit", "acme", body, at=at).document["source"]
            assert source == ("upstream" if at == 0 else "cache")  # no process had kept a copy


def _saved(target: Target, key: str) -> int:
    """What free deliveries saved a tenant, which is written about a second late."""
    return int(target.call("GET", "/v1/usage", key).document["total"]["saved"]["micro_usd"])


def _log(running: Fleet) -> bytes:
    """The ledger's append-only file."""
    return b"".join(path.read_bytes() for path in running.server.folder.rglob("*.aof"))


def _everything(client: Any) -> bytes:
    """Every value of a server that holds content, opened where it is sealed: strings, and the fields of hashes but for
    the ledger's own."""
    parts, seal = [], Seal(PEPPER.encode())
    for name in client.keys("*"):
        kind = client.type(name)
        if kind == b"string":
            parts.append(client.get(name) or b"")
        elif kind == b"hash" and b":res:" not in name:
            for field, value in client.hgetall(name).items():
                places = (name.decode(), f"{name.decode()}:{field.decode()}")
                parts += [field, value, *(seal.open(place, value) or b"" for place in places)]
    return b"\n".join(parts)


def test_deleting_says_which_jobs_it_could_not_wait_for(tmp_path: Path) -> None:
    text = json.dumps({"version": 1, "tenants": TENANTS}) + "\n"
    slow = ("--time-scale", "5", "--picture", "small")
    with fleet(tmp_path, text, sandbox=slow, GATEWAY_UPSTREAM_CONCURRENCY="1", **PATIENT) as running:
        target = Target(running, running.server, make_keys(running, TENANTS))
        runs = target.call("POST", "/v1/generate", "acme", {"prompt": "a boat"}, prefer="respond-async").document["id"]
        wait_until(lambda: target.call("GET", f"/v1/jobs/{runs}", "acme").document["state"] == "running", 20)
        waits = {"prompt": PROMPT, "image": {"b64": base64.b64encode(PHOTO).decode()}}
        assert target.call("POST", "/v1/edit", "acme", waits, prefer="respond-async").status == 202
        assert PROMPT.encode() in _everything(running.redis)
        told = json.loads(running.command("content", "delete", "--tenant", "acme", "--json", code=1))
        assert (told["running"], told["deleted"]["uploads"], told["deleted"]["jobs"]) == (2, 1, 2)
        assert PROMPT.encode() not in _everything(running.redis)
        assert PHOTO not in _everything(running.redis)
        assert "is not the id" not in running.command("content", "delete", "--tenant", "nobody", "--json")
        running.command("content", "delete", "--tenant", "*", code=1)
