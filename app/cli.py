"""The commands: `kontext-gateway serve | sandbox | check | generate | edit | keys | ledger | usage | health | ...`.

Thin: each reads settings, calls one part of the app, and says in plain words what happened. A mistake is a line with
its place and exit code 1, never a traceback. The servers are imported by the commands that run them, since the web
framework takes longer to load than any other command to run.
"""

from __future__ import annotations

import json
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from pydantic import SecretStr

from app.commands import content, ledger, pictures, webhooks
from app.commands.access import checked, fail, loop, option, read_settings, tenants_of, why, with_store
from app.domain.catalog import CatalogError
from app.domain.tenant import KeyPolicy, Limits, parse_duration, parse_limits
from app.domain.tenants_file import TenantsFileError
from app.domain.usage import parse_query
from app.domain.windows import local_date
from app.errors import InvalidRequest
from app.installation import load_catalog, offered, pepper_of
from app.quota.epoch import NoLedger
from app.quota.usage import read as read_usage
from app.settings import LedgerSettings, Settings, address
from app.telemetry import logs
from app.tenants import Keyring

_HELP = "A gateway in front of Prodia for FLUX.1 Kontext: safety ceilings, budgets, a result cache and cost metrics."
cli = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=_HELP)
keys_cli = typer.Typer(no_args_is_help=True, help="Create, list, rotate and revoke API keys.")
cli.add_typer(keys_cli, name="keys")
cli.add_typer(ledger.cli, name="ledger")
cli.add_typer(webhooks.cli, name="webhooks")
cli.add_typer(content.cli, name="content")
cli.command()(pictures.generate)
cli.command()(pictures.edit)
T = TypeVar("T")
Tenant = Annotated[str, typer.Option("--tenant", help="Tenant id.")]


def main() -> None:
    """Entry point of the `kontext-gateway` command."""
    cli()


@cli.command()
def serve(
    sandbox: Annotated[
        bool, typer.Option("--sandbox", help="With a stand-in for Prodia and an embedded Valkey.")
    ] = False,
) -> None:
    """Run the gateway."""
    from app.health import VolatileLedger
    from app.sandbox import FaultError
    from app.serve import run

    settings = read_settings(lambda: Settings(sandbox=sandbox))
    log = logs.configure(level=settings.gateway_log_level)
    if not sandbox and settings.cache_redis_url is None:
        log.warning("cache_shares_ledger", detail="CACHE_REDIS_URL is not set: results are kept in the ledger's Redis")
    try:
        loop(run(settings, log, lambda text: print(text, file=sys.stderr, flush=True)))
    except NoLedger:
        fail("REDIS_URL holds no ledger. For a new one run: kontext-gateway ledger init")
    except (VolatileLedger, TenantsFileError, CatalogError, FaultError, OSError, RuntimeError) as error:
        fail(why(error))


@cli.command()
def sandbox(
    listen: Annotated[str, typer.Option(help="host:port")] = "127.0.0.1:8089",
    token: Annotated[str, typer.Option(help="The bearer token it accepts.")] = "sandbox-token",  # noqa: S107
    bill: Annotated[Path | None, typer.Option(help="File of the bill, one JSON line per billed job.")] = None,
    faults: Annotated[Path | None, typer.Option(help="Faults and switches, TOML or JSON.")] = None,
    time_scale: Annotated[float | None, typer.Option(help="A job's typical time times this.")] = None,
    bill_failures: Annotated[bool | None, typer.Option(help="Bill failed and moderated jobs too.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the faults' draws.")] = None,
    picture: Annotated[str | None, typer.Option(help="full, or small for load tests.")] = None,
    picture_bytes: Annotated[int | None, typer.Option(help="Pad pictures to this size.")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="Any switch, such as unknown_type_status=429; may be repeated.")
    ] = None,
) -> None:
    """Run the stand-in for Prodia alone, as a server of its own."""
    from app.sandbox import FaultError, SandboxConfig, load_scenario, serve_sandbox, switched

    try:
        host, port = address(listen)
        config = SandboxConfig(token=token, bill_path=bill)
        if faults is not None:
            config = load_scenario(config, faults)
        given = {"time_scale": time_scale, "bill_failures": bill_failures, "seed": seed, "picture": picture,
                 "picture_bytes": picture_bytes}  # fmt: skip
        options = {name: value for name, value in given.items() if value is not None}
        config = switched(config, options | dict(_switch(text) for text in settings or ()))
        loop(
            serve_sandbox(config, host=host, port=port, ready=lambda url: print(f"sandbox ready at {url}", flush=True))
        )
    except (FaultError, ValueError, OSError) as error:
        fail(str(error))


@cli.command()
def check(sandbox: Annotated[bool, typer.Option("--sandbox", help="Check for serve --sandbox.")] = False) -> None:
    """Check settings, catalogue and tenants file; every mistake with its place, exit code 1."""
    settings = read_settings(lambda: Settings(sandbox=sandbox))
    try:
        catalog = load_catalog(settings)
        found = tenants_of(settings)
    except (TenantsFileError, CatalogError, OSError) as error:
        fail(why(error))
    print(f"ok: {len(catalog.enabled)} job types, {len(found)} tenants")


@cli.command()
def health() -> None:
    """Container probe: exit code 0 when the gateway on this machine is ready."""
    host, port = address(read_settings(LedgerSettings).gateway_ops_listen)
    target = "127.0.0.1" if host in ("0.0.0.0", "::") else host  # noqa: S104
    try:
        with urllib.request.urlopen(f"http://{target}:{port}/readyz", timeout=2) as answer:
            print(json.loads(answer.read())["status"])
    except urllib.error.HTTPError as error:
        fail(f"not ready: {json.loads(error.read()).get('reason')}")
    except (OSError, ValueError):
        fail("no answer")


@keys_cli.command("create")
def keys_create(
    tenant: Tenant,
    name: Annotated[str, typer.Option("--name", help="What the key is for.")],
    expires: Annotated[str | None, typer.Option(help="Lifetime, such as 90d.")] = None,
    budget: Annotated[
        list[str] | None, typer.Option(help="Dollars per window, such as 5.00/day; may be repeated.")
    ] = None,
    images: Annotated[
        list[str] | None, typer.Option(help="Images per window, such as 20/day; may be repeated.")
    ] = None,
    rate: Annotated[str | None, typer.Option(help="Request rate, such as 10/1m.")] = None,
    concurrency: Annotated[int | None, typer.Option(help="Jobs at once.")] = None,
    variants: Annotated[str | None, typer.Option(help="Comma-separated variants it may use.")] = None,
    operations: Annotated[str | None, typer.Option(help="Comma-separated: generate, edit.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Create a key and print it once; only a keyed hash of it is stored."""
    settings = read_settings(LedgerSettings)
    if tenant not in checked(lambda: tenants_of(settings)):
        fail(f"--tenant: there is no tenant {tenant[:64]!r} in the tenants file")
    if not (1 <= len(name) <= 64 and name.isprintable()):
        fail("--name: must have 1 to 64 printable characters")
    known = {variant for names in offered(load_catalog(settings)).values() for variant in names}
    wanted, does = _words("--variants", variants, known), _words("--operations", operations, {"generate", "edit"})
    lifetime = option("--expires", parse_duration, expires) if expires is not None else 0
    parts = (
        option("--rate", lambda text: parse_limits(requests=text), rate),
        option("--images", lambda texts: parse_limits(images=texts), images or ()),
        option("--concurrency", lambda count: parse_limits(concurrency=count), concurrency),
        option("--budget", lambda texts: parse_limits(budgets=texts), budget or ()),
    )
    limits = Limits(parts[0].requests, parts[1].images, parts[2].concurrency, parts[3].budgets)
    policy = KeyPolicy(limits, wanted, does)
    until = int(time.time()) + lifetime if lifetime else 0
    key_id, token = _with_keyring(settings, lambda ring: ring.create(tenant, name, expires=until, policy=policy))
    if as_json:
        print(json.dumps({"tenant": tenant, "key_id": key_id, "name": name, "expires": until or None, "token": token}))
    else:
        print(f"{key_id} for {tenant}; this is the only time it is shown:\n{token}")


@keys_cli.command("list")
def keys_list(
    tenant: Annotated[str | None, typer.Option("--tenant", help="Only this tenant's.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List keys, without their secrets."""
    settings = read_settings(LedgerSettings)
    names = [tenant] if tenant else sorted(checked(lambda: tenants_of(settings)))

    async def everything(ring: Keyring) -> list[Any]:
        return [record for name in names for record in await ring.list(name)]

    for record in _with_keyring(settings, everything):
        state = (
            "revoked" if record.revoked else "expired" if record.expires and record.expires <= time.time() else "active"
        )
        row = {"tenant": record.tenant, "key_id": record.id, "name": record.name, "state": state, "shown": record.shown,
               "created": record.created, "expires": record.expires or None,
               "policy": json.loads(record.policy.to_json())}  # fmt: skip
        until = f"until {datetime.fromtimestamp(record.expires, UTC):%Y-%m-%dT%H:%M:%SZ}" if record.expires else "-"
        narrower = "its own limits" if record.policy != KeyPolicy() else "-"
        cells = (record.tenant, record.id, state, until, narrower, record.shown, record.name)
        print(json.dumps(row) if as_json else "\t".join(cells))


@keys_cli.command("rotate")
def keys_rotate(
    key_id: Annotated[str, typer.Argument(help="Key id, as `keys list` shows it.")],
    tenant: Tenant,
    overlap: Annotated[str, typer.Option(help="How long the old token goes on.")] = "24h",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Give a key a new token; the old one works for the overlap. Limits and spend stay with the key."""
    settings = read_settings(LedgerSettings)
    seconds = checked(lambda: 0 if overlap in ("0", "0s") else parse_duration(overlap))
    token = _with_keyring(settings, lambda ring: ring.rotate(tenant, key_id, overlap=seconds))
    if as_json:
        print(json.dumps({"tenant": tenant, "key_id": key_id, "token": token}))
    else:
        print(f"{key_id}; this is the only time it is shown:\n{token}")


@keys_cli.command("revoke")
def keys_revoke(
    key_id: Annotated[str, typer.Argument(help="Key id, as `keys list` shows it.")], tenant: Tenant
) -> None:
    """End a key, from the next request on."""
    _with_keyring(read_settings(LedgerSettings), lambda ring: ring.revoke(tenant, key_id))
    print(f"{key_id} is revoked")


@cli.command()
def usage(
    tenant: Tenant,
    first: Annotated[str | None, typer.Option("--from", help="First day, such as 2026-11-01.")] = None,
    until: Annotated[str | None, typer.Option("--to", help="First day that is left out.")] = None,
    per: Annotated[str | None, typer.Option("--per", help="day, month or total.")] = None,
    group_by: Annotated[
        str | None, typer.Option("--group-by", help="key, user, tags, variant, operation, source.")
    ] = None,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,
) -> None:
    """Spend of a tenant from the ledger, as `GET /v1/usage` gives it."""
    settings = read_settings(LedgerSettings)
    known = checked(lambda: tenants_of(settings)).get(tenant)
    zone = known.timezone if known else "UTC"  # of a tenant that left the file the ledger still knows
    given = {"from": first, "to": until, "per": per, "group_by": group_by}
    try:
        query = parse_query([(n, v) for n, v in given.items() if v is not None], today=local_date(zone, time.time()))
        report = with_store(settings, lambda store: read_usage(store, tenant, zone, query))
    except InvalidRequest as error:
        fail(f"--{(error.field or '').replace('_', '-')}: {error.detail.replace('`', '')}")
    if not known and not report.rows:
        fail(f"--tenant: there is no tenant {tenant[:64]!r} in the tenants file, and no usage of it")
    print(report.csv() if as_csv else json.dumps(report.document(), indent=1), end="" if as_csv else "\n")


def _with_keyring(settings: Settings, work: Callable[[Keyring], Awaitable[T]]) -> T:
    if settings.gateway_key_pepper is None:
        if settings.redis_url is not None:
            fail("GATEWAY_KEY_PEPPER: required to work on keys")
        settings.gateway_key_pepper = SecretStr(pepper_of(settings.gateway_data_dir))
    pepper = settings.gateway_key_pepper.get_secret_value().encode()
    try:
        return with_store(settings, lambda store: work(Keyring(store, pepper)))
    except KeyError as error:
        fail(f"there is no such key: {error.args[0][:64]}")


def _words(option: str, text: str | None, known: set[str]) -> tuple[str, ...] | None:
    if text is None:
        return None
    words = tuple(word.strip() for word in text.split(","))
    if unknown := [word for word in words if word not in known]:
        fail(f"{option}: {unknown[0][:64]!r} is not one of {', '.join(sorted(known))}")
    return words


def _switch(text: str) -> tuple[str, Any]:
    """NAME=VALUE, where the value is JSON or else a plain word."""
    name, _, value = text.partition("=")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


if __name__ == "__main__":
    main()
