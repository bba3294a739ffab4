"""Tokens for browsers: minted by a key, never wider than it, and held by the scripts that hold the key."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pytest

from app.domain.tenant import KeyPolicy, parse_limits
from app.tenants import Keyring
from tests.e2e.exchange import Answer, on_keyring, send
from tests.fleet import Fleet, fleet, wait_until

SHOP, STRANGER = "https://shop.acme.example", "https://stranger.example"
TENANTS: dict[str, Any] = {
    "acme": {
        "cors": {"origins": [SHOP, "https://admin.acme.example"]},
        "limits": {"budgets": [{"usd": "5.00", "per": "day"}]},
    },
    "users": {"limits": {"per_user": {"images": [{"max": 3, "per": "day"}]}}},
    "poor": {"limits": {"budgets": [{"usd": "0.05", "per": "day"}]}},
    "careful": {"safety": {"generate": {"ceiling": 0}, "allow_without_knob": ["dev"]}},
    "zeta": {"name": "Zeta"},
}


@dataclass
class Target:
    """The gateway under test, with a key for each tenant and a narrow one of acme's."""

    fleet: Fleet
    keys: dict[str, str]
    key_ids: dict[str, str]

    def call(
        self, method: str, path: str, token: str, body: object = None, *, origin: str | None = SHOP, **more: str
    ) -> Answer:
        headers = [("Authorization", f"Bearer {self.keys.get(token, token)}"), ("Content-Type", "application/json")]
        headers += [("Origin", origin)] if origin else []
        headers += [(name.replace("_", "-"), value) for name, value in ({"accept": "application/json"} | more).items()]
        data = b"" if body is None else json.dumps(body).encode()
        return send(self.fleet.replicas[0].url, method, path, headers, data)

    def mint(self, key: str = "acme", **fields: object) -> Answer:
        """Ask for a token as a back end does."""
        return self.call("POST", "/v1/client-tokens", key, fields, origin=None)

    def token(self, key: str = "acme", **fields: object) -> str:
        answer = self.mint(key, **fields)
        assert answer.status == 201, answer.body
        return str(answer.document["token"])

    def generate(self, token: str, *, origin: str | None = SHOP, named: str = "", **fields: object) -> Answer:
        more = {"idempotency_key": named} if named else {}
        return self.call("POST", "/v1/generate", token, {"prompt": "a lighthouse"} | fields, origin=origin, **more)


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    text = json.dumps({"version": 1, "tenants": TENANTS}) + "\n"
    sandbox = ("--time-scale", "0", "--picture", "small")
    with fleet(tmp_path_factory.mktemp("tokens"), text, sandbox=sandbox, GATEWAY_REDIS_TIMEOUT="2s") as running:
        narrow = KeyPolicy(parse_limits(images=["7/day"], budgets=["0.30/day"]), ("pro",), ("edit",))

        async def make(keyring: Keyring) -> dict[str, tuple[str, str]]:
            found = {name: await keyring.create(name, "test", policy=KeyPolicy()) for name in TENANTS}
            ending = int(time.time()) + 120
            return found | {
                "narrow": await keyring.create("acme", "narrow", policy=narrow),
                "ending": await keyring.create("acme", "ending", policy=KeyPolicy(), expires=ending),
                "doomed": await keyring.create("acme", "doomed", policy=KeyPolicy()),
                "turning": await keyring.create("acme", "turning", policy=KeyPolicy()),
            }

        made = on_keyring(running, make)
        yield Target(running, {n: pair[1] for n, pair in made.items()}, {n: pair[0] for n, pair in made.items()})


def test_what_is_not_asked_for_is_small(target: Target) -> None:
    answer = target.mint()
    made = answer.document
    assert (answer.status, answer.headers["cache-control"]) == (201, "no-store")
    assert made["token"].startswith("kgw_client_")
    assert made | {"id": "", "token": "", "expires": 0} == {
        "object": "kontext.client_token", "id": "", "token": "", "expires": 0, "expires_in": 600,
        "operations": ["generate", "edit"], "variants": ["pro", "max"], "ceiling": 1, "images": 10, "usd": None,
        "origins": [SHOP, "https://admin.acme.example"], "user": None,
    }  # fmt: skip
    assert abs(made["expires"] - time.time() - 600) < 30
    assert target.mint("careful").document["ceiling"] == 1  # its edits may have 2
    assert target.mint("careful", operations=["generate"]).document["ceiling"] == 0


@pytest.mark.parametrize(
    ("key", "fields", "field", "allows"),
    [
        ("acme", {"expires_in": 3601}, "expires_in", {"maximum": 3600}),
        ("acme", {"expires_in": 0}, "expires_in", {"minimum": 1}),
        ("acme", {"expires_in": None}, "expires_in", {"minimum": 1}),
        ("acme", {"ceiling": 5}, "ceiling", {"maximum": 4}),
        ("acme", {"ceiling": 3, "operations": ["edit"]}, "ceiling", {"maximum": 2}),
        ("acme", {"ceiling": True}, "ceiling", {"maximum": 4}),
        ("careful", {"ceiling": 1, "operations": ["generate"]}, "ceiling", {"maximum": 0}),
        ("narrow", {"operations": ["generate"]}, "operations", {"allowed": ["edit"]}),
        ("narrow", {"variants": ["max"]}, "variants", {"allowed": ["pro"]}),
        ("acme", {"variants": ["dev"]}, "variants", {"allowed": ["pro", "max"]}),
        ("acme", {"variants": []}, "variants", {"allowed": ["pro", "max"]}),
        ("narrow", {"images": 8}, "images", {"maximum": 7}),
        ("acme", {"images": 0}, "images", {"minimum": 1}),
        ("narrow", {"usd": "0.300001"}, "usd", {"maximum": "0.300000"}),
        ("acme", {"usd": "5.01"}, "usd", {"maximum": "5.000000"}),
        ("acme", {"usd": 1}, "usd", {"maximum": "5.000000"}),
        ("acme", {"usd": "0"}, "usd", {}),
        ("acme", {"origins": [STRANGER]}, "origins", {"allowed": [SHOP, "https://admin.acme.example"]}),
        ("acme", {"origins": SHOP}, "origins", {}),
        ("zeta", {"origins": [SHOP]}, "origins", {"allowed": []}),
        ("users", {}, "user", {}),
        ("users", {"user": "u", "images": 4}, "images", {"maximum": 3}),
        ("acme", {"user": ""}, "user", {}),
        ("acme", {"budget": "1.00"}, "budget", {}),
        ("acme", {"": None}, "", {}),
    ],
)
def test_nothing_wider_than_its_key_is_minted(
    target: Target, key: str, fields: dict[str, object], field: str, allows: dict[str, object]
) -> None:
    answer = target.mint(key, **fields)
    assert (answer.status, answer.document["code"], answer.document["field"]) == (422, "invalid_request", field)
    assert {name: answer.document.get(name) for name in allows} == allows


def test_a_token_does_not_outlive_its_key(target: Target) -> None:
    assert 0 < target.mint("ending").document["expires_in"] <= 120
    answer = target.mint("ending", expires_in=600)
    assert (answer.status, answer.document["field"]) == (422, "expires_in")
    assert answer.document["maximum"] <= 120


def test_a_token_works_from_its_own_origins_only(target: Target) -> None:
    token = target.token(origins=[SHOP])
    answer = target.generate(token, seed=1)
    assert (answer.status, answer.headers["access-control-allow-origin"]) == (200, SHOP)
    for origin in (None, STRANGER, "https://admin.acme.example", "null", SHOP + "/", target.fleet.replicas[0].url):
        refused = target.generate(token, seed=1, origin=origin)
        assert (refused.status, refused.document["code"]) == (403, "forbidden")
        assert "access-control-allow-origin" not in refused.headers
    unbound = target.token(origins=[])
    assert [target.generate(unbound, seed=1, origin=origin).status for origin in (None, SHOP, STRANGER)] == [
        200,
        200,
        403,
    ]


def test_a_token_ends_with_the_origin_that_its_tenant_takes_back(target: Target) -> None:
    token = target.token()
    assert target.call("GET", "/v1/jobs", token).status == 200
    target.fleet.tenants(json.dumps({"version": 1, "tenants": TENANTS | {"acme": {"name": "Acme"}}}) + "\n")
    assert target.call("GET", "/v1/jobs", token).status == 403
    target.fleet.tenants(json.dumps({"version": 1, "tenants": TENANTS}) + "\n")
    assert target.call("GET", "/v1/jobs", token).status == 200


def test_its_ceiling_holds_for_what_is_asked_left_out_stored_and_replayed(target: Target) -> None:
    token = target.token()
    asked = target.generate(token, seed=2, safety_tolerance=4).document["safety"]
    assert asked == {"requested": 4, "applied": 1, "ceiling": 1, "action": "clamped"}
    assert target.generate(token, seed=2).document["safety"]["applied"] == 1
    loose = target.generate("acme", seed=3, safety_tolerance=4).document["image"]["id"]
    assert target.call("GET", f"/v1/images/{loose}", "acme").status == 200
    assert target.call("GET", f"/v1/images/{loose}", token).status == 404
    edit = {"prompt": "more sky", "image": {"image_id": loose}}
    assert target.call("POST", "/v1/edit", token, edit).status == 404
    dev = {"prompt": "more sky", "variant": "dev", "image": {"image_id": loose}}
    assert target.call("POST", "/v1/edit", token, dev).status in (403, 404)


def test_operations_and_variants_are_those_it_was_minted_with(target: Target) -> None:
    token = target.token(operations=["generate"], variants=["pro"])
    answers = [
        target.call("POST", "/v1/edit", token, {"prompt": "more sky", "image": {"b64": "AAAA"}}),
        target.generate(token, variant="max"),
    ]
    assert [(answer.status, answer.document["code"]) for answer in answers] == [(403, "forbidden")] * 2
    assert target.generate(token, variant="auto", seed=4).document["variant"] == "pro"


def test_of_a_burst_exactly_its_count_is_made(target: Target) -> None:
    token, before = target.token(images=3), target.fleet.bill()["jobs"]
    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda seed: target.generate(token, seed=seed), range(100, 112)))
    assert Counter(answer.status for answer in answers) == {200: 3, 429: 9}
    assert target.fleet.bill()["jobs"] == before + 3
    refused = target.generate(token, seed=99)
    assert (refused.document["code"], refused.document["level"]) == ("image_quota_exhausted", "token")
    assert (refused.document["limit"], refused.document["spent"], "retry-after" in refused.headers) == (3, 3, False)
    assert (
        target.generate(token, seed=int(json.loads(next(a for a in answers if a.status == 200).body)["seed"])).status
        == 200
    )
    assert target.generate(target.token(images=3), seed=99).status == 200  # another token counts for itself


def test_its_dollars_are_held_to_the_cent(target: Target) -> None:
    token = target.token(usd="0.10")
    answers = [target.generate(token, seed=seed) for seed in range(200, 203)]
    assert [answer.status for answer in answers] == [200, 200, 402]
    refused = answers[-1].document
    assert (refused["code"], refused["level"], refused["remaining"]) == ("budget_exhausted", "token", "0.020000")


def test_what_its_key_and_tenant_have_and_spent_is_not_told_to_it(target: Target) -> None:
    token = target.token("poor")
    assert target.generate(token, seed=1, origin=None).status == 200
    refused = target.generate(token, seed=2, origin=None)
    assert (refused.status, refused.document["code"]) == (402, "budget_exhausted")
    assert not {"level", "limit", "spent", "remaining", "reset", "price_micro_usd"} & refused.document.keys()
    assert "0.0" not in refused.document["detail"]
    assert "spent" in target.generate("poor", seed=2, origin=None).document


def test_it_can_do_nothing_that_is_the_keys(target: Target) -> None:
    token = target.token(origins=[])
    for method, path, body in (
        ("POST", "/v1/client-tokens", {}),
        ("GET", "/v1/usage", None),
        ("GET", "/v1/me", None),
        ("POST", "/v1/quote", {"operation": "generate", "prompt": "a boat"}),
    ):
        answer = target.call(method, path, token, body, origin=None)
        assert (answer.status, answer.document["code"]) == (403, "forbidden"), path
    assert target.call("GET", "/v1/models", token, origin=None).status == 200


def test_it_sees_its_own_jobs_and_no_others(target: Target) -> None:
    first, second = target.token(), target.token()
    made = [target.generate(token, seed=seed).document["id"] for token, seed in ((first, 301), (second, 302))]
    of_key = target.generate("acme", seed=303).document["id"]
    shown = [
        {job["id"] for job in target.call("GET", "/v1/jobs", one).document["data"]} for one in (first, second, "acme")
    ]
    assert shown[0] == {made[0]}
    assert shown[1] == {made[1]}
    assert of_key in shown[2]
    assert not shown[2] & set(made)


def test_it_queues_follows_and_cancels_its_own_jobs_and_no_others(target: Target) -> None:
    first, second = target.token(), target.token()
    body = {"prompt": "a lighthouse", "seed": 400, "safety_tolerance": 4}
    queued = target.call("POST", "/v1/generate", first, body, prefer="respond-async", idempotency_key="queued")
    assert queued.status == 202
    job = queued.document["id"]
    wait_until(lambda: target.call("GET", f"/v1/jobs/{job}", first).document["state"] == "succeeded", 20)
    result = target.call("GET", f"/v1/jobs/{job}", first).document["result"]
    assert result["safety"]["applied"] == 1
    for other in (second, "acme", "narrow"):
        for method, path in (("GET", ""), ("DELETE", ""), ("GET", "/events")):
            assert target.call(method, f"/v1/jobs/{job}{path}", other).status == 404
    assert target.call("DELETE", f"/v1/jobs/{job}", first).status == 409
    named = target.call("POST", "/v1/generate", second, body, prefer="respond-async", idempotency_key="queued")
    assert (named.status, named.document["id"] == job) == (202, False)
    small = target.token(images=1)
    answers = [
        target.call("POST", "/v1/generate", small, body | {"seed": seed}, prefer="respond-async") for seed in (401, 402)
    ]
    assert [answer.status for answer in answers] == [202, 429]


def test_openais_dialect_holds_a_token_too(target: Target) -> None:
    token = target.token(images=1, variants=["pro"])
    body = {"model": "flux-kontext-pro", "prompt": "a lighthouse", "response_format": "b64_json"}
    assert target.call("POST", "/v1/images/generations", token, body).status == 200
    assert (
        target.call("POST", "/v1/images/generations", token, body).document["error"]["code"] == "image_quota_exhausted"
    )
    max_ = target.call("POST", "/v1/images/generations", token, body | {"model": "flux-kontext-max"})
    assert (max_.status, max_.document["error"]["code"]) == (403, "forbidden")
    assert target.call("POST", "/v1/images/generations", target.token(images=1), body | {"n": 2}).status in (400, 429)


def test_its_end_user_is_the_one_it_was_minted_for(target: Target) -> None:
    token = target.token("users", user="ada")
    assert target.generate(token, seed=1, user="bob", origin=None).document["field"] == "user"
    assert [target.generate(token, seed=seed, origin=None).status for seed in (1, 2)] == [200, 200]
    assert target.generate(token, seed=3, user="ada", origin=None).status == 200
    refused = target.generate(target.token("users", user="ada"), seed=4, origin=None)
    assert (refused.status, refused.document["level"]) == (429, "user")
    nobodys = target.generate(target.token(), seed=1, user="bob")
    assert (nobodys.status, nobodys.document["field"]) == (422, "user")
    report = target.call("GET", "/v1/usage?group_by=user", "users", origin=None).document
    assert {row["user"]: row["images"] for row in report["rows"]} == {"ada": 3}


def test_a_name_of_a_token_is_no_other_tokens(target: Target) -> None:
    first, second = target.token(), target.token()
    jobs = [target.generate(one, named="a-name").document["id"] for one in (first, second, "acme", first)]
    assert len(set(jobs)) == 3
    assert jobs[3] == jobs[0]


def test_it_ends_with_its_key_at_the_next_request(target: Target) -> None:
    token = target.token("doomed")
    assert target.generate(token, seed=1).status == 200
    on_keyring(target.fleet, lambda keyring: keyring.revoke("acme", target.key_ids["doomed"]))
    answer = target.generate(token, seed=1)
    assert (answer.status, answer.document["code"]) == (401, "unauthenticated")
    assert answer.headers["access-control-allow-origin"] == SHOP


def test_it_ends_with_the_rotation_of_what_minted_it(target: Target) -> None:
    token = target.token("turning")
    on_keyring(target.fleet, lambda keyring: keyring.rotate("acme", target.key_ids["turning"], overlap=1))
    assert target.generate(token, seed=1).status == 200
    time.sleep(1.1)
    assert target.generate(token, seed=1).status == 401


def test_it_ends_by_itself(target: Target) -> None:
    token = target.token(expires_in=1)
    time.sleep(1.1)
    assert target.generate(token, seed=1).status == 401


def test_what_is_no_token_is_refused_like_any_key(target: Target) -> None:
    token = target.token()
    for wrong in (
        token[:-1],
        token[:-1] + ("0" if token[-1] != "0" else "1"),
        token.replace("client", "live"),
        "kgw_client_" + "0" * 38,
    ):
        assert target.call("GET", "/v1/jobs", wrong).status == 401


def test_everything_kept_for_a_token_expires_and_nothing_kept_is_a_token(target: Target) -> None:
    made = target.mint(usd="0.20").document
    before = set(target.fleet.redis.keys("*"))
    assert target.generate(made["token"], seed=500, named="kept").status == 200
    redis, life = target.fleet.redis, 3600
    fresh = [name for name in redis.keys("*") if name not in before or made["id"].encode() in name]
    of_token = [name for name in fresh if made["id"].encode() in name]
    assert len(of_token) == 3  # its two counters and its list of jobs
    assert [name for name in fresh if redis.ttl(name) < 0 and b"{t:acme}" in name] == []
    assert all(redis.ttl(name) <= 600 + 3600 for name in of_token if b":win:" in name)
    stored = [name for name in redis.keys("kg:token:*") if redis.get(name).startswith(b"{")]
    assert stored
    assert all(0 < redis.ttl(name) <= life for name in stored)
    assert not [name for name in redis.keys("*") if made["token"].encode() in name]
    assert not [name for name in stored if made["token"].encode() in redis.get(name)]
    assert made["token"] not in target.fleet.replicas[0].log.read_text()
