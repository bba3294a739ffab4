"""R-14: whatever callers write, the keys in Redis are those of the schema, and nobody gets into another's part."""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import quote

from tests.faults.checker import Broken, Violation
from tests.faults.row import Run, row
from tests.faults.rows.queues import FAST, HOOKS
from tests.faults.storm import PATIENT
from tests.fleet import Fleet, fleet
from tests.jobs.receiver import receiving
from tests.pipeline.calls import Answer, call, generate, new_key
from tests.pipeline.queued import ASYNC
from tests.redis_server import VOLATILE, RedisServer

PIECES = (
    "{t:zeta}", "{up}", "{", "}", "kg:", "kg:{t:zeta}:ledger", "*", "?", "[a-z]", ":", "|", "/", "\\", "$",
    "\u4e16", "\u00e9", "e\u0301", "' or 1=1 --", "FLUSHALL", "redis.call", "../", "%00", "%0d%0a", "\\r\\n", "a", "b",
)  # fmt: skip
UNSEEN = ("\r\n", "\n", "\x00", "\x1f", "\u2028", "\u202e", "\ud800", " ")  # most of them are refused
AT_ONCE = 8
EVERY = 10  # every so many names are tried in all places
ULID, HEX = r"[0-9A-HJKMNP-TV-Z]{26}", r"[0-9a-f]"
HOLDER, PERSON = rf"(key_{HEX}{{12}}|ct_{HEX}{{24}})", rf"{HEX}{{32}}"
PICTURE = rf"(flight:{HEX}{{64}}|result:{HEX}{{40}})"
LEVEL = rf"(tenant:acme|(key|token):{HOLDER}|user:{PERSON})"
OF_A_TENANT = "|".join(
    (
        "ledger", "keys", "open", "ambiguous", "rows", "days", "queue", "waiting", "queued-bytes", "hook-salts",
        rf"key:key_{HEX}{{12}}", rf"(job|in):job_{ULID}", rf"res:res_{HEX}{{24}}", rf"hook:msg_{ULID}",
        "hooks:(due|done|dead)", rf"jobs:{HOLDER}", r"use:\d+", rf"idem:{PERSON}", rf"line:img_{HEX}{{48}}", PICTURE,
        rf"(rate|conc):{LEVEL}", rf"win:{LEVEL}:(usd|img):[a-z]+:\d+",
    )
)  # fmt: skip
GRAMMAR = re.compile(
    rf"kg:(\{{ledger\}}(:tenants|:queues)?|\{{up\}}:(leases|held|wanted|gates)|token:{HEX}{{64}}"
    rf"|\{{t:acme\}}:({OF_A_TENANT})|\{{pool:shared\}}:{PICTURE})"
)


@row(
    "R-14",
    "0 keys outside of the schema and 0 in another tenant's part, whatever callers write as names and ids",
    ci={"names": 100},
    nightly={"names": 3_000},
)
def hostile_names(run: Run, names: int) -> None:
    with RedisServer(run.folder / "cache", VOLATILE) as cache, receiving() as receiver:
        tenants = {
            "acme": {"webhooks": {"allow": [f"{receiver.url}/"]}, "limits": {"per_user": {"images": [
                {"max": 1_000_000, "per": "day"}]}}},
            "zeta": {"cache": {"scope": "pool:shared"}},
        }  # fmt: skip
        text = json.dumps({"version": 1, "tenants": tenants}) + "\n"
        url = {"CACHE_REDIS_URL": cache.url}
        with fleet(run.folder, text, sandbox=FAST, **url, **PATIENT, **HOOKS) as running:
            running.command("webhooks", "rotate", "--tenant", "acme")
            (_, key), (_, other) = new_key(running, "acme"), new_key(running, "zeta")
            assert generate(running.urls[0], other, seed=1).status == 200
            before, told = _keys(running, cache), Counter[int]()
            foreign = {name for name in before if "zeta" in name}
            drawn = [_drawn(run.draw, number) for number in range(names)]
            with ThreadPoolExecutor(AT_ONCE) as pool:
                for answers in pool.map(lambda at: _tried(running, key, drawn[at], at, receiver.url), range(names)):
                    told.update(answer.status for answer in answers)
            found = _keys(running, cache)
            strange = [name for name in found - foreign if not GRAMMAR.fullmatch(name)]
            taken = {name for name in found if "zeta" in name} - foreign
            run.reached = f"{names} names in {told.total()} calls {dict(sorted(told.items()))}: {len(found)} keys"
            run.reached += f", {len(strange)} outside of the schema, {len(taken)} in another's part"
            if strange or taken:
                raise Broken([Violation("I8", f"the key {name!r}") for name in (*strange, *taken)][:20])
            assert told[200] >= names / 2
            assert told[202] > 0
            assert len(found) > names


def _drawn(draw: random.Random, number: int) -> str:
    name = "".join(draw.choices(PIECES, k=draw.randint(1, 12))) + draw.choice(UNSEEN) * (number % 5 == 1)
    return name * 500 if number % 50 == 49 else name


def _keys(running: Fleet, cache: RedisServer) -> set[str]:
    found = set()
    for client in (running.redis, cache.client()):
        found |= {name.decode("utf-8", "backslashreplace") for name in client.scan_iter(count=1000)}
        client.close()
    return found


def _tried(running: Fleet, key: str, name: str, number: int, receiver: str) -> list[Answer]:
    """The answers to a name in the places for names, and every so often in all places."""
    url, plain = running.urls[0], re.sub(r"[^ -~]", "?", name)
    header = {"Idempotency-Key": f"{number} {plain}"[:255]}
    fields: dict[str, Any] = {"user": name, "tags": [name, name[:32]]}
    fields = fields if len(name) > 128 else {"user": name, "tags": [name[:32]]}
    made = [generate(url, key, header, seed=number, **fields)]
    if number % EVERY:
        return made
    kind, path = {"Content-Type": "application/json"}, quote(name[:500], safe="")
    for at, hook in enumerate(("in", path, name[:99])):
        named = {"Idempotency-Key": f"{number} {at} {plain}"[:255]}
        made.append(generate(url, key, ASYNC | named, seed=number, webhook_url=f"{receiver}/{hook}", user=name[:100]))
    made += [generate(url, key, user="u", **{field: name}) for field in ("variant", "prompt", "seed", "job", name[:40])]
    lent = call(url, "/v1/client-tokens", key, body=json.dumps({"user": name[:100]}).encode(), headers=kind)
    if lent.status == 201:
        made.append(generate(url, lent.json["token"], header, seed=number))
    edited = json.dumps({"prompt": "more sky", "user": "u", "image": {"image_id": name}}).encode()
    made += [lent, call(url, "/v1/edit", key, body=edited, headers=kind)]
    for at in ("/v1/images/{}", "/v1/images/{}/lineage", "/v1/jobs/{}", "/v1/jobs/{}/events", "/v1/usage?user={}"):
        made.append(
            call(url, at.format(path), key, headers={"Last-Event-ID": plain[:200], "X-Request-Id": plain[:200]})
        )
    made += [call(url, f"/v1/{kind}/{path}", key, method="DELETE") for kind in ("images", "jobs")]
    return made
