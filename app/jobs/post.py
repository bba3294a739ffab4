"""One attempt to deliver a webhook: resolve, check every address, connect to what was checked, within 5 seconds.

Called by the courier and by the command that tests one. Redirects are not followed, nothing of an answer but its status
is used, and no proxy of the environment is asked. The name is resolved once, so that it cannot change in between.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Mapping

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from app.jobs.address import Target, public
from app.jobs.lookups import Lookup

SECONDS = 5.0
READ_BYTES = 8 * 1024


class Forbidden(OSError):
    """The name leads somewhere that a webhook may not go."""


class _Checked(AbstractResolver):
    """Resolves a name and answers only if every one of its addresses is public."""

    def __init__(self, lookup: Lookup, loopback: bool) -> None:
        self._lookup, self._loopback = lookup, loopback

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """What to connect to. Raises Forbidden, OSError."""
        found = await self._lookup(host, port)
        addresses = list(dict.fromkeys((kind, at[0]) for kind, _, _, _, at in found))
        if not addresses or not all(public(str(at), loopback=self._loopback) for _, at in addresses):
            raise Forbidden(host)
        return [
            ResolveResult(hostname=host, host=str(at), port=port, family=kind, proto=0, flags=socket.AI_NUMERICHOST)
            for kind, at in addresses
        ]

    async def close(self) -> None:
        """Nothing to close."""


async def post(
    target: Target,
    headers: Mapping[str, str],
    body: bytes,
    *,
    lookup: Lookup,
    loopback: bool = False,
    tls: ssl.SSLContext | bool = True,
) -> str:
    """Send it. The status it was answered with, or why there is none: forbidden_address, timeout or no_answer."""
    connector = aiohttp.TCPConnector(
        resolver=_Checked(lookup, loopback), use_dns_cache=False, force_close=True, limit=1, ssl=tls
    )
    limit = aiohttp.ClientTimeout(total=SECONDS)
    try:
        async with (
            aiohttp.ClientSession(
                connector=connector,
                timeout=limit,
                trust_env=False,
                auto_decompress=False,
                read_bufsize=READ_BYTES,
                cookie_jar=aiohttp.DummyCookieJar(),
            ) as session,
            session.post(URL(target.url, encoded=True), data=body, headers=headers, allow_redirects=False) as answer,
        ):
            return str(answer.status)
    except Forbidden:
        return "forbidden_address"
    except TimeoutError:
        return "timeout"
    except (aiohttp.ClientError, OSError, ValueError) as error:
        forbidden = isinstance(getattr(error, "os_error", None), Forbidden) or isinstance(error.__cause__, Forbidden)
        return "forbidden_address" if forbidden else "no_answer"
