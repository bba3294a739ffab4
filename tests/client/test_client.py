"""The Python client against a real gateway: what it gives, what it raises, and that it never pays twice by itself."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import socket
from collections.abc import Awaitable, Callable
from datetime import date
from pathlib import Path
from typing import Any, TypeVar

import pytest

from app.client import Client, GatewayRefused, GatewayUnreachable
from tests.client.running import Shop, amiss, problem
from tests.fleet import free_port

T = TypeVar("T")
BUSY = '{"code": "upstream_busy", "detail": "Busy.", "charged": "%s"}'
seeds = itertools.count(1_000)


def use(url: str, key: str, work: Callable[[Client], Awaitable[T]], **options: Any) -> T:
    """Do something with a client, as a script does."""

    async def go() -> T:
        async with asyncio.timeout(120), Client(url, key, **options) as client:
            return await work(client)

    return asyncio.run(go())


def alone(failure: BaseException, key: str = "key-of-the-test") -> None:
    """Nothing is chained to it, as a transport's exception holds the request with the key, and it does not tell it."""
    assert failure.__cause__ is None
    assert failure.__context__ is None
    assert key not in repr(failure.__dict__) + str(failure)


def test_a_picture_comes_with_everything_that_the_reply_says(shop: Shop) -> None:
    """Bytes, digest, seed, cost and safety; the second time it comes from the cache."""

    async def work(client: Client) -> None:
        first = await client.generate("a lighthouse at dawn", seed=7, aspect_ratio="3:2", tags=["a", "b"], user=None)
        assert hashlib.sha256(first.data).hexdigest() == first.sha256 == first.document["image"]["sha256"]
        assert (first.seed, first.variant, first.source, first.content_type) == (7, "pro", "upstream", "image/jpeg")
        assert (first.cost.micro_usd, first.cost.usd, first.safety.applied) == (40_000, "0.040000", 4)
        assert "b64_json" not in first.document["image"]
        again = await client.generate("a lighthouse at dawn", seed=7, aspect_ratio="3:2")
        assert (again.data, again.source, again.cost.micro_usd) == (first.data, "cache", 0)
        assert again.cost.saved_micro_usd == 40_000
        stored = await client.image(first.id)
        assert (stored.data, stored.sha256, stored.content_type) == (first.data, first.sha256, "image/jpeg")
        assert "KeyError" not in repr(first)
        assert len(repr(first)) < 1_000

    use(shop.url, shop.keys["acme"], work)


def test_an_edit_starts_from_bytes_a_path_or_an_image_id(shop: Shop) -> None:
    """All three are the same picture, so it is paid for once."""

    async def work(client: Client) -> None:
        first = await client.generate("a red boat", seed=1, output_format="png")
        path = shop.folder / "boat.png"
        path.write_bytes(first.data)
        made = [
            await client.edit(image, "make it blue", seed=2, output_format="png")
            for image in (first.data, path, str(path), first.id)
        ]
        assert [one.source for one in made] == ["upstream", "cache", "cache", "cache"]
        assert {one.data for one in made} == {made[0].data}
        assert made[0].data != first.data
        assert made[0].input is not None
        assert made[0].input["sha256"] == first.sha256
        with pytest.raises(FileNotFoundError):
            await client.edit(shop.folder / "none.png", "make it blue")

    use(shop.url, shop.keys["acme"], work)


def test_the_caller_and_the_catalogue_can_be_read(shop: Shop) -> None:
    """As parsed JSON."""
    assert use(shop.url, shop.keys["poor"], lambda client: client.me())["tenant"] == "poor"
    models = use(shop.url, shop.keys["poor"], lambda client: client.models())
    assert {(job["operation"], job["variant"]) for job in models} >= {("generate", "pro"), ("edit", "dev")}


def test_a_quote_tells_what_the_call_would_cost_and_spends_nothing(shop: Shop) -> None:
    """A generation, and an edit with and without its picture; what was made is free, and what a cap forbids is told."""

    async def work(client: Client) -> None:
        seed = next(seeds)
        fresh = await client.quote("generate", "a red boat", variant="max", seed=seed, aspect_ratio="3:2", user=None)
        assert (fresh["object"], fresh["operation"], fresh["variant"]) == ("kontext.quote", "generate", "max")
        assert (fresh["cost"], fresh["cached"], fresh["allowed"]) == (
            {"micro_usd": 80_000, "usd": "0.080000"},
            False,
            True,
        )
        blank = await client.quote("edit", "make it blue", seed=seed)
        assert (blank["operation"], blank["variant"], blank["cached"]) == ("edit", "pro", None)
        assert shop.received == 0
        boat = await client.generate("a red boat", seed=seed, output_format="png")
        path = shop.folder / "boat.png"
        path.write_bytes(boat.data)
        for image in (boat.id, boat.data, path, str(path)):
            quoted = await client.quote("edit", "make it blue", image=image, seed=seed)
            assert (quoted["cost"]["micro_usd"], quoted["cached"]) == (40_000, False)
        await client.edit(boat.id, "make it blue", seed=seed)
        for image in (boat.id, boat.data, path, str(path)):
            quoted = await client.quote("edit", "make it blue", image=image, seed=seed)
            assert (quoted["cost"]["micro_usd"], quoted["cached"]) == (0, True)
        with pytest.raises(GatewayRefused, match="safety_tolerance"):
            await client.quote("edit", "make it blue", safety_tolerance=7)
        assert shop.received == 2

    use(shop.url, shop.keys["acme"], work)
    too_dear = use(shop.url, shop.keys["poor"], lambda client: client.quote("generate", "a boat", variant="max"))
    assert (too_dear["allowed"], too_dear["error"]["code"], shop.received) == (False, "budget_exhausted", 2)


def test_usage_is_read_with_the_parameters_of_the_call(shop: Shop) -> None:
    """Grouped and filtered, for days that are dates or texts; a wrong one is refused by its name."""

    async def work(client: Client) -> None:
        tag = f"odd & = {next(seeds)}"
        for variant in ("pro", "max"):
            await client.generate("a red boat", seed=next(seeds), tags=[tag], variant=variant)
        found = await client.usage(per="total", group_by="tags,variant", tag=tag, user=None)
        spent = {(*row["tags"], row["variant"]): row["spent"]["micro_usd"] for row in found["rows"]}
        assert spent == {(tag, "pro"): 40_000, (tag, "max"): 80_000}
        assert (await client.usage(tag=tag))["total"]["spent"]["micro_usd"] == 120_000
        past = await client.usage(from_=date(2025, 12, 15), to="2026-02-01", tag=tag)
        assert (past["from"], past["to"], past["rows"]) == ("2025-12-15", "2026-02-01", [])
        with pytest.raises(GatewayRefused, match="`colour` is not a parameter of this report"):
            await client.usage(colour="red")

    use(shop.url, shop.keys["acme"], work)


def test_a_call_that_was_cut_off_is_found_among_the_recent_jobs(shop: Shop) -> None:
    """Newest first, with its picture, for its own key only."""
    before, seed = next(seeds), next(seeds)

    async def work(client: Client) -> None:
        await client.generate("a red boat", seed=before)
        shop.fleet.faults([{"kind": "slow", "options": {"after_seconds": 2}, "count": 1}])
        cut = asyncio.create_task(client.generate("a blue boat", seed=seed))
        while shop.fleet.stats()["in_progress"] == 0:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        cut.cancel()
        while (newest := (await client.jobs(limit=1))[0])["state"] == "running":  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        assert (newest["seed"], newest["state"], newest["cost"]["micro_usd"]) == (seed, "succeeded", 40_000)
        assert (await client.image(newest["image"]["id"])).sha256 == newest["image"]["sha256"]
        assert [job["seed"] for job in (await client.jobs())[:2]] == [seed, before]
        with pytest.raises(GatewayRefused, match="`limit` must be"):
            await client.jobs(limit=0)

    use(shop.url, shop.keys["acme"], work)
    assert use(shop.url, shop.keys["other"], lambda client: client.jobs()) == []


def test_only_a_paid_call_is_named_and_only_a_paid_call_may_have_been_charged(shop: Shop) -> None:
    """A quote is sent without an idempotency key, and one whose answer is lost has cost nothing."""
    with amiss([None]) as server, pytest.raises(GatewayUnreachable) as caught:
        use(server.url, "key", lambda client: client.quote("generate", "a red boat"))
    assert server.header("idempotency-key") == []
    assert (caught.value.code, caught.value.charged, caught.value.idempotency_key) == ("no_answer", "no", None)


def test_a_refusal_carries_the_problem(shop: Shop) -> None:
    """Code, field, range, what was charged, and the request's id; nothing reached the upstream."""
    with pytest.raises(GatewayRefused) as caught:
        use(shop.url, shop.keys["acme"], lambda client: client.generate("a red boat", safety_tolerance=7))
    refused = caught.value
    assert (refused.code, refused.status, refused.field, refused.charged) == (
        "invalid_request", 422, "safety_tolerance", "no",
    )  # fmt: skip
    assert refused.problem["maximum"] == 6
    assert refused.request_id is not None
    assert refused.request_id.startswith("req_")
    with pytest.raises(GatewayRefused, match="unauthenticated"):
        use(shop.url, "kgw_live_unknown", lambda client: client.me())
    with pytest.raises(GatewayRefused, match="not_found"):
        use(shop.url, shop.keys["acme"], lambda client: client.image("img_" + "0" * 48))
    assert shop.received == 0


def test_a_spent_budget_is_not_asked_for_again(shop: Shop) -> None:
    """402 says that a repeat does not help."""

    async def work(client: Client) -> GatewayRefused:
        await client.generate("the only one", seed=1)
        with pytest.raises(GatewayRefused) as caught:
            await client.generate("one too many", seed=2)
        return caught.value

    assert use(shop.url, shop.keys["poor"], work).code == "budget_exhausted"
    assert shop.received == 1


def test_a_quota_that_ends_too_late_is_not_waited_for(shop: Shop) -> None:
    """`Retry-After` is a minute at most, but the month is longer than the time that is left."""
    before = refusals(shop, "image_quota_exhausted")

    async def work(client: Client) -> None:
        await client.generate("the only one", seed=1)
        with pytest.raises(GatewayRefused, match="image_quota_exhausted"):
            await client.generate("one too many", seed=2)

    use(shop.url, shop.keys["few"], work)
    assert refusals(shop, "image_quota_exhausted") == before + 1


def refusals(shop: Shop, reason: str) -> float:
    return shop.fleet.replicas[0].total("kontext_gateway_rejections_total", reason=reason)


def test_a_rate_limit_is_waited_for_and_a_client_without_retries_is_told(shop: Shop) -> None:
    """Two pictures at once at one request in two seconds: both are made, each is paid for once."""

    async def work(client: Client) -> list[Any]:
        pictures = (client.generate("a red boat", seed=next(seeds)) for _ in range(2))
        return await asyncio.gather(*pictures, return_exceptions=True)

    before = client_errors(shop)
    made = use(shop.url, shop.keys["slow"], work, retries=5)
    assert [one.source for one in made] == ["upstream", "upstream"]
    assert client_errors(shop) > before
    assert shop.fleet.bill()["jobs"] == 2
    (refused, *_) = [one for one in use(shop.url, shop.keys["slow"], work, retries=0) if isinstance(one, Exception)]
    assert (refused.code, refused.retry_after) in (("rate_limited", 1), ("rate_limited", 2))


def client_errors(shop: Shop) -> float:
    return shop.fleet.replicas[0].total("kontext_gateway_http_request_duration_seconds_count", status_class="4xx")


def test_a_busy_upstream_is_asked_again_and_paid_once(shop: Shop) -> None:
    """The gateway gives up with `charged: no`; the client comes back when it says, and gets its picture."""
    shop.fleet.faults([{"kind": "busy", "count": 5, "options": {"retry_after": 0}}])
    before = refused_busy(shop)
    made = use(shop.url, shop.keys["acme"], lambda client: client.generate("a red boat", seed=next(seeds)), retries=5)
    assert made.source == "upstream"
    assert refused_busy(shop) > before
    assert shop.fleet.bill()["jobs"] == 1


def refused_busy(shop: Shop) -> float:
    return shop.fleet.replicas[0].total("kontext_gateway_requests_total", outcome="upstream_busy")


def test_what_may_have_been_paid_for_is_not_sent_again(shop: Shop) -> None:
    """The upstream's answer was lost after it had accepted the job."""
    shop.fleet.faults([{"kind": "cut_after_accept", "count": 1}])
    with pytest.raises(GatewayRefused) as caught:
        use(shop.url, shop.keys["acme"], lambda client: client.generate("a red boat", seed=next(seeds)))
    assert (caught.value.code, caught.value.charged) == ("upstream_failed", "unknown")
    assert (shop.received, shop.fleet.bill()["jobs"]) == (1, 1)


def test_a_re_send_has_the_idempotency_key_of_its_call() -> None:
    """Three requests of one call share it, another call has its own, and a caller may set it."""
    busy = problem("503 Service Unavailable", BUSY % "no", "Retry-After: 0")
    with amiss([busy] * 5) as server:

        async def work(client: Client) -> str | None:
            for key in (None, "mine"):
                with pytest.raises(GatewayRefused) as caught:
                    await client.generate("a red boat", idempotency_key=key)
            return caught.value.idempotency_key

        assert use(server.url, "key", work, retries=1) == "mine"
        first, again, *other = server.header("idempotency-key")
    assert first == again
    assert len(first) == 36
    assert other == ["mine", "mine"]


@pytest.mark.parametrize(
    "answer",
    [
        problem("503 Service Unavailable", BUSY % "unknown", "Retry-After: 0"),
        problem("503 Service Unavailable", BUSY % "yes", "Retry-After: 0"),
        problem("503 Service Unavailable", '{"code": "overloaded"}', "Retry-After: 0"),
        problem("503 Service Unavailable", BUSY % "no"),
        problem("503 Service Unavailable", BUSY % "no", "Retry-After: 9999"),
        problem("502 Bad Gateway", BUSY % "no", "Retry-After: 0"),
        b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 0\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 307 Temporary Redirect\r\nLocation: /elsewhere\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 4\r\n\r\n<p/>",
        b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 12\r\n\r\n{"image": 1}',
    ],
)
def test_without_proof_and_a_time_to_come_back_nothing_is_sent_again(answer: bytes) -> None:
    """One request each, whatever a proxy or a broken gateway answers."""
    with amiss([answer] * 2) as server:
        with pytest.raises(GatewayRefused) as caught:
            use(server.url, "key-of-the-test", lambda client: client.generate("a red boat"))
        assert len(server.heads) == 1
    assert caught.value.charged in ("unknown", "yes") or b'"no"' in answer
    alone(caught.value)


def test_a_lost_answer_is_not_sent_again_and_may_have_been_charged() -> None:
    """The connection ends after the whole request was read."""
    with amiss([None, None]) as server:
        with pytest.raises(GatewayUnreachable) as caught:
            use(server.url, "key", lambda client: client.generate("a red boat"))
        assert len(server.heads) == 1
    assert (caught.value.code, caught.value.charged) == ("no_answer", "unknown")
    with amiss([None]) as server, pytest.raises(GatewayUnreachable) as caught:
        use(server.url, "key", lambda client: client.me())
    assert caught.value.charged == "no"


def test_a_silent_gateway_ends_at_the_timeout() -> None:
    """It has the request and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        with pytest.raises(GatewayUnreachable, match=r"no answer within 0\.5 s") as caught:
            use(url, "key-of-the-test", lambda client: client.generate("a red boat"), timeout=0.5)
    assert caught.value.charged == "unknown"
    alone(caught.value)


def test_a_request_that_was_cut_off_half_way_was_not_paid_for() -> None:
    """A server that closes before it has the picture."""
    with amiss([None], read=False) as server, pytest.raises(GatewayUnreachable) as caught:
        use(server.url, "key-of-the-test", lambda client: client.edit(bytes(30_000_000), "make it blue"))
    assert (caught.value.charged, caught.value.code) == ("no", "no_answer")
    alone(caught.value)


def test_no_connection_means_nothing_was_charged_and_no_failure_holds_the_key(tmp_path: Path) -> None:
    """Neither in its text nor anywhere in its chain."""
    key = "kgw_live_secret"
    with amiss([None]) as server:
        for url in (f"http://127.0.0.1:{free_port()}", server.url):
            with pytest.raises(GatewayUnreachable) as caught:
                use(url, key, lambda client: client.generate("a red boat"))
            alone(caught.value, key)
            assert url != server.url or caught.value.charged == "unknown"
            assert url == server.url or (caught.value.code, caught.value.charged) == ("unreachable", "no")


@pytest.mark.parametrize(
    ("url", "key"),
    [("ftp://here", "key"), ("here", "key"), ("http://", "key"), ("http://here", ""), ("http://h", "kü")],
)
def test_an_address_or_key_that_cannot_be_used_is_told_at_once(url: str, key: str) -> None:
    """Before any call, and without repeating the key."""
    with pytest.raises(ValueError, match="must be") as caught:
        Client(url, key)
    assert "kü" not in str(caught.value)


def test_the_client_sets_the_form_of_the_reply_itself() -> None:
    """A parameter that it needs is not silently replaced."""
    with pytest.raises(TypeError, match="response_format"):
        use("http://127.0.0.1:9", "key", lambda client: client.generate("a red boat", response_format="url"))
