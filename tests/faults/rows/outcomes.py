"""M-04 and M-09 to M-12, M-23: what each answer, price and change of policy means for money, by the upstream's bill."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.faults.checker import Sampler, books, check, received, recovers, sent_seeds, settle_down
from tests.faults.clients import History
from tests.faults.nemesis import meanwhile
from tests.faults.row import Run, row
from tests.faults.storm import CAP, FAULTS, PATIENT, PRICE, WIDE, tenants, token
from tests.fleet import fleet, wait_until

FAST = ("--time-scale", "0.01", "--picture", "small")
BILLED, UNBILLED = "billed", "unbilled"
CALLS = 5  # to the upstream for one job: README's table of outcomes allows a 429 four re-sends

# kind, its options; the answer; what becomes of the money; and whether the sandbox bills it.
WAYS: list[tuple[str, Mapping[str, Any], tuple[int, str], str, str]] = [
    ("failed", {}, (502, "upstream_failed"), "no", UNBILLED),
    ("failed_json", {}, (502, "upstream_failed"), "no", UNBILLED),
    ("moderated_prompt", {}, (422, "content_moderated"), "no", UNBILLED),
    ("moderated_output", {}, (422, "content_moderated"), "no", UNBILLED),
    ("unauthorised", {}, (502, "upstream_misconfigured"), "no", UNBILLED),
    ("redirect", {}, (502, "upstream_misconfigured"), "no", UNBILLED),
    ("error", {"status": 404}, (502, "upstream_failed"), "no", UNBILLED),
    ("error", {"status": 413}, (502, "upstream_failed"), "no", UNBILLED),
    ("busy", {"retry_after": 0}, (503, "upstream_busy"), "no", UNBILLED),
    ("busy", {"retry_after": 3000}, (503, "upstream_busy"), "no", UNBILLED),
    ("error", {"status": 503, "retry_after": 0}, (503, "upstream_busy"), "no", UNBILLED),
    ("error", {"status": 500}, (502, "upstream_failed"), "unknown", UNBILLED),
    ("error", {"status": 502, "html": True}, (502, "upstream_failed"), "unknown", UNBILLED),
    ("error", {"status": 500, "accepted": True}, (502, "upstream_failed"), "unknown", BILLED),
    ("cut_after_accept", {}, (502, "upstream_failed"), "unknown", BILLED),
    ("cut_after_accept", {"reset": True}, (502, "upstream_failed"), "unknown", BILLED),
    ("hang", {}, (504, "upstream_timeout"), "unknown", BILLED),
    ("cut_mid_body", {}, (502, "upstream_invalid"), "unknown", BILLED),
    ("truncated", {}, (502, "upstream_invalid"), "unknown", BILLED),
    ("malformed", {"variant": "missing_output"}, (502, "upstream_invalid"), "unknown", BILLED),
    ("malformed", {"variant": "garbage"}, (502, "upstream_invalid"), "unknown", BILLED),
    ("wrong_content_type", {}, (502, "upstream_invalid"), "unknown", BILLED),
    ("overcharge", {}, (200, "ok"), "", BILLED),
    ("overcharge", {"dollars": 0.01}, (200, "ok"), "", BILLED),
]


@row(
    "M-04",
    "no hold is left by any of 24 ways to fail, and each moves the money that its table says",
    ci={"rounds": 1},
    nightly={"rounds": 10},
)
def each_way_to_fail(run: Run, rounds: int) -> None:
    with fleet(run.folder, tenants(None), sandbox=FAST, GATEWAY_UPSTREAM_DEADLINE="2s", **PATIENT) as running:
        key, seen, unbilled = token(running), [], 0
        for number in range(rounds * len(WAYS)):
            kind, options, *_ = WAYS[number % len(WAYS)]
            running.faults([{"kind": kind, "options": dict(options)}])
            before, asked = running.bill()["jobs"], History()
            asked.send(running.urls, key, [number])
            settle_down(running, "acme")
            billed = BILLED if running.bill()["jobs"] > before else UNBILLED
            answer = asked.answers[0]
            unbilled += answer.charged == "unknown" and billed == UNBILLED
            seen.append((kind, options, (answer.status, answer.code), answer.charged, billed))
            running.faults([])
            asked.send(running.urls, key, [100_000 + number])
            assert asked.calls[-1].outcome == "ok"
        figures = check(running, "acme", exact=False)
        run.reached = f"{len(seen)} cells, outstanding 0; {figures}"
        assert seen == WAYS * rounds
        drift = running.replicas[0].total("kontext_gateway_price_drift_dollars_total", variant="pro")
        assert round(drift * 1_000_000) == PRICE * rounds
        assert figures.bill - PRICE * rounds == figures.settled + figures.ambiguous - unbilled * PRICE
    (folder := run.folder / "billing").mkdir()
    _an_upstream_that_bills_failures(folder)


def _an_upstream_that_bills_failures(folder: Path) -> None:
    """It is paid for them when the table says so."""
    table = PATIENT | {"GATEWAY_OUTCOMES": "failed=charge,moderated=charge"}
    with fleet(folder, tenants(None), sandbox=(*FAST, "--bill-failures"), **table) as running:
        key, asked = token(running), History()
        for seed, kind in enumerate(("failed", "moderated_output")):
            running.faults([{"kind": kind}])
            asked.send(running.urls, key, [seed])
        settle_down(running, "acme")
        figures = check(running, "acme")
        assert {answer.charged for answer in asked.answers} == {"yes"}
        assert figures.bill == figures.settled == 2 * PRICE


@row(
    "M-09",
    f"one end per job, <= {CALLS} calls per job and <= 10 % re-sends in a storm of 429",
    ci={"seconds": 4, "rate": 25},
    nightly={"seconds": 60, "rate": 25},
)
def a_storm_of_429(run: Run, seconds: int, rate: int) -> None:
    with fleet(run.folder, tenants(None), replicas=2, sandbox=FAST, **PATIENT) as running:
        key, history = token(running), History()
        running.faults([{"kind": "busy", "options": {"retry_after": 1}}])
        calm = seconds * rate // 2
        history.send(running.urls, key, range(seconds * rate), rate=rate)
        running.faults([])
        history.send(running.urls, key, range(100_000, 100_000 + calm), rate=rate)
        settle_down(running, "acme")
        figures = check(running, "acme", history=history)
        calls = sent_seeds(running)
        extra = received(running) - len(calls)
        run.reached = (
            f"{len(history.calls)} jobs, at most {max(calls.values())} calls for one, {extra} re-sends; {figures}"
        )
        assert max(calls.values()) <= CALLS
        assert extra <= max(3 * len(running.replicas), len(history.calls) / 10)
        assert history.calls[-1].outcome == "ok"


@row("M-10", f"an unknown type: 0 calls; a permanent 429: <= {CALLS} calls", ci={"jobs": 5}, nightly={"jobs": 60})
def a_type_that_is_always_429(run: Run, jobs: int) -> None:
    with fleet(run.folder, tenants(None), sandbox=FAST, **PATIENT) as running:
        key, unknown, busy = token(running), History(), History()
        unknown.send(running.urls, key, range(jobs), variant="ultra")
        never = received(running)
        running.faults([{"kind": "busy", "options": {"retry_after": 0}}])
        for seed in range(jobs):
            busy.send(running.urls, key, [1_000 + seed])
        calls = sent_seeds(running)
        figures = check(running, "acme", history=busy)
        run.reached = f"{never} calls; at most {max(calls.values())} calls; {figures}"
        assert unknown.statuses() == {"422 invalid_request": jobs}
        assert never == 0
        assert max(calls.values()) <= CALLS
        assert busy.statuses() == {"503 upstream_busy": jobs}


@row(
    "M-11",
    "a price that changes under way passes no cap by a micro-dollar, and the excess is the operator's",
    ci={"flips": 12, "each": 6},
    nightly={"flips": 200, "each": 5},
)
def prices_change_mid_flight(run: Run, flips: int, each: int) -> None:
    with fleet(
        run.folder, tenants("tenant"), replicas=2, sandbox=("--time-scale", "0.03", "--picture", "small")
    ) as running:
        key, history = token(running), History()

        def flip() -> None:
            cents = run.draw.choice([0, 1, 3, 4, 5, 8, 40])
            running.faults([{"kind": "overcharge", "options": {"dollars": cents / 100}}])

        with Sampler(running.redis_url, "acme", WIDE | {"tenant": CAP}) as sampler:
            with meanwhile(run.draw, flip, times=flips, between=(0.1, 0.3)) as over:
                first = 0
                while not over():
                    history.send(running.urls, key, range(first, first + each), user="ada")
                    first += each
            settle_down(running, "acme")
        figures = check(running, "acme", caps={"tenant": CAP}, history=history)
        drift = sum(int(one.get("drift", 0)) for one in books(running).rows)
        run.reached = f"{flips} flips, {history.statuses()}, drift {drift:,}; {figures}"
        assert not sampler.violations
        assert figures.bill - drift == figures.settled
        assert drift > 0
        shown = sum(one.total("kontext_gateway_price_drift_dollars_total") for one in running.replicas)
        assert round(shown * 1_000_000) == drift


@row(
    "M-12",
    "what is in flight settles, nothing new is admitted, when a budget falls below its spend or a tenant goes",
    ci={"rounds": 1},
    nightly={"rounds": 20},
)
def a_policy_falls_under_load(run: Run, rounds: int) -> None:
    wide = PATIENT | {"GATEWAY_UPSTREAM_CONCURRENCY": "64"}
    with fleet(run.folder, tenants(None), replicas=2, sandbox=FAST, **wide) as running:
        key, told = token(running), Counter[str]()
        for number in range(rounds):
            for change, code in (("1000.00", "0.02"), ("acme:", "other:")):
                flying, late = History(), History()
                seeds = range(2 * number * 1_000 + (code == "other:") * 500, 2 * number * 1_000 + 1_000)[:20]
                running.faults([{"kind": "slow", "options": {"after_seconds": 1.0}}])

                def turn() -> None:
                    wait_until(lambda: running.stats()["in_progress"] == 20, 10)
                    running.tenants(tenants(None).replace(change, code, 1))  # noqa: B023
                    late.send(running.urls, key, range(900_000, 900_020))  # noqa: B023

                with meanwhile(run.draw, turn, times=1, between=(0, 0.01)):
                    flying.send(running.urls, key, seeds)
                settle_down(running, "acme")
                told.update(late.statuses())
                run.reached = f"{number + 1} rounds of 2 x 20 in flight; late ones {dict(told)}"
                assert flying.outcomes() == {"ok": 20}
                assert late.outcomes() == {"fail": 20}
                running.faults([])
                running.tenants(tenants(None))
                check(running, "acme", history=flying)
        assert told.keys() == {"402 budget_exhausted", "403 forbidden"}
        recovers(running, key, History())


@row(
    "M-23",
    "the rows alone, replayed, give every counter and every line of the bill, per tenant",
    ci={"requests": 60},
    nightly={"requests": 3_000},
)
def the_rows_are_replayed(run: Run, requests: int) -> None:
    two = (
        tenants("tenant") + tenants("tenant").splitlines()[-1].replace("acme", "zeta").replace("5.00", "500.00") + "\n"
    )
    with fleet(run.folder, two, replicas=2, sandbox=FAST, GATEWAY_UPSTREAM_CONCURRENCY="64", **PATIENT) as running:
        running.faults(list(FAULTS))
        for first, tenant in enumerate(("acme", "zeta")):
            history, key = History(), token(running, tenant=tenant)
            seeds = range(first * requests, (first + 1) * requests)
            history.send(running.urls, key, seeds, user="ada", tenant=tenant)
            settle_down(running, tenant)
        check(running, "acme", "zeta")
        due = {line["id"]: int(line["micro_usd"]) for line in running.bill()["rows"]}
        found = explained = 0
        for tenant in ("acme", "zeta"):
            at = books(running, tenant)
            replayed: Counter[str] = Counter()
            for line in at.rows:
                replayed.update(dict.fromkeys(("tenant", "key", "user"), int(line["delta"])))
                if line["state"] == "SETTLED" and (identity := line.get("upstream_id")) is not None:
                    explained += due.pop(identity) == int(line["delta"])
            spent = {name.partition(":win:")[2].partition(":")[0]: window[0] for name, window in at.windows.items()}
            assert spent == dict(replayed)
            found += len(at.rows)
        ambiguous = sum(len(books(running, tenant).ambiguous) for tenant in ("acme", "zeta"))
        run.reached = f"{found} rows, {explained} lines of the bill by id, {len(due)} ambiguous"
        assert len(due) == ambiguous  # what no row names is what is flagged
