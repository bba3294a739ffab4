"""P-02 to P-05: content expires, a stolen dump does not show it, what a camera wrote stays here, and no stored digest
gives a prompt away."""

from __future__ import annotations

import base64
import hashlib
import hmac
import itertools
import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import redis

from tests.e2e.exchange import FILE, FORM, Answer, form, make_keys, send
from tests.faults.canaries import hits
from tests.faults.checker import Broken, Violation
from tests.faults.row import Run, row
from tests.faults.storm import PATIENT
from tests.fleet import PEPPER, Fleet, fleet, get_json, wait_until
from tests.images.pictures import encoded, noise, picture
from tests.images.test_metadata import CARRIERS
from tests.redis_server import VOLATILE, RedisServer

FAST = ("--time-scale", "0", "--picture", "small")
TWO = json.dumps({"version": 1, "tenants": {"acme": {"name": "Acme"}, "pooled": {"cache": {"scope": "pool:p"}}}}) + "\n"
CANARY = "the canary of row two sings"
PRO = "inference.flux-kontext.pro.txt2img.v2"
HOOKS = "http://127.0.0.1:1099/"  # where nobody listens: the webhooks stay
# Identities and books, which stay until somebody ends them; reservations without an end are charges to reconcile, and
# jobs without one are found by their record.
LASTING = {"ledger", "key", "keys", "token", "rows", "days", "res", "open", "ambiguous", "queue", "queued-bytes"}
LASTING |= {"tenants", "queues", "held", "wanted", "gates", "leases", "waiting", "hook-salts", "job"}


def _call(running: Fleet, key: str, path: str, fields: dict[str, Any], **more: str) -> Answer:
    headers = [("Authorization", f"Bearer {key}"), ("Content-Type", "application/json"), ("Accept", "application/json")]
    headers += [(name.replace("_", "-"), value) for name, value in more.items()]
    return send(running.urls[0], "POST", path, headers, json.dumps(fields).encode(), timeout=30)


@row(
    "P-02",
    "0 keys with content and without an expiry, also of jobs that a kill -9 left",
    ci={"jobs": 3},
    nightly={"jobs": 40},
)
def everything_expires(run: Run, jobs: int) -> None:
    with (
        RedisServer(run.folder / "cache", VOLATILE) as cache,
        fleet(run.folder, TWO, sandbox=FAST, CACHE_REDIS_URL=cache.url, **PATIENT) as running,
    ):
        photo = {"b64": base64.b64encode(picture("jpeg", 640, 480)).decode()}
        for key, seed in itertools.product(make_keys(running, ["acme", "pooled"]).values(), range(jobs)):
            fields = {"prompt": CANARY, "seed": seed}
            _call(running, key, "/v1/generate", fields, idempotency_key=f"name {seed}", prefer="wait=20")
            _call(running, key, "/v1/generate", {"prompt": CANARY}, cache_control="no-store")
            _call(running, key, "/v1/edit", fields | {"image": photo}, prefer="respond-async")
            config = {"type": "inference.flux-kontext.pro.txt2img.v2", "config": fields}
            _call(running, key, "/v2/job/async", config, idempotency_key=f"name {seed}")
            lent = _call(running, key, "/v1/client-tokens", {"usd": "0.20"}).document["token"]
            _call(running, lent, "/v1/generate", fields | {"seed": seed + 1_000})
        running.faults([{"kind": "slow", "count": 9, "options": {"after_seconds": 30}}])
        for seed in range(jobs):
            _call(
                running,
                key,
                "/v1/edit",
                {"prompt": CANARY, "seed": 5_000 + seed, "image": photo},
                prefer="respond-async",
            )
        running.replicas[-1].kill()
        kinds = Counter[str]()
        for client in (running.redis, cache.client()):
            for name in client.scan_iter(count=1_000):
                kind, lasts = _kind(name), client.ttl(name) == -1
                kinds[kind] += 1
                if lasts and (kind not in LASTING or _holds_content(client, name)):
                    raise Broken([Violation("I10", f"{kind} {name!r} has no expiry")])
        run.reached = f"{kinds.total()} keys of {len(kinds)} kinds: {dict(kinds)}"
        assert {"result", "line", "idem", "in", "job", "token", "win"} <= kinds.keys()


def _kind(name: bytes) -> str:
    found = re.match(rb"kg:(?:\{[^}]*\}:)?\{?([a-z-]+)", name)
    return found[1].decode() if found else repr(name)


def _holds_content(client: redis.Redis, name: bytes) -> bool:
    value = b"\n".join(_values(client, name))
    try:
        return CANARY in (text := value.decode()) or text.startswith("{")
    except UnicodeDecodeError:  # a picture, or whatever is sealed
        return True


def _values(client: Any, name: bytes) -> Iterator[bytes]:
    match client.type(name):
        case b"string":
            yield client.get(name) or b""
        case b"hash":
            yield from (part for pair in client.hgetall(name).items() for part in pair)
        case b"stream":
            yield from (part for _, fields in client.xrange(name) for pair in fields.items() for part in pair)
        case b"set":
            yield from client.smembers(name)
        case b"zset":
            yield from client.zrange(name, 0, -1)


@row(
    "P-03",
    "0 prompts, pictures, uploads, answers, links and webhook URLs in the dumps of both Redis roles",
    ci={"jobs": 3},
    nightly={"jobs": 60},
)
def dumps_are_stolen(run: Run, jobs: int) -> None:
    """Everything there is: finished pictures, jobs that wait and have ended, answers under names, and webhooks."""
    plain = encoded(noise(300, 300), "png", compress_level=0)
    at, text = len(plain) // 2, json.dumps({"version": 1, "tenants": {"acme": {"webhooks": {"allow": [HOOKS]}}}})
    photo = {"b64": base64.b64encode(plain).decode()}
    with RedisServer(run.folder / "cache", VOLATILE) as cache, fleet(
        run.folder, text + "\n", sandbox=FAST, CACHE_REDIS_URL=cache.url, GATEWAY_WEBHOOK_LOOPBACK="true",
        GATEWAY_QUEUE_SEATS="1", **PATIENT,
    ) as running:  # fmt: skip
        key = make_keys(running, ["acme"])["acme"]
        running.command("webhooks", "rotate", "--tenant", "acme")
        hook = {"webhook_url": HOOKS + "canary-hook"}
        secrets = {"prompt": CANARY.encode(), "upload": plain[at : at + 24], "webhook URL": b"canary-hook"}
        for seed in range(jobs):
            fields, name = {"prompt": CANARY, "seed": seed, "user": "ada"}, f"name {seed}"
            made = _call(running, key, "/v1/generate", fields, idempotency_key=name).document["image"]
            waited = _call(running, key, "/v1/edit", fields | {"image": photo} | hook, prefer="wait=20")
            job = {"type": PRO, "config": {"prompt": CANARY, "seed": 1_000 + seed}}
            assert _call(running, key, "/v2/job/async", job).status == 201  # it keeps its prompt when it has ended
            link = parse_qs(urlsplit(made["url"]).query)["s"][0]
            secrets |= {f"picture {seed}": _picture(running, key, made["id"]), f"link {seed}": link.encode()}
            assert waited.status == 200
        wait_until(lambda: not running.redis.xlen("kg:{t:acme}:queue"), 20)
        running.faults([{"kind": "slow", "count": jobs, "options": {"after_seconds": 30}}])
        for seed in range(2 * jobs):
            fields = {"prompt": CANARY, "seed": 5_000 + seed, "image": photo} | hook
            assert _call(running, key, "/v1/edit", fields, prefer="respond-async").status == 202
        dumps = [(what, _dump(client)) for what, client in (("ledger", running.redis), ("cache", cache.client()))]
        found = hits(dumps, secrets)
        kinds = Counter(_kind(name) for client in (running.redis, cache.client()) for name in client.scan_iter())
        size = sum(len(dump) for _, dump in dumps)
        run.reached = f"{len(found)} hits of {len(secrets)} canaries in {size / 1e6:.1f} MB of dumps"
        if found:
            raise Broken([Violation("I10", text) for text in found])
        assert min(kinds[kind] for kind in ("in", "job", "idem", "result", "hook")) >= jobs
        assert b"kg:{t:acme}" in dumps[0][1]  # it is read as it was written, not compressed
        assert len(dumps[0][1]) > jobs * len(plain)  # what was looked for is in there


def _dump(client: redis.Redis) -> bytes:
    """The RDB file of a server, written now without compression."""
    client.config_set("rdbcompression", "no")
    client.save()
    at = client.config_get("dir", "dbfilename")
    return (Path(at["dir"]) / at["dbfilename"]).read_bytes()


def _picture(running: Fleet, key: str, image: str) -> bytes:
    """Some bytes from the middle of a stored picture, as its owner reads it."""
    answer = send(running.urls[0], "GET", f"/v1/images/{image}", [("Authorization", f"Bearer {key}")])
    assert answer.status == 200
    return answer.body[len(answer.body) // 2 :][:24]


@row(
    "P-04",
    "0 tags of a camera or an editor in what goes upstream, by any way in",
    ci={"carriers": 8},
    nightly={"carriers": len(CARRIERS)},
)
def what_a_camera_wrote(run: Run, carriers: int) -> None:
    with fleet(run.folder, TWO, sandbox=FAST, **PATIENT) as running:
        key, ways = make_keys(running, ["acme"])["acme"], Counter[str]()
        carrier, path = ("Authorization", f"Bearer {key}"), "/v1/edit"
        for name in run.draw.sample(list(CARRIERS), carriers):
            data, text = CARRIERS[name], base64.b64encode(CARRIERS[name]).decode()
            prompt = (("prompt", b"more sky"), ("image", data, FILE))
            answers = {
                "form": send(running.urls[0], "POST", path, [carrier, ("Content-Type", FORM)], form(*prompt)),
                "base64": _call(running, key, path, {"prompt": "more sky", "image": {"b64": text}}),
                "data URL": _call(running, key, path, {"prompt": "sky", "image": "data:image/png;base64," + text}),
                "queue": _call(
                    running, key, "/v1/edit", {"prompt": "skies", "image": {"b64": text}}, prefer="respond-async"
                ),
            }  # fmt: skip
            ways.update(way for way, answer in answers.items() if answer.status in (200, 202))
        count = 4 * carriers
        wait_until(lambda: len(_inputs(running)) >= count, 30)
        found = [upload["metadata"] for upload in _inputs(running)]
        run.reached = (
            f"{len(found)} uploads of {carriers} pictures by {dict(ways)}, {sum(map(bool, found))} with metadata"
        )
        assert set(ways.values()) == {carriers}
        if any(found):
            raise Broken([Violation("I10", f"sent upstream with {one}") for one in found if one])


def _inputs(running: Fleet) -> list[dict[str, Any]]:
    told = get_json(running.upstream + "/sandbox/jobs?limit=100000")["jobs"]
    return [upload for job in told for upload in job["inputs"]]


WORDS = (
    "a",
    "the",
    "red",
    "blue",
    "small",
    "old",
    "lighthouse",
    "harbour",
    "boat",
    "sky",
    "stormy",
    "at",
    "dawn",
    "in",
    "fog",
    "make",
)
PROMPTS = ("a small boat at dawn", "make the sky stormy", "old lighthouse in fog")


@row(
    "P-05",
    "0 stored digests found by a dictionary that holds the prompts",
    ci={"words": 20_000},
    nightly={"words": 1_000_000},
)
def a_dictionary_of_prompts(run: Run, words: int) -> None:
    with fleet(run.folder, TWO, sandbox=FAST, **PATIENT) as running:
        keys = make_keys(running, ["acme", "pooled"])
        photo = {"b64": base64.b64encode(picture("jpeg", 640, 480)).decode()}
        for number, (key, prompt) in enumerate(itertools.product(keys.values(), PROMPTS)):
            _call(running, key, "/v1/generate", {"prompt": prompt, "seed": number}, idempotency_key=f"n{number}")
            _call(running, key, "/v1/edit", {"prompt": prompt, "seed": number, "image": photo})
        client = running.redis
        stored = b"\n".join(part for name in client.scan_iter() for part in (name, *_values(client, name)))
        digests = {found.decode() for found in re.findall(rb"(?<![0-9a-f])[0-9a-f]{32,128}(?![0-9a-f])", stored)}
        digests |= {one[:size] for one in digests for size in (32, 40, 64)}
        guesses = itertools.chain(
            PROMPTS, (" ".join(run.draw.choices(WORDS, k=run.draw.randint(3, 7))) for _ in range(words))
        )
        hits = [guess for guess in guesses if not digests.isdisjoint(_digests(guess))]
        run.reached = f"{len(hits)} of {len(digests)} digests found by {words + len(PROMPTS)} prompts"
        if hits:
            raise Broken([Violation("I10", f"a digest tells {hit!r}") for hit in hits])
        # With the key of the tenant they are found: the search sees what is stored.
        secret = hmac.digest(PEPPER.encode(), b"kontext-gateway/scope/t:acme", "sha256")
        assert hmac.digest(secret, b"prompt/" + PROMPTS[0].encode(), "sha256").hex() in digests


def _digests(prompt: str) -> set[str]:
    """What a prompt would be found by without the key: common digests of it, plain or beside what is public."""
    found = set()
    for before in ("", "prompt/", "acme", "acme/", "t:acme", "pool:p"):
        text = (before + prompt).encode()
        for kind in ("md5", "sha1", "sha256", "blake2b"):
            value = hashlib.new(kind, text).hexdigest()
            found |= {value[:32], value[:40], value[:64]}
    for key in (b"", b"acme", b"t:acme", b"kontext-gateway"):
        found.add(hmac.digest(key, prompt.encode(), "sha256").hex())
        found.add(hmac.digest(key, b"prompt/" + prompt.encode(), "sha256").hex())
    return found
