"""The Host says which gateway is meant, and nothing else: no spelling of it, of a path or of a forwarding header opens
anything."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from tests.door.wire import Ending, Wire, gateway
from tests.e2e.exchange import make_keys
from tests.fleet import Fleet, Replica

Target = tuple[Fleet, Replica, str]
SERVED = "Gateway.Example, other.example ,127.0.0.1"


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    with gateway(tmp_path_factory.mktemp("host"), GATEWAY_HOSTS=SERVED) as (running, replica):
        yield running, replica, make_keys(running, ["acme"])["acme"]


def asked(url: str, path: str, *lines: bytes, key: str | None = None, version: bytes = b"1.1") -> Ending:
    carrier = [] if key is None else [f"Authorization: Bearer {key}".encode()]
    data = b"\r\n".join([b"GET %b HTTP/%b" % (path.encode("latin-1"), version), *lines, *carrier, b"Connection: close"])

    async def run() -> Ending:
        wire = await Wire.open(url)
        await wire.send(data + b"\r\n\r\n")
        return await wire.rest(10)

    return asyncio.run(run())


@pytest.mark.parametrize("host", ["gateway.example", "GATEWAY.EXAMPLE:8443", "other.example.", "127.0.0.1:9"])
def test_a_host_of_the_list_is_served_in_any_spelling(target: Target, host: str) -> None:
    assert asked(target[1].url, "/v1/me", f"Host: {host}".encode(), key=target[2]).statuses == [200]


@pytest.mark.parametrize(
    "host",
    ["evil.example", "gateway.example.evil.example", "xgateway.example", "example", "localhost", "[::1]", "[::1]:80",
     "gateway.example-x:80", "127.0.0.2"],
)  # fmt: skip
def test_another_host_is_misdirected_with_and_without_a_key(target: Target, host: str) -> None:
    for key in (None, target[2]):
        for path in ("/v1/me", "/nothing", "/v1/images/x?s=1"):
            end = asked(target[1].url, path, f"Host: {host}".encode(), key=key)
            assert (end.statuses, end.code) == ([421], "unknown_host")


@pytest.mark.parametrize(
    "lines",
    [
        (), (b"Host: gateway.example", b"Host: gateway.example"), (b"Host: gateway.example", b"Host: evil.example"),
        (b"Host: evil.example", b"Host: gateway.example"), (b"Host:",), (b"Host: gateway.example, evil.example",),
        (b"Host: gateway.example@evil.example",), (b"Host: gateway.example/x",), (b"Host: gateway.example:",),
        (b"Host: gateway.example:x",), (b"Host: gateway.example evil.example",), (b"Host: \xff\xfe",),
        (b"Host: " + b"x" * 300,), (b"Host: http://gateway.example",), (b"Host: gateway.example:123456",),
        (b"Host: gateway.example#",), (b"Host: gateway.example?",), (b"Host: [gateway.example]",),
    ],
    ids=ascii,
)  # fmt: skip
def test_a_host_that_is_missing_doubled_or_none_is_a_bad_request(target: Target, lines: tuple[bytes, ...]) -> None:
    for version in (b"1.1", b"1.0"):
        end = asked(target[1].url, "/v1/me", *lines, key=target[2], version=version)
        assert (end.statuses, end.code) == ([400], "invalid_request")


@pytest.mark.parametrize(
    "path",
    [
        "//v1/me", "/v1//me", "/v1/./me", "/x/../v1/me", "/v1%2fme", "/v1/me/", "/V1/me", "/v1/me;x", "/v1/me%00",
        "/v1\\me", "/healthz", "/metrics", "http://gateway.example/metrics", "http://127.0.0.1:8081/metrics",
        "/v1/me/../../metrics", "/.//metrics", "*",
    ],
)  # fmt: skip
def test_no_spelling_of_path_or_forwarding_opens_what_is_closed(target: Target, path: str) -> None:
    host = b"Host: gateway.example"
    for name in ("X-Original-URL", "X-Rewrite-URL", "X-Forwarded-Host", "X-Forwarded-For", "X-Forwarded-Prefix",
                 "Forwarded", "X-HTTP-Method-Override", "X-Host", "X-Real-IP"):  # fmt: skip
        for value in ("/metrics", "/healthz", "127.0.0.1", "host=127.0.0.1;for=127.0.0.1"):
            statuses = asked(target[1].url, path, host, f"{name}: {value}".encode()).statuses
            assert statuses[0] in (400, 401, 404), statuses
            assert len(statuses) == 1
            with_key = asked(target[1].url, path, host, f"{name}: {value}".encode(), key=target[2]).statuses
            assert with_key[0] in ((200,) if "%2f" in path else (400, 404)), with_key  # the decoded path is what counts


@pytest.mark.parametrize("path", ["/v1/me", "http://evil.example/v1/me", "http://127.0.0.1:8081/v1/me"])
def test_what_a_forwarding_header_or_an_absolute_target_says_changes_nothing(target: Target, path: str) -> None:
    host = b"Host: gateway.example"
    assert asked(target[1].url, path, host, b"X-Forwarded-Host: evil.example").statuses == [401]
    assert asked(target[1].url, path, host, b"X-Forwarded-Host: evil.example", key=target[2]).statuses == [200]
    assert asked(target[1].url, path, b"Host: evil.example", key=target[2]).statuses == [421]


def test_the_ops_listener_is_called_by_address_and_needs_one_host_too(target: Target) -> None:
    assert asked(target[1].ops, "/healthz", b"Host: 10.1.2.3:8081").statuses == [200]
    assert asked(target[1].ops, "/healthz").statuses == [400]


def test_a_load_balancer_may_ask_for_readiness_without_a_host(target: Target) -> None:
    """HTTP/1.0 has no Host, and is what many checks speak; where names are listed, it has to name one."""
    assert asked(target[1].ops, "/readyz", version=b"1.0").statuses == [200]
    assert asked(target[1].ops, "/readyz", version=b"1.1").statuses == [400]
    assert asked(target[1].url, "/v1/me", key=target[2], version=b"1.0").statuses == [400]
