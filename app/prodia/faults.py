"""How a call to Prodia can go wrong, what each way means for money and retries, and how upstream text is read.

`wire` and `client` raise `Fault` and nothing else; the pipeline asks `MONEY` and `RETRY` what follows from it and turns
it into a caller's answer with `public_error`. Nothing an upstream says reaches a public sentence: its text is only
classified here, or handed on apart, bounded and cleaned, as `Fault.message`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

from app.errors import CODES, Charged, UpstreamError

Outcome = Literal[
    "unsent",  # DNS, connect or TLS failure, or the last chunk of the body was never handed to the socket
    "invalid",  # a parameter was refused
    "moderated",  # the prompt, the input or the result was refused by moderation
    "failed",  # the job ran and failed, or was refused for another reason that the job document gives
    "refused",  # 402, 404, 413, 422 and their like, without a job document
    "misconfigured",  # our own token or address is wrong: 401, 403, a redirect
    "busy",  # 429
    "unavailable",  # 503 with Retry-After
    "error",  # any other 5xx that does not say what became of the job
    "lost",  # timeout or reset after the request was written
    "malformed",  # a success that is truncated, of the wrong type or unreadable
]
Money = Literal["refund", "charge", "ambiguous"]

# Prodia documents a price only for jobs that complete and says nothing of failures, so whatever leaves
# the outcome unknown stays charged until it is reconciled.
MONEY: dict[Outcome, Money] = {
    "unsent": "refund",
    "invalid": "refund",
    "moderated": "refund",
    "failed": "refund",
    "refused": "refund",
    "misconfigured": "refund",
    "busy": "refund",
    "unavailable": "refund",
    "error": "ambiguous",
    "lost": "ambiguous",
    "malformed": "ambiguous",
}

# Re-sends allowed for one job after its first call. An outcome that is not here may have been billed, or would only
# be refused again: it is never sent again.
RETRY: dict[Outcome, int] = {"unsent": 2, "busy": 4, "unavailable": 1}

_DETAIL: dict[Outcome, str] = {
    "unsent": "The job could not be handed to the upstream.",
    "invalid": "The upstream refused a parameter of this job.",
    "moderated": "Moderation refused the prompt, the input or the result.",
    "failed": "The upstream could not complete this job.",
    "refused": "The upstream refused this job.",
    "misconfigured": "The upstream did not accept the gateway's own access.",
    "busy": "The upstream had no capacity for this job.",
    "unavailable": "The upstream is temporarily unavailable.",
    "error": "The upstream failed without saying what became of this job.",
    "lost": "The upstream was given this job and did not answer; what became of it is unknown.",
    "malformed": "The upstream gave an answer that cannot be used.",
}

_CODE: dict[Outcome, str] = {
    "unsent": "upstream_unavailable",
    "invalid": "upstream_failed",
    "moderated": "content_moderated",
    "failed": "upstream_failed",
    "refused": "upstream_failed",
    "misconfigured": "upstream_misconfigured",
    "busy": "upstream_busy",
    "unavailable": "upstream_busy",
    "error": "upstream_failed",
    "lost": "upstream_failed",
    "malformed": "upstream_invalid",
}


class Fault(Exception):
    """One call that did not bring a picture.

    Args:
        outcome: which row of `MONEY`, `RETRY` and the public table applies.
        status: the HTTP status, where there was an answer.
        retry_after: seconds the upstream asked us to wait, 0 to 3600.
        field: the job parameter at fault, where the text names one.
        message: what the upstream said about an `invalid` or `failed` job: at most 300 printable characters, without
            our token. It may quote the caller's input, so it is for that caller alone, never for a log.
        timed_out: our deadline ended the call.
        cause: class name of the transport's failure, for operators; holds no data.
        upstream_id: the job's id at the upstream, where that much of the answer could be read: bills name jobs by it.
    """

    def __init__(
        self,
        outcome: Outcome,
        *,
        status: int | None = None,
        retry_after: float | None = None,
        field: str | None = None,
        message: str | None = None,
        timed_out: bool = False,
        cause: str | None = None,
        upstream_id: str | None = None,
    ) -> None:
        self.detail = _DETAIL[outcome]
        super().__init__(f"{outcome}: {self.detail}")
        self.outcome: Outcome = outcome
        self.status = status
        self.retry_after = retry_after
        self.field = field
        self.message = message
        self.timed_out = timed_out
        self.cause = cause
        self.upstream_id = upstream_id


def public_error(fault: Fault, charged: Charged) -> UpstreamError:
    """What a caller is told; `charged` says what became of the money. `upstream_message` is added if there is one."""
    code = "upstream_timeout" if fault.outcome == "lost" and fault.timed_out else _CODE[fault.outcome]
    extra: dict[str, Any] = {"upstream_message": fault.message} if fault.message else {}
    retry_after = None
    if code in ("upstream_busy", "upstream_unavailable"):
        retry_after = max(1, min(60, math.ceil(fault.retry_after or 0)))
    return UpstreamError(code, fault.detail, field=fault.field, retry_after=retry_after, charged=charged, **extra)


def code_of(reason: str, *, charged: Charged) -> str:
    """The error code of a job's end by the reason in its ledger row: an outcome, an error code, or a dead owner."""
    if reason in _CODE:
        return _CODE[reason]
    if reason in CODES:
        return reason
    return "upstream_timeout" if charged == "unknown" else "internal"


def parse_money(overrides: str | Mapping[str, str]) -> dict[Outcome, Money]:
    """The whole outcome-to-money table, with overrides such as `failed=charge, error=refund` (or a mapping) applied.

    Raises:
        ValueError: an unknown outcome or policy, or an outcome given twice.
    """
    table = dict(MONEY)
    if isinstance(overrides, str):
        entries = [entry.partition("=") for entry in overrides.split(",") if entry.strip()]
        pairs = [(name.strip(), money.strip()) for name, _, money in entries]
    else:
        pairs = list(overrides.items())
    seen: set[str] = set()
    for outcome, money in pairs:
        if outcome not in table:
            raise ValueError(f"unknown outcome {outcome!r}; one of {', '.join(table)}")
        if money not in get_args(Money):
            raise ValueError(f"unknown policy {money!r} for {outcome!r}; one of {', '.join(get_args(Money))}")
        if outcome in seen:
            raise ValueError(f"outcome {outcome!r} is given twice")
        seen.add(outcome)
        table[outcome] = cast(Money, money)
    return table


@dataclass(frozen=True, slots=True)
class Moderation:
    """Regular expressions that mark an upstream's text as a moderation verdict, whatever the case of its letters.

    Prodia documents no wording. The defaults follow the states of the model's owner (`Request Moderated`, `Content
    Moderated`) and what clients look for. `safety` alone is none of them: `safety_tolerance` is a parameter.
    """

    patterns: tuple[str, ...] = (
        r"moderat(?:ed|ion|or)",
        r"\bnsfw\b",
        r"\bflagged\b",
        r"\bsafety (?:system|filter|check|polic|guideline|violation|reason)",
        r"\b(?:content|usage) polic(?:y|ies)\b",
    )

    def __post_init__(self) -> None:
        for pattern in self.patterns:
            try:
                re.compile(pattern)
            except re.error as mistake:
                raise ValueError(f"not a regular expression: {pattern!r}: {mistake}") from None

    def matches(self, text: str) -> bool:
        return any(re.search(pattern, text, re.IGNORECASE) for pattern in self.patterns)


DEFAULT = Moderation()

# The message grammar of the JSON Schema library Prodia's validation texts agree with (santhosh-tekuri/jsonschema v6).
_RULE = re.compile(
    r"\b(?:m(?:ax|in)(?:imum|Length|Items|Properties)|exclusiveM(?:ax|in)imum|multipleOf): got "
    r"|\bgot (?:string|number|integer|boolean|null|object|array), want "
    r"|\bvalue must be "
    r"|\bmissing propert(?:y|ies) '"
    r"|\badditional propert(?:y|ies) '"
    r"|\bdoes not match pattern "
    r"|\bjsonschema validation failed\b"
    r"|\bunknown (?:job )?type\b"
)
_AT = re.compile(r"\bat '/(?:config/)?([A-Za-z_][A-Za-z0-9_]{0,63})(?:/[^']*)?'")
_PROPERTY = re.compile(r"\bpropert(?:y|ies) '([A-Za-z_][A-Za-z0-9_]{0,63})'")
_BEFORE_RULE = re.compile(r"(?:^|[./'\"]|: |- )(?!error|failed|invalid|job)([a-z][a-z0-9_]{0,63})['\"]?:? *$")


def is_validation(text: str) -> bool:
    """Whether the text is a complaint of the upstream's JSON Schema validation."""
    return _RULE.search(text) is not None


def field_at_fault(text: str) -> str | None:
    """The parameter a validation text names: by location (`at '/config/steps'`), by quotes, or just before the rule."""
    named = [found.group(1) for found in _AT.finditer(text) if found.group(1) != "config"]
    if named:
        return named[0]
    if quoted := _PROPERTY.search(text):
        return quoted.group(1)
    rule = _RULE.search(text)
    before = _BEFORE_RULE.search(text, 0, rule.start()) if rule else None
    return before.group(1) if before else None


def clean(text: str, secrets: Iterable[str] = ()) -> str:
    """Upstream text on one line of at most 4,000 characters, all of them printable, without any of `secrets`."""
    # Characters that do not print are removed before the secrets are looked for, so that none can hide one.
    line = "".join(ch if ch.isprintable() else " " for ch in text if ch.isprintable() or ch.isspace())
    for secret in filter(None, secrets):
        line = line.replace(secret, "[redacted]")
    return " ".join(line.split())[:4_000]
