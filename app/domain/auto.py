"""`variant: auto`: which variant a request is given, within what the caller may use and can afford, and why.

Pure, called by the pipeline for every surface before validation. A variant that is eligible has every field of the
request and passes the caller's whole policy, so that the ceiling holds for `auto` as it does for a variant by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from app.domain import policy
from app.domain.catalog import Catalog, JobType
from app.domain.guidance import AutoRule, Guidance
from app.domain.job import Ask, Caller, Choice
from app.domain.prompts import Reading, read
from app.domain.validate import AUTO, ENVELOPE, unknown, validate
from app.errors import InvalidRequest, Refused


@dataclass(frozen=True, slots=True)
class Options:
    """Eligible variants with their prices in micro-dollars, the best one first, and why it is wished for."""

    ask: Ask
    prices: Mapping[str, int]
    because: str
    user: str | None


def asked(ask: Ask) -> bool:
    """Whether the choice is left to the gateway."""
    return ask.fields.get("variant") == AUTO


def options(caller: Caller, ask: Ask, catalog: Catalog, guidance: Guidance, *, uploads_needed: bool = True) -> Options:
    """What `auto` may choose from for this request.

    Raises:
        InvalidRequest: a field is wrong, or no variant has all the fields that are given.
        Refused: the caller may use none of the variants that have them.
    """
    prompt = read(ask.fields.get("prompt"), guidance.changes)
    rule = _wish(ask, prompt, guidance)
    because = rule.because.replace("{changes}", str(prompt.changes))
    place = guidance.auto.order.index(rule.variant)
    ranked = (*guidance.auto.order[place:], *reversed(guidance.auto.order[:place]))
    offered = {name: job_type for name in ranked if (job_type := catalog.find(ask.operation, name))}
    fitting = [name for name, job_type in offered.items() if not _foreign(ask, job_type)]
    if not fitting:
        raise _misfit(ask, offered, catalog)
    prices: dict[str, int] = {}
    refusal: Refused | None = None
    user: str | None = None
    for name in fitting:
        request = validate(_with(ask, name), catalog, uploads_needed=uploads_needed)
        user = request.user
        try:
            prices[name] = policy.apply(caller, request).price
        except Refused as error:
            refusal = refusal or error
    if refusal and not prices:
        raise refusal
    if rule.variant not in prices:
        because += f"; {rule.variant} {_why_not(rule.variant, offered, fitting)}"
    return Options(ask, prices, because, user)


def pick(options: Options, left: int | None) -> Ask:
    """The ask with the best variant that `left` micro-dollars pay for (None: no budget is set).

    Where they pay for none, it is the best one: a stored picture is still given, and a new one is refused as always.
    """
    best = next(iter(options.prices))
    chosen = next((name for name, price in options.prices.items() if left is None or price <= left), best)
    because = options.because
    if chosen != best:
        because += f"; what is left of the budget does not pay for {best}"
    return replace(_with(options.ask, chosen), chosen=Choice(chosen, because))


def _wish(ask: Ask, prompt: Reading, guidance: Guidance) -> AutoRule:
    given = frozenset(ask.fields)
    return next(rule for rule in guidance.auto.rule if rule.hold(ask.operation, given, frozenset(), prompt))


def _with(ask: Ask, variant: str) -> Ask:
    return replace(ask, fields={**ask.fields, "variant": variant})


def _foreign(ask: Ask, job_type: JobType) -> list[str]:
    """Fields of the ask that a job type does not have."""
    return [name for name in ask.fields if name not in ENVELOPE and name not in job_type.parameters]


def _misfit(ask: Ask, offered: Mapping[str, JobType], catalog: Catalog) -> InvalidRequest:
    """Why no variant has all the fields: one that none has at all, or several that exclude each other."""
    if not offered:
        return InvalidRequest(f"auto has no variant to choose from for {ask.operation}.", field="variant")
    for name in ask.fields:
        if all(name in _foreign(ask, job_type) for job_type in offered.values()):
            return unknown(name, ask, next(iter(offered.values())), catalog)
    partial = {name for job_type in offered.values() for name in _foreign(ask, job_type)}
    fields = [name for name in ask.fields if name in partial]
    text = f"No variant has all of these fields: {', '.join(f'`{name}`' for name in fields)}."
    return InvalidRequest(
        text, field=fields[0], fields={name: list(catalog.having(ask.operation, name)) for name in fields}
    )


def _why_not(name: str, offered: Mapping[str, JobType], fitting: list[str]) -> str:
    if name not in offered:
        return "is not offered"
    return "may not be used here" if name in fitting else "lacks a field of this request"
