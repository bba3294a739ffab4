"""One attempt at `POST /v2/job`: sends a `Call`, reads the answer, and says `Completed` or `Fault`. No retries here.

The pipeline makes one `Prodia` per process and calls `attempt`; `retry` decides about further attempts. Every failure
of the transport becomes a `Fault` here and nowhere else, and the one question that money hangs on, whether the whole
request left our hands, is answered by our own body stream, not by the kind of exception.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from dataclasses import dataclass, field

import aiohttp
import httpx2
from httpx_aiohttp.httpx2 import AiohttpTransport
from httpx_aiohttp.httpx2.transport import AiohttpResponseStream

from app.prodia.faults import DEFAULT, Fault, Moderation, Outcome
from app.prodia.wire import Call, Completed, Encoded, decode, encode, id_in

KEEPALIVE_SECONDS = 4.0  # shorter than servers keep idle connections: an idle reset would look like a lost job
STALLED_SECONDS = 30  # a peer that takes no bytes for so long is cut off by the kernel, even after we closed
MAX_REFUSAL_BYTES = 262_144
READ_BYTES = 256 * 1024  # of an answer at once; with the 16 KB of the library a picture wakes its job a dozen times


class Prodia:
    """The upstream, as far as one process sees it: an address, our token and a pool of connections.

    Args:
        base_url: where `/job` lives, such as `https://inference.prodia.com/v2`. Redirects away from it are refused.
        token: sent as `Authorization` and nowhere else.
        transport: what carries requests; the default is a pool of aiohttp connections, opened at the first attempt.
        patterns: which upstream texts are moderation verdicts.
        max_response_bytes: an answer that is longer is given up.
        connect_timeout: seconds for TCP and TLS together.
        max_connections: attempts beyond it wait for a connection, within their own deadline.

    Raises:
        ValueError: an address or token that cannot be used; its text does not repeat them.
    """

    def __init__(
        self,
        *,
        base_url: str,
        token: str,
        transport: httpx2.AsyncBaseTransport | None = None,
        patterns: Moderation = DEFAULT,
        max_response_bytes: int = 24 * 1024 * 1024,
        connect_timeout: float = 5.0,
        max_connections: int,
    ) -> None:
        url = httpx2.URL(base_url)
        if url.scheme not in ("http", "https") or not url.host or url.userinfo or url.query or url.fragment:
            raise ValueError(
                "the upstream's address must be http(s)://host/path, without credentials, query or fragment"
            )
        if not (token.isascii() and token.isprintable()):
            raise ValueError("the upstream token holds characters that a header cannot carry")
        if max_connections < 1:
            raise ValueError("max_connections must be at least 1")
        self._url = url.copy_with(path=url.path.rstrip("/") + "/job", query=b"price=true")
        self._token = token
        self._transport = transport
        self._patterns = patterns
        self._max_response_bytes = max_response_bytes
        self._connect_timeout = connect_timeout
        self._max_connections = max_connections

    async def attempt(self, call: Call, *, timeout: float, on_sent: Callable[[], None] | None = None) -> Completed:
        """Sends the job once and waits for its picture.

        Args:
            timeout: seconds for everything: waiting for a connection, upload, work, download.
            on_sent: called once, just before the last of the request is handed to the socket. Before it, a failure or
                a cancellation is proven unsent; after it, the job may be paid for.

        Raises:
            Fault: no picture.
        """
        encoded = encode(call)
        upload = _Upload(encoded, on_sent)
        answer = _Answer()
        cause = None
        deadline = asyncio.timeout(timeout)
        try:
            async with deadline:
                await self._exchange(encoded, upload, answer)
        except Exception as failure:
            cause = None if deadline.expired() else type(failure.__cause__ or failure).__name__
        # Raised outside the handler: a transport's exception can hold the request's headers and must not be chained.
        late = deadline.expired()
        if answer.status is None or (answer.status == 200 and (answer.early or not answer.whole)):
            outcome: Outcome = "lost" if answer.status is None or late else "malformed"
            upstream_id = id_in(answer.content_type, b"".join(answer.chunks), secrets=(self._token,))
            outcome = outcome if upload.sent else "unsent"
            raise Fault(outcome, status=answer.status, timed_out=late, cause=cause, upstream_id=upstream_id)
        try:
            return decode(
                answer.status,
                answer.content_type,
                answer.body(),
                output=call.output,
                retry_after=answer.retry_after,
                patterns=self._patterns,
                secrets=(self._token,),
            )
        except Fault as fault:
            if not upload.sent and (fault.outcome == "error" or fault.status == 408):
                raise Fault("unsent", status=fault.status) from None
            raise

    async def aclose(self) -> None:
        """Closes all connections; attempts under way end as faults."""
        if self._transport is not None:
            await self._transport.aclose()

    async def _exchange(self, encoded: Encoded, upload: _Upload, answer: _Answer) -> None:
        request = httpx2.Request(
            "POST",
            self._url,
            headers={
                "Host": self._url.netloc.decode("ascii"),
                "Authorization": f"Bearer {self._token}",
                "Accept": encoded.accept,
                "Accept-Encoding": "identity",
                "User-Agent": "kontext-gateway",
                "Content-Type": encoded.content_type,
                "Content-Length": str(encoded.length),
            },
            stream=upload,
            extensions={"timeout": {"connect": self._connect_timeout, "read": None, "write": None, "pool": None}},
        )
        # The transport itself: no redirects, cookies, credentials or proxies of a client can come into play.
        response = await self._carrier().handle_async_request(request)
        try:
            answer.status = response.status_code
            answer.early = not upload.sent
            answer.content_type = response.headers.get("content-type", "")
            answer.retry_after = response.headers.get_list("retry-after")
            if response.headers.get("content-encoding", "identity").strip().lower() not in ("", "identity"):
                return
            room = self._max_response_bytes if response.status_code == 200 else MAX_REFUSAL_BYTES
            async for chunk in response.stream:  # type: ignore[union-attr]
                room -= len(chunk)
                if room < 0:
                    answer.chunks.clear()
                    return
                answer.chunks.append(chunk)
            answer.whole = True
        finally:
            await response.aclose()

    def _carrier(self) -> httpx2.AsyncBaseTransport:
        if self._transport is None:
            self._transport = self._pool()
        return self._transport

    def _pool(self) -> AiohttpTransport:
        """httpx2's own pool is slow when it is full; aiohttp's is not. It does not re-send a POST by itself."""
        AiohttpResponseStream.CHUNK_SIZE = READ_BYTES
        tls = httpx2.create_ssl_context()

        def session() -> aiohttp.ClientSession:
            return aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(
                    limit=self._max_connections,
                    keepalive_timeout=KEEPALIVE_SECONDS,
                    ssl=tls,
                    socket_factory=_socket,
                ),
                cookie_jar=aiohttp.DummyCookieJar(),
                timeout=aiohttp.ClientTimeout(total=None),
                raise_for_status=False,
                auto_decompress=False,
                read_bufsize=READ_BYTES,
                trust_env=False,
            )

        return AiohttpTransport(verify=tls, client=session)


def _socket(address: aiohttp.AddrInfoType) -> socket.socket:
    """A socket that does not long outlive its attempt: a closed one waits for its unsent bytes, if need be for ever."""
    opened = socket.socket(*address[:3])
    if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux
        opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, STALLED_SECONDS * 1000)
    return opened


@dataclass(slots=True)
class _Answer:
    """What has been read so far; kept when reading fails, because a refusal counts as soon as its status is known."""

    status: int | None = None
    early: bool = False  # came before the request had left: a success can only be another request's
    content_type: str = ""
    retry_after: list[str] = field(default_factory=list)
    chunks: list[bytes] = field(default_factory=list)
    whole: bool = False

    def body(self) -> bytes:
        """All of it, once: what an error's traceback refers to should not hold it twice."""
        chunks, self.chunks = self.chunks, []
        return b"".join(chunks)


class _Upload(httpx2.AsyncByteStream):
    """The request body, which knows whether its last chunk was handed over. It refuses to differ from its length."""

    def __init__(self, encoded: Encoded, on_sent: Callable[[], None] | None) -> None:
        self.sent = False
        self._on_sent = on_sent
        self._chunks = filter(None, encoded.chunks())
        self._left = encoded.length
        self._next: bytes | None = b""

    def __aiter__(self) -> _Upload:
        return self

    async def __anext__(self) -> bytes:
        chunk = self._next or next(self._chunks, None)
        if chunk is None:
            raise StopAsyncIteration
        self._next = next(self._chunks, None)
        self._left -= len(chunk)
        if self._left < 0 or (self._left == 0) != (self._next is None):
            raise ValueError("the request body does not have its declared length")
        if self._next is None:
            # Lets an answer be seen that already waits on a reused connection, before anything is risked for it.
            await asyncio.sleep(0)
            self.sent = True
            if self._on_sent is not None:
                self._on_sent()
        return chunk
