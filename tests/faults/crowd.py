"""Equal calls under one name, of several keys at once, and other calls under the same name. Shared with the mutants."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from tests.faults.checker import Broken, Figures, Violation, check, received, settle_down
from tests.faults.clients import History, together
from tests.fleet import Fleet

NAME = "order-1"
OTHERS: tuple[Mapping[str, Any], ...] = ({"seed": 1}, {"variant": "max"}, {"user": "bob"}, {"output_format": "png"})


def crowd(fleet: Fleet, keys: Sequence[tuple[str, str]], callers: int) -> tuple[History, Figures]:
    """So many callers of each (tenant, token), all at once over all replicas, then everything else under that name.

    Raises:
        Broken: I6 where a key did not buy exactly one picture or another request was not refused; and what the checker
            finds.
    """
    history, before, found = History(), received(fleet), list[Violation]()
    together(
        [
            partial(
                history.ask, url=fleet.urls[at % len(fleet.urls)], token=token, tenant=tenant, name=NAME,
                accept="application/json",
            )
            for at in range(callers)
            for tenant, token in keys
        ]
    )  # fmt: skip
    settle_down(fleet, keys[0][0])
    if (jobs := received(fleet) - before) != len(keys):
        found.append(Violation("I6", f"{len(history.calls)} calls under {len(keys)} names became {jobs} jobs"))
    work = [
        partial(history.ask, url=url, token=token, tenant=tenant, name=NAME, accept="application/json", **fields)
        for url in fleet.urls
        for tenant, token in keys
        for fields in OTHERS
    ]
    codes = {call.answer.code if call.answer else "" for call in together(work)}
    if codes != {"idempotency_mismatch"}:
        found.append(Violation("I6", f"other requests under a name were told {sorted(codes)}"))
    settle_down(fleet, keys[0][0])
    try:
        figures = check(fleet, *dict(keys), history=history)
    except Broken as broken:
        raise Broken([*found, *broken.violations]) from None
    if found:
        raise Broken(found)
    return history, figures
