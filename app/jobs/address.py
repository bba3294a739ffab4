"""Where a webhook may go: one strict grammar of URLs, the tenant's allow list, and which addresses are the internet's.

Pure; called when a job is queued, when a webhook is sent, and by the command that tests one. What is not plainly a
public https URL is refused: there is one parser, and what it takes is sent on as it stands.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass

MAX_URL = 1024
_LABEL = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_HOST = rf"(?:{_LABEL}\.)+[a-z](?:[a-z0-9-]{{0,61}}[a-z0-9])?"
_REST = r"(/[A-Za-z0-9._~!$&'()*+,;=:@%/-]*)?(\?[A-Za-z0-9._~!$&'()*+,;=:@%/?-]*)?"
_URL = re.compile(rf"https://({_HOST})(?::([1-9][0-9]{{0,4}}))?{_REST}", re.ASCII)
_LOOPBACK = re.compile(rf"(?:http://)(127\.0\.0\.1|localhost):([1-9][0-9]{{0,4}}){_REST}", re.ASCII)
_DOTS = re.compile(r"/\.{1,2}(/|;|%3b|$)|%2e|%2f|%5c|%25", re.IGNORECASE)
# Ways to write an IPv4 address, or to be relayed to one, in IPv6: none of them is needed to reach a public host; and
# what `ipaddress` takes for global in some of its versions: protocol assignments, relays and documentation.
_NEVER = tuple(map(ipaddress.ip_network, ("::/96", "::ffff:0:0/96", "64:ff9b::/96", "64:ff9b:1::/48", "2001::/32",
                                          "2002::/16", "fec0::/10", "3fff::/20", "192.0.0.0/24",
                                          "192.88.99.0/24")))  # fmt: skip


@dataclass(frozen=True, slots=True)
class Target:
    """A URL that was taken. `path` begins with a slash and has no query."""

    url: str
    host: str
    port: int
    path: str


def parse(url: object, *, loopback: bool = False) -> Target:
    """The target of a webhook.

    Args:
        loopback: for tests: plain http to this machine is taken too.

    Raises:
        ValueError: a sentence that goes on from the name of the field.
    """
    if not isinstance(url, str) or len(url) > MAX_URL:
        raise ValueError(f"must be a URL of at most {MAX_URL} characters")
    found = _URL.fullmatch(url) or (_LOOPBACK.fullmatch(url) if loopback else None)
    if found is None:
        raise ValueError(
            "must be https:// with a public host name in lower case, without user, IP address, final dot or fragment"
        )
    path, port = found[3] or "/", int(found[2] or 443)
    if len(found[1]) > 253:
        raise ValueError("must have a host name of at most 253 characters")
    if _DOTS.search(path):
        raise ValueError("must have a path without dot segments and encoded dots, slashes or percent signs")
    if port > 65_535 or (port != 443 and port < 1024):
        raise ValueError("must have port 443, or one from 1024 on that the allow list names")
    return Target(url, found[1], port, path)


def allowed(target: Target, allow: Iterable[str]) -> bool:
    """Whether a target lies under one of the URLs of an allow list, segment by segment."""
    scheme, port = target.url.partition(":")[0], "" if target.port == 443 else f":{target.port}"
    plain = f"{scheme}://{target.host}{port}{target.path}"
    return any(plain == entry or plain.startswith(entry if entry.endswith("/") else f"{entry}/") for entry in allow)


def public(address: str, *, loopback: bool = False) -> bool:
    """Whether an IP address belongs to the public internet, and is written as what it is; for tests, also to this
    machine."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return False
    if "%" in address:  # an interface of this machine
        return False
    if loopback and ip.is_loopback:
        return True
    if any(ip in network for network in _NEVER):
        return False
    return ip.is_global and not (ip.is_multicast or ip.is_reserved or ip.is_private or ip.is_link_local)
