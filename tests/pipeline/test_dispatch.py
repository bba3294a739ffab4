"""A job waits for its turn between admission and dispatch; what has become stricter meanwhile stops it, for nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from app.domain.tenant import KeyPolicy, Limits, parse_budget
from tests.fleet import Fleet, fleet, wait_until
from tests.pipeline.calls import Answer, Policies, call, edit, generate, keyring, new_key, picture, rows

BUDGET = 'limits: {concurrency: 8, budgets: [{usd: "5.00", per: day}]}'


@pytest.fixture(scope="module")
def policies() -> Policies:
    names = ("ceiling", "mode", "dev", "suspended", "removed", "variant", "key", "rotated", "busy", "looser", "image")
    return Policies(dict.fromkeys(names, BUDGET))


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory, policies: Policies) -> Iterator[Fleet]:
    """One slot for everybody."""
    fast = ("--time-scale", "0.01", "--picture", "small")
    one = {"GATEWAY_UPSTREAM_CONCURRENCY": "1"}
    with fleet(tmp_path_factory.mktemp("narrow"), policies.text, replicas=2, sandbox=fast, **one) as found:
        policies.fleet = found
        yield found


@contextmanager
def waiting(running: Fleet, tenant: str, ask: Callable[[str], Answer]) -> Iterator[Future[Answer]]:
    """A job that is admitted and waits behind somebody else's; it gets its turn when the block ends."""
    _, busy = new_key(running, "busy")
    client = running.redis
    running.faults([{"kind": "slow", "count": 1, "options": {"after_seconds": 1.2}}])
    with ThreadPoolExecutor() as pool:
        first = pool.submit(generate, running.replicas[0].url, busy)
        wait_until(lambda: running.stats()["in_progress"] == 1, 10)
        second = pool.submit(ask, running.replicas[1].url)
        wait_until(lambda: client.zcard(f"kg:{{t:{tenant}}}:open") == 1, 10)
        assert spent(running, tenant)[1] > 0
        yield second
        assert not second.done(), second.result()
        assert first.result().status == 200
        second.result()
    client.close()


def spent(running: Fleet, tenant: str) -> tuple[int, int]:
    """(spent, reserved) micro-dollars of the tenant's day."""
    client = running.redis
    (name,) = client.scan_iter(f"kg:{{t:{tenant}}}:win:tenant:all:usd:day:*", count=1_000)
    found = tuple(int(value or 0) for value in client.hmget(name, "spent", "reserved"))
    client.close()
    return found[0], found[1]


def refused_and_free(running: Fleet, tenant: str, answer: Answer, code: str, status: int) -> None:
    """The job was refused, nothing was sent for it, and nothing is charged or held."""
    assert answer.refusal == (status, code, "no")
    assert spent(running, tenant) == (0, 0)
    client = running.redis
    assert client.zcard(f"kg:{{t:{tenant}}}:open") == 0
    client.close()
    assert [row["state"] for row in rows(running, tenant)] == ["REFUNDED"]


CHANGES: list[tuple[str, str, str, int]] = [
    ("ceiling", "safety: {generate: {ceiling: 3}}", "safety_ceiling", 403),
    ("mode", "safety: {generate: {ceiling: 1}, mode: reject}", "safety_ceiling", 403),
    ("suspended", "suspended: true", "forbidden", 403),
    ("variant", "variants: {generate: [max], edit: [pro]}", "forbidden", 403),
]


@pytest.mark.parametrize(("tenant", "change", "code", "status"), CHANGES)
def test_a_policy_that_became_stricter_while_a_job_waited_stops_it(
    narrow: Fleet, policies: Policies, tenant: str, change: str, code: str, status: int
) -> None:
    _, token = new_key(narrow, tenant)
    before = narrow.stats()["received"]
    with waiting(narrow, tenant, lambda url: generate(url, token, seed=1, safety_tolerance=4)) as job:
        policies.set(tenant, f"{BUDGET}, {change}")
    refused_and_free(narrow, tenant, job.result(), code, status)
    assert narrow.stats()["received"] == before + 1


def test_a_tenant_that_was_removed_while_its_job_waited_sends_nothing(narrow: Fleet, policies: Policies) -> None:
    _, token = new_key(narrow, "removed")
    before = narrow.stats()["received"]
    with waiting(narrow, "removed", lambda url: generate(url, token)) as job:
        del policies.blocks["removed"]
        narrow.tenants(policies.text)
    refused_and_free(narrow, "removed", job.result(), "forbidden", 403)
    assert narrow.stats()["received"] == before + 1


def test_a_variant_without_the_knob_is_stopped_by_a_new_ceiling(narrow: Fleet, policies: Policies) -> None:
    _, token = new_key(narrow, "dev")
    before = narrow.stats()["received"]
    with waiting(narrow, "dev", lambda url: edit(url, token, {"image": picture()}, variant="dev")) as job:
        policies.set("dev", f"{BUDGET}, safety: {{edit: {{ceiling: 2}}}}")
    refused_and_free(narrow, "dev", job.result(), "safety_ceiling", 403)
    assert narrow.stats()["received"] == before + 1


def test_a_key_that_was_revoked_while_its_job_waited_sends_nothing(narrow: Fleet) -> None:
    key_id, token = new_key(narrow, "key")
    before = narrow.stats()["received"]
    with waiting(narrow, "key", lambda url: generate(url, token, seed=1)) as job:
        keyring(narrow, lambda ring: ring.revoke("key", key_id))
    refused_and_free(narrow, "key", job.result(), "unauthenticated", 401)
    assert narrow.stats()["received"] == before + 1


def test_a_token_that_was_rotated_away_while_its_job_waited_sends_nothing(narrow: Fleet) -> None:
    key_id, token = new_key(narrow, "rotated")
    before = narrow.stats()["received"]
    with waiting(narrow, "rotated", lambda url: generate(url, token)) as job:
        keyring(narrow, lambda ring: ring.rotate("rotated", key_id, overlap=0))
    refused_and_free(narrow, "rotated", job.result(), "unauthenticated", 401)
    assert narrow.stats()["received"] == before + 1


def test_a_policy_that_became_looser_changes_nothing_of_a_job_that_waits(narrow: Fleet, policies: Policies) -> None:
    _, token = new_key(narrow, "looser")
    with waiting(narrow, "looser", lambda url: generate(url, token, safety_tolerance=4)) as job:
        policies.set("looser", f"{BUDGET}, safety: {{generate: {{ceiling: 6}}}}")
    assert job.result().headers["gateway-safety"] == "applied=4, ceiling=4, requested=4"
    assert spent(narrow, "looser") == (40_000, 0)


def test_a_stored_picture_is_unreadable_once_the_ceiling_lies_under_it(narrow: Fleet, policies: Policies) -> None:
    _, token = new_key(narrow, "image", policy=KeyPolicy(Limits(budgets=(parse_budget("1.00/day"),))))
    first, second = (replica.url for replica in narrow.replicas)
    made = generate(first, token, {"Accept": "application/json"}, seed=3, safety_tolerance=3).json["image"]

    def readable() -> list[int]:
        path = f"/v1/images/{made['id']}"
        return [call(second, path, token).status, call(first, path, token).status]

    assert readable() == [200, 200]
    policies.set("image", f"{BUDGET}, safety: {{generate: {{ceiling: 2}}}}")
    assert readable() == [404, 404]
    again = generate(second, token, {"Accept": "application/json"}, seed=3, safety_tolerance=3)
    assert (again.json["source"], again.json["safety"]["applied"]) == ("upstream", 2)
    assert edit_of(first, token, made["id"]).refusal == (404, "not_found", "no")
    policies.set("image", BUDGET)
    assert readable() == [200, 200]


def edit_of(url: str, token: str, image_id: str) -> Answer:
    import json

    body = json.dumps({"prompt": "make the sky stormy", "image": {"image_id": image_id}}).encode()
    return call(url, "/v1/edit", token, body=body, headers={"Content-Type": "application/json"})
