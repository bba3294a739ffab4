"""A webhook goes to public https hosts on the tenant's list, and to nothing else."""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from app.jobs.address import allowed, parse, public
from app.jobs.post import post
from tests.jobs.urls import ADDRESSES, ALLOW, ELSEWHERE, PUBLIC, TAKEN, URLS

_connects: list[Any] = []
_watching = False


def _audit(event: str, args: tuple[Any, ...]) -> None:
    if _watching and event == "socket.connect":
        _connects.append(args[1])


sys.addaudithook(_audit)


@pytest.fixture
def connects() -> Iterator[list[Any]]:
    """Every address that this process connects to."""
    global _watching  # noqa: PLW0603
    _connects.clear()
    _watching = True
    yield _connects
    _watching = False


@pytest.mark.parametrize("url", URLS, ids=ascii)
def test_what_is_not_plainly_a_public_https_url_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="must"):
        parse(url)


@pytest.mark.parametrize("url", ELSEWHERE)
def test_a_url_that_only_looks_like_one_of_the_list_is_not_allowed(url: str) -> None:
    try:
        target = parse(url)
    except ValueError:
        return
    assert not allowed(target, ALLOW)


def test_what_is_on_the_list_is_taken() -> None:
    for url in TAKEN:
        assert allowed(parse(url), ALLOW), url
    assert not allowed(parse(TAKEN[0]), ())


@pytest.mark.parametrize("address", ADDRESSES)
def test_an_address_that_is_not_the_internet_s_is_none(address: str) -> None:
    assert not public(address)


def test_public_addresses_are_public() -> None:
    assert all(map(public, PUBLIC))


def _found(*addresses: str) -> Any:
    async def lookup(host: str, port: int) -> list[Any]:
        kinds = [socket.AF_INET6 if ":" in one else socket.AF_INET for one in addresses]
        return [(kind, socket.SOCK_STREAM, 6, "", (one, port)) for kind, one in zip(kinds, addresses, strict=True)]

    return lookup


@pytest.mark.parametrize("address", ADDRESSES)
def test_nothing_is_connected_to_when_any_address_of_a_name_is_forbidden(connects: list[Any], address: str) -> None:
    target = parse("https://hooks.acme.example/in")
    for lookup in (_found(address), _found("8.8.8.8", address), _found(address, "8.8.8.8"), _found()):
        assert asyncio.run(post(target, {}, b"{}", lookup=lookup)) == "forbidden_address"
    assert connects == []


def test_a_name_is_resolved_once_so_that_its_second_answer_is_never_used(connects: list[Any]) -> None:
    """DNS rebinding: the first answer is what is connected to, and nobody asks again."""
    asked = []

    async def lookup(host: str, port: int) -> list[Any]:
        asked.append(host)
        return await _found("127.0.0.1" if len(asked) == 1 else "127.0.0.2")(host, port)

    target = parse("https://hooks.acme.example:65535/")
    assert asyncio.run(post(target, {}, b"{}", loopback=True, lookup=lookup)) == "no_answer"
    assert asked == ["hooks.acme.example"]
    assert connects == [("127.0.0.1", 65535)]
