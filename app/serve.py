"""One process from start to exit: the sandbox's parts where asked for, two listeners, signals, and an orderly end.

Called by the `serve` command. After SIGTERM readiness goes off, requests are still taken for the drain delay, then
the listeners close and jobs in flight are finished and settled before the process exits with 0.
"""

from __future__ import annotations

import asyncio
import gc
import resource
import secrets
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import structlog
import uvicorn
from pydantic import SecretStr

from app.domain.tenant import KeyPolicy, Limits
from app.door import door, sweep
from app.installation import DEMO, pepper_of
from app.main import Application, create_app
from app.quota import epoch
from app.sandbox import SandboxConfig, load_scenario, serve_sandbox, switched
from app.settings import Settings, address
from app.store.blobs import Spool
from app.store.embedded import Embedded
from app.store.redis import Store
from app.telemetry.access import App
from app.tenants import Keyring

ADDRESS = "sandbox-url"  # in the data directory: where the stand-in of the gateway that runs there listens


class _Listener(uvicorn.Server):
    """A uvicorn server that leaves signals to `run`."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture none."""
        yield


@dataclass(slots=True)
class SandboxParts:
    """What `--sandbox` adds: an embedded Valkey where no REDIS_URL is given, and the stand-in for Prodia."""

    embedded: Embedded | None
    task: asyncio.Task[None]
    stop: asyncio.Event
    url: str
    address: Path

    async def close(self) -> None:
        """Stop both."""
        self.stop.set()
        await self.task
        self.address.unlink(missing_ok=True)
        if self.embedded is not None:
            await asyncio.to_thread(self.embedded.stop)


async def run(settings: Settings, log: structlog.typing.FilteringBoundLogger, say: Callable[[str], None]) -> None:
    """Serve until SIGTERM or SIGINT. Raises whatever keeps the gateway from starting."""
    await asyncio.to_thread(Spool(settings.gateway_data_dir).open)
    parts = await _sandbox(settings) if settings.sandbox else None
    try:
        app = create_app(settings, log=log, built_in_tenants={"demo": DEMO} if settings.sandbox else None)
        if settings.sandbox:
            await _new_ledger(app.stores[0])
        await app.start()
        _settle_memory()
        key = await _demo_key(app) if settings.sandbox else None
        try:
            await _listen(
                settings, app, log, lambda: say(_welcome(settings, key, parts.url)) if parts and key else None
            )
        finally:
            await app.stop(timeout=settings.gateway_drain_timeout)
    finally:
        if parts is not None:
            await parts.close()


def _settle_memory() -> None:
    """What was made at start stays: the collector need not walk it for ever, nor after every 700 new objects, which are
    few requests here."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(2_000, 10, 10)


async def _listen(
    settings: Settings, app: Application, log: structlog.typing.FilteringBoundLogger, ready: Callable[[], None]
) -> None:
    bound = [_bound(settings.gateway_listen), _bound(settings.gateway_ops_listen)]
    files, idle = _open_files(), settings.gateway_keep_alive
    listeners = [_listener(app.public, files // 2, idle), _listener(app.ops, files // 8, idle)]
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    sweeping = asyncio.create_task(sweep(listeners))
    serving = [asyncio.create_task(listener.serve([taken])) for listener, taken in zip(listeners, bound, strict=True)]
    while not all(listener.started for listener in listeners):  # noqa: ASYNC110  # uvicorn has no event for it
        await asyncio.sleep(0.01)
    log.info(
        "started", listen=settings.gateway_listen, ops_listen=settings.gateway_ops_listen, sandbox=settings.sandbox
    )
    ready()
    await stopping.wait()
    app.health.draining = True
    log.info("draining", jobs=len(app.gateway.at_work))
    if not settings.sandbox:
        await asyncio.sleep(settings.gateway_drain_delay)
    for listener in listeners:
        listener.should_exit = True
    await asyncio.wait(serving, timeout=settings.gateway_drain_timeout)
    sweeping.cancel()
    log.info("stopped", jobs=len(app.gateway.at_work))


def _bound(listen: str) -> socket.socket:
    """A listener's address. Raises OSError; uvicorn itself ends the process without a word where it is taken."""
    host, port = address(listen)
    # asyncio sets TCP_NODELAY only on sockets of this very protocol number.
    taken = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind((host, port))
    except OSError as error:
        taken.close()
        raise OSError(f"cannot listen on {listen}: {error.strerror}") from None
    return taken


def _open_files() -> int:
    """How many files this process may open, raised as far as it may raise it itself. A connection is a file, and so are
    those to Redis, to the upstream, and to the disk: half of them are left to those."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = min(hard, 65_536) if hard != resource.RLIM_INFINITY else 65_536
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        soft = wanted
    return min(soft, 65_536) if soft != resource.RLIM_INFINITY else 65_536


def _listener(app: App, most: int, idle: float) -> _Listener:
    return _Listener(
        uvicorn.Config(
            app,
            loop="uvloop",
            http=door(most=most, idle=idle),
            ws="none",
            lifespan="off",
            access_log=False,
            log_config=None,
            server_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=None,
            backlog=4096,
        )
    )


async def _sandbox(settings: Settings) -> SandboxParts:
    """Start what the sandbox needs and point the settings at it."""
    data_dir = settings.gateway_data_dir
    token = secrets.token_hex(16)
    config = _stand_in(settings, token)
    embedded = None
    if settings.redis_url is None:
        embedded = Embedded(data_dir)
        settings.redis_url = SecretStr(await asyncio.to_thread(embedded.start))
    if settings.gateway_key_pepper is None:
        settings.gateway_key_pepper = SecretStr(await asyncio.to_thread(pepper_of, data_dir))
    settings.gateway_accept_volatile_ledger = True
    if "gateway_listen" not in settings.model_fields_set:
        settings.gateway_listen = (
            "127.0.0.1:8080"  # the demo key is on the screen: other machines are let in only when asked
        )
    settings.prodia_token = SecretStr(token)
    url: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    stop = asyncio.Event()
    host, port = address(settings.gateway_sandbox_listen)
    task = asyncio.create_task(serve_sandbox(config, host=host, port=port, ready=url.set_result, stop=stop))
    await asyncio.wait((task, url), return_when=asyncio.FIRST_COMPLETED)
    if not url.done():
        if embedded is not None:
            await asyncio.to_thread(embedded.stop)
        error = task.exception()
        if isinstance(error, OSError) and error.filename is None:
            raise OSError(f"cannot listen on {settings.gateway_sandbox_listen}: {error.strerror}") from None
        raise error if isinstance(error, OSError) else OSError(str(error))
    settings.prodia_base_url = url.result() + "/v2"
    (data_dir / ADDRESS).write_text(url.result() + "\n")
    return SandboxParts(embedded, task, stop, url.result(), data_dir / ADDRESS)


def _stand_in(settings: Settings, token: str) -> SandboxConfig:
    """How the stand-in behaves: its file, and over that the settings. Raises FaultError, OSError."""
    data_dir, file = settings.gateway_data_dir, settings.gateway_sandbox_faults
    config = SandboxConfig(token=token, bill_path=data_dir / "bill.jsonl")
    if file is not None:
        config = load_scenario(config, file)
    if file is None or "gateway_sandbox_time_scale" in settings.model_fields_set:
        config = switched(config, {"time_scale": settings.gateway_sandbox_time_scale})
    return config


async def _new_ledger(store: Store) -> None:
    with suppress(FileExistsError):
        await epoch.initialise(store)


async def _demo_key(app: Application) -> str:
    """A fresh token for the demo tenant's own key; tokens printed by earlier starts work for another day."""
    keyring: Keyring = app.gateway.keyring
    known = next((key for key in await keyring.list("demo") if key.name == "demo" and not key.revoked), None)
    if known is not None:
        return await keyring.rotate("demo", known.id, overlap=86_400)
    return (await keyring.create("demo", "demo", policy=KeyPolicy(Limits(), None, None)))[1]


def _welcome(settings: Settings, key: str, upstream: str) -> str:
    _, port = address(settings.gateway_listen)
    url = f"http://127.0.0.1:{port}"
    auth, json = f"-H 'Authorization: Bearer {key}'", "-H 'Content-Type: application/json'"
    return f"""
Kontext Gateway is ready at {url}, with its sandbox in the place of Prodia: nothing is charged anywhere.
The key of the tenant `demo`, shown once: {key}

  curl -s {url}/v1/generate {auth} {json} -d '{{"prompt": "a lighthouse at dawn", "seed": 7}}' -o first.jpg
  curl -s {url}/v1/edit {auth} -F image=@first.jpg -F prompt='make the sky stormy' -o stormy.jpg
  curl -s {url}/v1/me {auth}

The sandbox's bill is at {upstream}/sandbox/bill, and faults are set at {upstream}/sandbox/faults. Its address is
also in the file {settings.gateway_data_dir / ADDRESS}.
"""
