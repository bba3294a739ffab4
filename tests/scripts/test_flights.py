"""Who leads a flight: its leader may lead it anew when it has let go of it, and nobody else before it is dead."""

from __future__ import annotations

from importlib import resources
from typing import Any

import pytest
import redis

FLIGHT = "kg:{t:acme}:flight:d"
WHERE = {"join": "app.cache", "mark": "app.cache", "beat": "app.store"}
TEXT = {name: resources.files(where).joinpath(f"{name}.lua").read_text("utf-8") for name, where in WHERE.items()}


@pytest.fixture
def client(server: redis.Redis) -> redis.Redis:
    server.flushall()
    return server


def join(client: redis.Redis, who: str, dead: str = "") -> str:
    found: Any = client.eval(TEXT["join"], 1, FLIGHT, who, 60_000, dead, 0, 60_000, "d")
    return str(found[0].decode())


def mark(client: redis.Redis, who: str, fence: str, state: str) -> int:
    found: Any = client.eval(TEXT["mark"], 1, FLIGHT, who, fence, state, "", 60_000)
    return int(found)


@pytest.mark.parametrize("state", ["lead", "sent"])
def test_a_process_may_lead_anew_what_it_leads_and_others_follow(client: redis.Redis, state: str) -> None:
    """It asks only when nobody in it works on the flight any more."""
    assert join(client, "a") == "lead"
    mark(client, "a", "1", state)
    assert join(client, "b") == "follow"
    assert join(client, "a") == "lead"
    assert client.hget(FLIGHT, "fence") == b"2"


def test_what_may_have_been_sent_is_not_taken_over_from_the_dead(client: redis.Redis) -> None:
    """Only a leader that died before its dispatch is replaced."""
    join(client, "a")
    mark(client, "a", "1", "sent")
    assert join(client, "b", dead="a") == "follow"
    mark(client, "a", "1", "lead")
    assert join(client, "b", dead="a") == "lead"


def test_a_mark_without_its_fence_is_this_leaders_or_nothing(client: redis.Redis) -> None:
    """Said later by the heartbeat for a join whose reply was lost; another leader is left alone."""
    join(client, "a")
    assert mark(client, "b", "", "open") == 0
    assert mark(client, "a", "7", "open") == 0
    assert mark(client, "a", "", "open") == 1
    assert join(client, "b") == "lead"


def test_who_lives_and_what_a_leader_says_is_known_while_memory_is_full(client: redis.Redis) -> None:
    """Else every process would be dead after ten seconds, and its heartbeat would write no end that is still owed."""
    join(client, "a")
    client.config_set("maxmemory", 1)
    try:
        assert client.eval(TEXT["beat"], 1, "kg:{up}:leases", "a", 10_000) == 1
        assert mark(client, "a", "1", "open") == 1
    finally:
        client.config_set("maxmemory", 0)
