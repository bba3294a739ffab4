"""The `ledger` commands: make one, accept one, list its ambiguous charges, and end them by the upstream's bill.

Registered by `cli.py`. What a bill says is worked out by `app.domain.reconciliation`, read and written by
`app.quota.ambiguous`; here are the options, the order of reading and the exit codes.
"""

from __future__ import annotations

import csv
import json
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from app.commands import findings
from app.commands.access import checked, fail, option, read_settings, with_store
from app.domain import bill as bills
from app.domain.reconciliation import Entry, Findings, Terms, reconcile
from app.domain.tenant import parse_duration
from app.quota import ambiguous, epoch
from app.quota.epoch import NoLedger
from app.settings import LedgerSettings
from app.store.redis import Store

HOUR = 3_600_000  # ms
cli = typer.Typer(no_args_is_help=True, help="Make a ledger, accept one that was lost, or hold it against a bill.")
Tenant = Annotated[str | None, typer.Option("--tenant", help="Only this tenant's charges.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@cli.command("init")
def init(
    if_missing: Annotated[bool, typer.Option("--if-missing", help="Exit with 0 where there is a ledger.")] = False,
) -> None:
    """Make a new ledger in an empty Redis; one that is there is never changed."""
    try:
        print(f"new ledger {with_store(read_settings(LedgerSettings), epoch.initialise)}")
    except FileExistsError:
        if not if_missing:
            fail("there is a ledger already; nothing was changed")
        print("there is a ledger already; nothing was changed")


@cli.command("release")
def release() -> None:
    """Accept the ledger as it is now, after it was lost or rolled back, so that admissions go on."""
    try:
        print(f"released as {with_store(read_settings(LedgerSettings), epoch.release)}")
    except NoLedger:
        fail("there is no ledger; run: kontext-gateway ledger init")


@cli.command("ambiguous")
def list_ambiguous(
    tenant: Tenant = None,
    as_json: Json = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,
) -> None:
    """List the charges whose outcome is unknown, the oldest first."""
    if as_json and as_csv:
        fail("--csv: not together with --json")

    async def read(store: Store) -> list[Entry]:
        names = await _known(store, tenant)
        return await ambiguous.entries(store, [tenant] if tenant else names)

    found = [findings.entry(one) for one in with_store(read_settings(LedgerSettings), read)]
    total = findings.dollars(sum(one["micro_usd"] for one in found))
    if as_json:
        print(json.dumps({"object": "kontext.ambiguous", "entries": found, "total": total}, indent=1))
    elif as_csv:
        out = csv.DictWriter(sys.stdout, findings.COLUMNS, lineterminator="\n")
        out.writeheader()
        out.writerows(found)
    else:
        for one in found:
            print("\t".join(str(one[name] or "-") for name in findings.COLUMNS))
        print(f"{len(found)} ambiguous charges, ${total['usd']}")


@cli.command("reconcile")
def reconcile_with(
    bill: Annotated[Path, typer.Option("--bill", help="The upstream's exported bill, CSV or JSON lines.")],
    tenant: Tenant = None,
    apply: Annotated[bool, typer.Option("--apply", help="Settle what was billed, refund what was not.")] = False,
    by_count: Annotated[
        bool, typer.Option("--by-count", help="Where only the numbers are certain, settle the oldest.")
    ] = False,
    column: Annotated[
        list[str] | None, typer.Option("--column", help="Column of the bill, such as id=job_id; may be repeated.")
    ] = None,
    first: Annotated[str | None, typer.Option("--from", help="The bill holds every job from this time on.")] = None,
    until: Annotated[str | None, typer.Option("--to", help="The bill holds every job up to this time, or now.")] = None,
    tolerance: Annotated[str, typer.Option(help="How far clocks may differ and a job be billed late.")] = "2m",
    older_than: Annotated[str, typer.Option(help="Leave younger charges alone.")] = "1h",  # the longest deadline
    as_json: Json = False,
) -> None:
    """Hold the upstream's bill against the ambiguous charges. Exit code 0 when everything is explained, else 1."""
    now = int(time.time() * 1000)

    def moment(text: str) -> int:
        return now if text == "now" else bills.parse_time(text)

    columns = option("--column", bills.parse_columns, column or ())
    wide, age = option("--tolerance", _span, tolerance), option("--older-than", _span, older_than)
    low = None if first is None else option("--from", moment, first)
    high = None if until is None else option("--to", moment, until)
    lines = checked(lambda: bills.parse(bill.read_bytes(), file=str(bill), columns=columns))
    times = [line.at_ms for line in lines]
    covers = (min(times, default=now) if low is None else low, max(times, default=0) if high is None else high)
    terms = Terms(wide, now - age, covers, by_count)

    async def work(store: Store) -> tuple[Findings, Counter[str]]:
        names = await _known(store, tenant)
        # In this order a job that ends meanwhile is seen twice, which leaves a charge untold, and never missed.
        pending = await ambiguous.under_way(store, names)
        entries = await ambiguous.entries(store, names)
        since = max(0, min(times, default=now) - wide - HOUR)
        booked, settled = await ambiguous.rows(store, names, {line.id for line in lines}, since=since)
        found = reconcile(entries, lines, booked, [*pending, *settled], terms)
        if tenant is not None:
            found.verdicts = [verdict for verdict in found.verdicts if verdict.entry.tenant == tenant]
        ended: Counter[str] = Counter()
        for verdict in found.verdicts if apply else ():
            if verdict.told in ("billed", "not billed"):
                ended[await ambiguous.end(store, verdict)] += 1
        return found, ended

    found, ended = with_store(read_settings(LedgerSettings), work)
    print(findings.as_json(found, ended, applied=apply) if as_json else findings.as_text(found, ended, applied=apply))
    raise typer.Exit(0 if findings.complete(found) else 1)


async def _known(store: Store, tenant: str | None) -> list[str]:
    names = await ambiguous.tenants(store)
    if tenant is not None and tenant not in names:
        fail(f"--tenant: the ledger holds nothing of a tenant {tenant[:64]!r}")
    return names


def _span(text: str) -> int:
    """Milliseconds of a duration, which here may be 0."""
    return 0 if text in ("0", "0s") else parse_duration(text) * 1000
