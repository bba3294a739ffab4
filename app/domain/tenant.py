"""Who may ask and within what: a tenant's policy, what one key narrows of it, and the words operators write for both.

Pure. Made by `tenants_file` and the key commands; read by policy, quota, cache and the surfaces. Amounts are integer
micro-dollars, times whole seconds. What is not set is not limited, but for safety: there the catalogue's default holds.
"""

from __future__ import annotations

import difflib
import functools
import re
import zoneinfo
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from app.domain.pricing import MAX_USD, parse_usd

Per = Literal["minute", "hour", "day", "week", "month"]
Positive = Annotated[int, Field(gt=0)]

_STRICT = ConfigDict(strict=True, extra="forbid")


@dataclass(frozen=True, slots=True)
class Rate:
    """`count` requests in `seconds`, of which `burst` may come at once."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    count: Positive
    seconds: Positive
    burst: Positive


@dataclass(frozen=True, slots=True)
class ImageQuota:
    """At most `max` dispatched jobs in one calendar window."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    max: Positive
    per: Per


@dataclass(frozen=True, slots=True)
class Budget:
    """At most `micro_usd` in one calendar window."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    micro_usd: Positive
    per: Per


@dataclass(frozen=True, slots=True)
class Limits:
    """What one level (tenant, key or end user) may use. Nothing set means not limited at that level."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    requests: Rate | None = None
    images: tuple[ImageQuota, ...] = ()
    concurrency: Positive | None = None
    budgets: tuple[Budget, ...] = ()

    @property
    def empty(self) -> bool:
        """Whether nothing is limited."""
        return self == Limits()


@dataclass(frozen=True, slots=True)
class SafetyRule:
    """One operation's highest and preferred `safety_tolerance`; None where the policy sets none."""

    ceiling: int | None = None
    default: int | None = None


@dataclass(frozen=True, slots=True)
class Safety:
    """The rules by operation, what happens above a ceiling, and the variants allowed though they have no knob.

    `most` is a ceiling over all of them, which only a client token has.
    """

    rules: Mapping[str, SafetyRule] = field(default_factory=lambda: MappingProxyType({}))
    mode: Literal["clamp", "reject"] = "clamp"
    allow_without_knob: frozenset[str] = frozenset()
    most: int | None = None

    def limit(self, operation: str, default: int | None = None) -> int | None:
        """The ceiling of an operation, before what a job type takes; `default` where the policy sets none."""
        rule = self.rules.get(operation)
        own = rule.ceiling if rule and rule.ceiling is not None else default
        return min((bound for bound in (own, self.most) if bound is not None), default=None)


@dataclass(frozen=True, slots=True)
class CacheRule:
    """Who may be answered from this tenant's results ("tenant", "pool:<name>" or "off"), and for how long."""

    scope: str = "tenant"
    ttl_seconds: int = 7 * 86_400


@dataclass(frozen=True, slots=True)
class Tenant:
    """One tenant. `variants` is operation -> variant names; None allows every enabled one, a missing operation none."""

    id: str
    name: str
    weight: int = 1
    variants: Mapping[str, tuple[str, ...]] | None = None
    safety: Safety = field(default_factory=Safety)
    limits: Limits = field(default_factory=Limits)
    per_user: Limits = field(default_factory=Limits)
    timezone: str = "UTC"
    cache: CacheRule = field(default_factory=CacheRule)
    webhooks_allow: tuple[str, ...] = ()
    cors_origins: tuple[str, ...] = ()
    suspended: bool = False
    keep_metadata: bool = False


@dataclass(frozen=True, slots=True)
class KeyPolicy:
    """What a key narrows of its tenant's policy; None narrows nothing."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    limits: Limits = field(default_factory=Limits)
    variants: tuple[str, ...] | None = None
    operations: tuple[str, ...] | None = None

    def to_json(self) -> str:
        """Compact JSON of what is set; `{}` for a key that narrows nothing."""
        return _KEY_POLICY.dump_json(self, exclude_defaults=True).decode()

    @classmethod
    def from_json(cls, text: str) -> KeyPolicy:
        """The policy that `to_json` wrote.

        Raises:
            ValueError: not such a policy: an unknown field, a wrong type, a limit of zero or less.
        """
        try:
            return _KEY_POLICY.validate_json(text)
        except ValidationError as found:
            first = found.errors(include_url=False, include_input=False)[0]
            place = ".".join(map(str, first["loc"])) or "policy"
            raise ValueError(f"{place}: {first['msg']}") from None


_KEY_POLICY = TypeAdapter(KeyPolicy)


# Words: the texts that operators write for these records, in the tenants file and on the command line. Each function
# raises ValueError with a sentence that goes on from the name of what was set.

PERS: tuple[Per, ...] = get_args(Per)
MAX_IMAGES = 1_000_000_000
MAX_RATE = 1_000_000  # one a microsecond is the finest that the ledger counts
MAX_CONCURRENCY = 10_000
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_HOST = r"(?:[a-z0-9_-]+(?:\.[a-z0-9_-]+)*|\[[0-9a-f:.]+\])(?::([1-9][0-9]{0,4}))?"
_ORIGIN = re.compile(rf"(https?)://{_HOST}")
_WEBHOOK = re.compile(rf"(https|http(?=://127\.0\.0\.1:))://{_HOST}(/[A-Za-z0-9._~!$&'()+,;=:@%/-]*)?")


def parse_rate(text: str, *, burst: int | None = None) -> Rate:
    """`120/1m` -> 120 requests in 60 seconds. The burst is the count where none is given."""
    found = re.fullmatch(r"([1-9][0-9]{0,6})/(?:([1-9][0-9]{0,4})s|1([mhd]))", text)
    count, seconds = (int(found[1]), int(found[2] or _UNITS[found[3]])) if found else (0, 0)
    if not (0 < count <= MAX_RATE and 0 < seconds <= 86_400):
        raise ValueError(f"must be a rate such as 120/1m: up to {MAX_RATE} in 1s, 1m, 1h, 1d or seconds such as 30s")
    return Rate(count, seconds, count if burst is None else parse_whole(str(burst), 1, MAX_RATE))


def parse_budget(text: str) -> Budget:
    """`5.00/day` -> 5,000,000 micro-dollars in a calendar day."""
    amount, _, per = text.partition("/")
    return Budget(parse_amount(amount), one_of(PERS)(per))


def parse_images(text: str) -> ImageQuota:
    """`20/day` -> 20 images in a calendar day."""
    count, _, per = text.partition("/")
    return ImageQuota(parse_whole(count, 1, MAX_IMAGES), one_of(PERS)(per))


def parse_limits(
    *,
    requests: str | None = None,
    burst: int | None = None,
    images: Iterable[str] = (),
    concurrency: int | None = None,
    budgets: Iterable[str] = (),
) -> Limits:
    """Limits in the words of a command line: requests "10/1m", images "20/day", budgets "5.00/day"."""
    if burst is not None and requests is None:
        raise ValueError("must have a request rate beside the burst")
    return Limits(
        requests=None if requests is None else parse_rate(requests, burst=burst),
        images=tuple(map(parse_images, images)),
        concurrency=None if concurrency is None else parse_whole(str(concurrency), 1, MAX_CONCURRENCY),
        budgets=tuple(map(parse_budget, budgets)),
    )


def parse_duration(text: str) -> int:
    """`7d` -> 604,800 seconds."""
    found = re.fullmatch(r"([1-9][0-9]{0,7})([smhd])", text)
    seconds = int(found[1]) * _UNITS[found[2]] if found else 0
    if not 0 < seconds <= 366 * 86_400:
        raise ValueError("must be a duration such as 90s, 15m, 12h or 7d, up to 366d")
    return seconds


def parse_amount(text: str) -> int:
    plain = re.fullmatch(r"(0|[1-9][0-9]{0,9})(\.[0-9]{1,6})?", text)
    if not plain or not text.strip("0."):
        raise ValueError(f'must be dollars such as "5.00": above 0, up to {MAX_USD}, with at most six decimals')
    return parse_usd(text)


def parse_whole(text: str, low: int, high: int) -> int:
    if not re.fullmatch(r"0|[1-9][0-9]{0,17}", text) or not low <= int(text) <= high:
        raise ValueError(f"must be a whole number from {low} to {high}, written in plain decimal digits")
    return int(text)


def one_of(known: Iterable[str]) -> Callable[[str], Any]:
    def parse(text: str) -> str:
        if text not in known:
            raise ValueError(f"must be one of {', '.join(known)}{nearest(text, known)}")
        return text

    return parse


def nearest(text: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(text[:64], known, n=1)
    return f"; did you mean {near[0]}?" if near else ""


def parse_name(text: str) -> str:
    if not 0 < len(text) <= 200 or not text.isprintable() or text.isspace():
        raise ValueError("must be one line of 1 to 200 characters")
    return text


@functools.cache
def _zones() -> frozenset[str]:
    # "localtime" is whatever this machine says, and replicas must agree.
    return frozenset(zoneinfo.available_timezones() - {"localtime", "Factory"})


def parse_zone(text: str) -> str:
    if text not in _zones():
        raise ValueError(f"must be an IANA time zone such as Europe/Berlin{nearest(text, _zones())}")
    return text


def parse_scope(text: str) -> str:
    if not re.fullmatch(r"tenant|off|pool:[a-z0-9-]{1,32}", text):
        raise ValueError("must be tenant, off or pool:<name>, the name of 1 to 32 characters a-z, 0-9 and -")
    return text


def parse_origin(text: str) -> str:
    found = _ORIGIN.fullmatch(text)
    if "*" in text:
        raise ValueError("must name one origin; `*` is refused")
    if not found or int(found[2] or 1) > 65_535:
        raise ValueError("must be http(s)://host[:port] in lower case, without a path or a final slash")
    if (found[1], found[2]) in {("http", "80"), ("https", "443")}:
        raise ValueError("must leave out the scheme's own port, as browsers do")
    return text


def parse_webhook(text: str) -> str:
    found = _WEBHOOK.fullmatch(text)
    if not found or int(found[2] or 1) > 65_535:
        raise ValueError("must be an https:// URL, its host in lower case, without user, query, fragment or wildcard")
    return text if found[3] else f"{text}/"
