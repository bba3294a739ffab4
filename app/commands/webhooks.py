"""The commands `kontext-gateway webhooks rotate | test | list | redeliver`: secrets and deliveries of a tenant."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from typing import Annotated, TypeVar

import typer

from app.commands.access import checked, fail, read_settings, tenants_of, with_store
from app.domain.ids import ulid
from app.domain.tenant import parse_duration
from app.errors import InvalidRequest
from app.installation import pepper_of
from app.jobs.hooks import STATES, Hooks, event
from app.jobs.lookups import Lookups
from app.settings import LedgerSettings, Settings

cli = typer.Typer(no_args_is_help=True, help="Make a tenant's signing secret, test, list and redeliver its webhooks.")
Tenant = Annotated[str, typer.Option("--tenant", help="Tenant id.")]
T = TypeVar("T")


@cli.command()
def rotate(
    tenant: Tenant,
    overlap: Annotated[str, typer.Option(help="How long the old secret signs too.")] = "24h",
) -> None:
    """Make a tenant's signing secret, or a new one, and print it."""
    settings = _known(tenant)
    seconds = checked(lambda: 0 if overlap in ("0", "0s") else parse_duration(overlap))
    print(_with_hooks(settings, lambda hooks: hooks.rotate(tenant, overlap=seconds)))


@cli.command("test")
def test_(tenant: Tenant, url: Annotated[str, typer.Option("--url", help="Where to send it.")]) -> None:
    """Send a `webhook.test` event from this machine and say how it was answered; exit code 1 unless by 2xx."""
    from app.jobs.post import post

    settings = _known(tenant)
    found = checked(lambda: tenants_of(settings))[tenant]

    async def send(hooks: Hooks) -> str:
        taken, hook_id = await hooks.accept(found, url), f"msg_{ulid()}"
        body = event("webhook.test", {"tenant": tenant})
        target, headers = hooks.target(taken, found.webhooks_allow), await hooks.headers(tenant, hook_id, body)
        if target is None or headers is None:
            return ""
        return await post(target, headers, body, lookup=Lookups().of(tenant), loopback=hooks.loopback)

    try:
        answer = _with_hooks(settings, send)
    except InvalidRequest as error:
        fail(f"--url: {error.detail.replace('`webhook_url` ', '')}")
    if not answer.startswith("2"):
        fail(f"not delivered: {answer.replace('_', ' ')}")
    print(f"delivered: {answer}")


@cli.command("list")
def list_(
    tenant: Tenant,
    state: Annotated[str | None, typer.Option(help="Only these: due, done or dead.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List a tenant's webhooks, the latest first."""
    if state is not None and state not in STATES:
        fail(f"--state: must be one of {', '.join(STATES)}")
    wanted = [one for one in STATES if state in (None, one)]
    for hook in _with_hooks(_known(tenant), lambda hooks: hooks.list(tenant, wanted)):
        row = asdict(hook)
        print(json.dumps(row) if as_json else "\t".join(str(value) for value in row.values()))


@cli.command()
def redeliver(
    tenant: Tenant,
    webhook_id: Annotated[str | None, typer.Argument(help="Id, as `webhooks list` shows it.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="Every dead one.")] = False,
) -> None:
    """Send a webhook again, under its id, by the gateway that runs."""
    if everything == (webhook_id is not None):
        fail("give one webhook id, or --all")

    async def again(hooks: Hooks) -> int:
        found = [hook.id for hook in await hooks.list(tenant, ["dead"])] if webhook_id is None else [webhook_id]
        for one in found:
            await hooks.redeliver(tenant, one)
        return len(found)

    try:
        print(f"{_with_hooks(_known(tenant), again)} due again")
    except KeyError:
        fail(f"there is no webhook {str(webhook_id)[:64]!r} of {tenant[:64]}")


def _known(tenant: str) -> Settings:
    settings = read_settings(LedgerSettings)
    if tenant not in checked(lambda: tenants_of(settings)):
        fail(f"--tenant: there is no tenant {tenant[:64]!r} in the tenants file")
    return settings


def _with_hooks(settings: Settings, work: Callable[[Hooks], Awaitable[T]]) -> T:
    pepper = settings.gateway_key_pepper
    secret = pepper.get_secret_value() if pepper is not None else pepper_of(settings.gateway_data_dir)
    loopback = settings.gateway_webhook_loopback
    return with_store(settings, lambda store: work(Hooks(store, secret.encode(), loopback=loopback)))
