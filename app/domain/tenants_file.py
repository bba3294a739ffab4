"""The operator's YAML file of tenants: text in, tenants out, or every mistake in it with file, line and field.

Pure; called by the tenants loader at start and on reload, and by `kontext-gateway check`; key commands share its words.
Strict on purpose: what is misspelt, repeated, or not what it looks like in YAML is refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, NamedTuple

import yaml

from app.domain import tenant as words
from app.domain.tenant import Budget, CacheRule, ImageQuota, Limits, Safety, SafetyRule, Tenant

parse_limits, parse_rate, parse_duration = words.parse_limits, words.parse_rate, words.parse_duration
parse_budget, parse_images = words.parse_budget, words.parse_images

MAX_BYTES = 5_000_000
MAX_DEPTH = 16
CEILINGS = {"generate": 6, "edit": 2}  # safety_tolerance goes from 0 to this, whatever the variant


class Mistake(NamedTuple):
    """One mistake. `line` counts from 1; `field` is a path (tenants.acme.limits.budgets[0].usd), empty for the file."""

    file: str
    line: int
    field: str
    message: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.field}{': ' if self.field else ''}{self.message}"


class TenantsFileError(Exception):
    """A tenants file that cannot be used, with every mistake found, in line order."""

    def __init__(self, mistakes: Iterable[Mistake]) -> None:
        self.mistakes = tuple(mistakes)
        super().__init__("\n".join(map(str, self.mistakes)))


@dataclass(frozen=True, slots=True)
class TenantsFile:
    """The tenants by id, and all their browser origins together: what a preflight, which has no key, is held to."""

    tenants: Mapping[str, Tenant]
    cors_origins: frozenset[str]


def load(text: str, *, file: str, variants: Mapping[str, frozenset[str]]) -> TenantsFile:
    """Read a tenants file.

    Args:
        text: its text; decoded with `errors="surrogateescape"`, bytes that are not UTF-8 become a mistake with a line.
        file: its name, for the mistakes.
        variants: operation -> the variant names that the catalogue knows.

    Raises:
        TenantsFileError: with every mistake found. Text that is not one YAML document hides the rest.
    """
    reader, tenant = _Reader(file), _schema(variants)
    defaults = {name: kind for name, kind in tenant.items() if name != "name"}
    found = reader.read(reader.tree(text), {"version": _version, "defaults": defaults, "tenants": _ById(tenant)}, "")
    if isinstance(found, dict):
        for name in {"version", "tenants"} - found.keys():
            reader.note(1, name, "is required")
    blocks = {name: _merge(_inside(found, "defaults"), own) for name, own in _inside(found, "tenants").items()}
    for block in blocks.values():
        reader.cross_check(block)
    if reader.mistakes:
        raise reader.error()
    tenants = {name: _tenant(name, _values(block)) for name, block in blocks.items()}
    origins = frozenset(origin for tenant in tenants.values() for origin in tenant.cors_origins)
    return TenantsFile(MappingProxyType(tenants), origins)


# The schema: a mapping of names to kinds merges field by field; a list or a scalar replaces. A scalar is read from its
# node, because the spelling and YAML's reading of it must agree.

_READ_AS = {"bool": "a boolean", "int": "a number", "float": "a number", "timestamp": "a date", "merge": "a merge key"}
_REFUSED = "refused"  # the kind of a node that has been noted as a mistake already


class _Node(NamedTuple):
    """One node of the YAML tree: "map" (of name and value nodes), "seq" (of nodes), or what YAML takes a scalar for."""

    kind: str
    value: Any
    line: int
    flow: bool = False


@dataclass(frozen=True, slots=True)
class _Each:
    """A list. Items that are mappings need every field of theirs and are built from them."""

    item: Any
    build: Callable[..., Any] | None = None


@dataclass(frozen=True, slots=True)
class _ById:
    """A mapping whose names are tenant ids."""

    item: Any


def _text(parse: Callable[[str], Any], advice: str = "put it in quotes") -> Callable[[_Node], Any]:
    def read(node: _Node) -> Any:
        if node.kind in ("map", "seq"):
            raise ValueError("must be a string")
        if node.kind != "str":
            kind = _READ_AS.get(node.kind, "not a string")
            raise ValueError(f"must be a string; {_short(node.value) or 'an empty value'} is {kind} in YAML: {advice}")
        return parse(node.value)

    return read


def _integer(low: int, high: int) -> Callable[[_Node], Any]:
    def read(node: _Node) -> Any:
        if node.kind != "int":
            raise ValueError(f"must be a whole number from {low} to {high}, without quotes")
        return words.parse_whole(node.value, low, high)

    return read


def _boolean(node: _Node) -> bool:
    if node.kind != "bool" or node.value not in ("true", "false"):
        raise ValueError("must be true or false, without quotes")
    return bool(node.value == "true")


def _cache_scope(node: _Node) -> Any:
    # YAML reads a bare off as false, which no scope could be: the one such word that is taken as it is written.
    return "off" if node.value == "off" else _text(words.parse_scope)(node)


def _version(node: _Node) -> int:
    if node.kind != "int" or node.value != "1":
        raise ValueError("must be 1, the only version there is")
    return 1


def _schema(variants: Mapping[str, frozenset[str]]) -> dict[str, Any]:
    per = _text(words.one_of(words.PERS))
    limits = {
        "requests": {"rate": _text(parse_rate), "burst": _integer(1, words.MAX_RATE)},
        "images": _Each({"max": _integer(1, words.MAX_IMAGES), "per": per}, ImageQuota),
        "concurrency": _integer(1, words.MAX_CONCURRENCY),
        "budgets": _Each(
            {"usd": _text(words.parse_amount, "write the amount as a string, in quotes"), "per": per}, Budget
        ),
    }
    safety = {name: {"ceiling": _integer(0, high), "default": _integer(0, high)} for name, high in CEILINGS.items()}
    any_variant = sorted(frozenset().union(*variants.values()))
    return {
        "name": _text(words.parse_name),
        "weight": _integer(1, 1000),
        "variants": {operation: _Each(_text(words.one_of(sorted(names)))) for operation, names in variants.items()},
        "safety": safety
        | {
            "mode": _text(words.one_of(("clamp", "reject"))),
            "allow_without_knob": _Each(_text(words.one_of(any_variant))),
        },
        "limits": limits | {"per_user": limits},
        "timezone": _text(words.parse_zone),
        "cache": {"scope": _cache_scope, "ttl": _text(parse_duration)},
        "webhooks": {"allow": _Each(_text(words.parse_webhook))},
        "cors": {"origins": _Each(_text(words.parse_origin))},
        "suspended": _boolean,
        "keep_metadata": _boolean,
    }


# Reading: from the text to nodes, from the nodes to blocks (nested dicts with `_Found` at their ends), and to tenants.

_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_RESOLVER: Any = yaml.resolver.Resolver()
# Controls, stray surrogates (bytes that were not UTF-8), and what YAML, but no editor, takes for the end of a line.
_ODD = re.compile("[^\t\n\r\x20-\x7e\xa0-\u2027\u202a-\ud7ff\ue000-\ufefe\uff00-\ufffc\U00010000-\U0010ffff]|\r(?!\n)")
_CACHE = {"scope": "scope", "ttl": "ttl_seconds"}
ID = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")


class _Found(NamedTuple):
    """What stands at one place of the file; the value is None where it was a mistake."""

    value: Any
    line: int
    field: str


class _Reader:
    """Walks one file and collects its mistakes."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.mistakes: list[Mistake] = []

    def note(self, line: int, field: str, message: str) -> None:
        self.mistakes.append(Mistake(self.file, line, field, message))

    def error(self, line: int = 1, message: str = "") -> TenantsFileError:
        """The mistakes as an error, one more of the whole file added where it has a message."""
        if message:
            self.note(line, "", message)
        return TenantsFileError(sorted(dict.fromkeys(self.mistakes), key=lambda mistake: (mistake.line, mistake.field)))

    def tree(self, text: str) -> _Node:
        """The file's one document as nodes, without aliases. Raises TenantsFileError where nothing can be read on."""
        text = text.removeprefix("\ufeff")
        if len(text.encode("utf-8", "surrogatepass")) > MAX_BYTES:
            raise self.error(1, f"is larger than {MAX_BYTES} bytes")
        if odd := _ODD.search(text):
            line = text.count("\n", 0, odd.start()) + 1
            raise self.error(line, f"has a character that is not plain UTF-8 text (U+{ord(odd[0][0]):04X})")
        last = text.removesuffix("\n").count("\n") + 1
        levels: list[tuple[Any, list[_Node]]] = [(None, [])]
        try:
            for event in yaml.parse(text, Loader=_LOADER):
                if isinstance(event, yaml.NodeEvent):
                    if event.anchor:
                        self.note(_line(event), "", "has an anchor or alias; `defaults` is the way to share settings")
                    if getattr(event, "tag", None):
                        self.note(_line(event), "", "has a tag; only plain values are allowed")
                    if not isinstance(event, yaml.CollectionStartEvent):
                        levels[-1][1].append(_scalar(event))
                    elif len(levels) < MAX_DEPTH:
                        levels.append((event, []))
                    else:
                        raise self.error(_line(event), f"is nested deeper than {MAX_DEPTH} levels")
                elif isinstance(event, yaml.CollectionEndEvent):
                    levels[-2][1].append(_collection(*levels.pop()))
                elif isinstance(event, yaml.DocumentStartEvent) and levels[0][1]:
                    raise self.error(_line(event), "has more than one document")
        except yaml.YAMLError as error:
            mark, why = getattr(error, "problem_mark", None), getattr(error, "problem", None)
            raise self.error(min(last, mark.line + 1) if mark else 1, f"is not YAML, or is cut short: {why}") from None
        root = next(iter(levels[0][1]), None)
        if root is None or root.value == "":
            raise self.error(1, "is empty; it needs `version: 1` and `tenants`")
        if not text.endswith("\n") and not root.flow:
            self.note(last, "", "ends inside a line, so it may be cut short; end it with a line break")
        return root

    def read(self, node: _Node, kind: Any, field: str) -> Any:
        """A dict for a node that is to be a mapping, else a `_Found`."""
        value = None
        try:
            if isinstance(kind, dict | _ById) and node.kind != _REFUSED:
                return self.mapping(node, kind, field)
            if node.kind != _REFUSED:
                value = self.items(node, kind, field) if isinstance(kind, _Each) else kind(node)
        except ValueError as why:
            self.note(node.line, field, str(why))
        return _Found(value, node.line, field)

    def mapping(self, node: _Node, kind: dict[str, Any] | _ById, field: str) -> dict[str, Any]:
        if node.kind != "map":
            raise ValueError("must be a mapping")
        if isinstance(kind, _ById) and not node.value:
            raise ValueError("must hold at least one tenant")
        block: dict[str, Any] = {}
        lines: dict[str, int] = {}
        for key, child in node.value:
            line = key.line
            try:
                name = _text(str)(key)
            except ValueError as why:
                if key.kind != _REFUSED:
                    self.note(line, field, f"has a field whose name {why}")
                continue
            path = f"{field}.{_short(name)}".lstrip(".")
            if name in lines:
                self.note(line, path, f"is set a second time, after line {lines[name]}")
                continue
            lines[name] = line
            if isinstance(kind, dict) and name not in kind:
                near = words.nearest(name, kind) or f"; known here: {', '.join(kind)}"
                self.note(line, path, f"is not a known field{near}")
                continue
            if isinstance(kind, _ById) and not ID.fullmatch(name):
                rule = "must be 1 to 63 characters a-z, 0-9, _ and -, the first a letter or digit"
                self.note(line, path, "is reserved for metrics" if name == "_other" else rule)
            block[name] = self.read(child, kind[name] if isinstance(kind, dict) else kind.item, path)
        return block

    def items(self, node: _Node, kind: _Each, field: str) -> tuple[Any, ...]:
        if node.kind != "seq":
            raise ValueError("must be a list")
        values: list[Any] = []
        places: dict[Any, int] = {}
        for i, child in enumerate(node.value):
            path = f"{field}[{i}]"
            item = self.read(child, kind.item, path)
            if kind.build and isinstance(item, dict):
                for name in kind.item.keys() - item.keys():
                    self.note(child.line, f"{path}.{name}", "is required")
                parts = [item[name].value if name in item else None for name in kind.item]
                value = None if None in parts else kind.build(*parts)
            else:
                value = item.value
            # Two caps of one period share a counter: the wider one would look set and never count.
            key = getattr(value, "per", value)
            if key is not None and places.setdefault(key, i) != i:
                self.note(child.line, path, f"repeats entry [{places[key]}] of this list")
            values.append(value)
        return tuple(values)

    def cross_check(self, block: Any) -> None:
        """What a tenant's block and the defaults can only get wrong together."""
        for operation in CEILINGS:
            rule = _inside(block, "safety", operation)
            default, ceiling = rule.get("default"), rule.get("ceiling")
            if default and ceiling and None not in (default.value, ceiling.value) and default.value > ceiling.value:
                at, other = sorted((default, ceiling), key=lambda found: bool(found.field.startswith("defaults.")))
                why = f"the default {default.value} is above the ceiling {ceiling.value}"
                self.note(at.line, at.field, f"{why} (see line {other.line})")
        for path in (("limits",), ("limits", "per_user")):
            requests = _inside(block, *path, "requests")
            if "burst" in requests and "rate" not in requests:
                self.note(requests["burst"].line, requests["burst"].field, "needs a `rate` beside it")


def _line(event: Any) -> int:
    return int(event.start_mark.line) + 1


def _scalar(event: Any) -> _Node:
    if isinstance(event, yaml.AliasEvent) or event.tag:
        return _Node(_REFUSED, "-", _line(event))
    tag = _RESOLVER.resolve(yaml.ScalarNode, event.value, event.implicit)
    return _Node(tag.rpartition(":")[2], event.value, _line(event))


def _collection(start: Any, children: list[_Node]) -> _Node:
    if isinstance(start, yaml.SequenceStartEvent):
        return _Node("seq", children, _line(start), bool(start.flow_style))
    pairs = list(zip(children[::2], children[1::2], strict=True))
    return _Node("map", pairs, _line(start), bool(start.flow_style))


def _short(text: str) -> str:
    return text[:64] if text.isprintable() else ascii(text[:64])


def _inside(block: Any, *path: str) -> dict[str, Any]:
    for name in path:
        block = block.get(name) if isinstance(block, dict) else None
    return block if isinstance(block, dict) else {}


def _merge(base: Any, own: Any) -> Any:
    if not (isinstance(base, dict) and isinstance(own, dict)):
        return own
    return base | {name: _merge(base.get(name), value) for name, value in own.items()}


def _values(block: Any) -> Any:
    return {name: _values(part) for name, part in block.items()} if isinstance(block, dict) else block.value


def _tenant(tenant_id: str, block: dict[str, Any]) -> Tenant:
    limits, safety, cache = block.get("limits", {}), block.get("safety", {}), block.get("cache", {})
    plain = {name: block[name] for name in ("weight", "timezone", "suspended", "keep_metadata") if name in block}
    rules = {operation: SafetyRule(**safety[operation]) for operation in CEILINGS if operation in safety}
    return Tenant(
        id=tenant_id,
        name=block.get("name", tenant_id),
        variants=MappingProxyType(block["variants"]) if "variants" in block else None,
        safety=Safety(
            MappingProxyType(rules), safety.get("mode", "clamp"), frozenset(safety.get("allow_without_knob", ()))
        ),
        limits=_limits(limits),
        per_user=_limits(limits.get("per_user", {})),
        cache=replace(CacheRule(), **{_CACHE[name]: value for name, value in cache.items()}),
        webhooks_allow=block.get("webhooks", {}).get("allow", ()),
        cors_origins=block.get("cors", {}).get("origins", ()),
        **plain,
    )


def _limits(block: dict[str, Any]) -> Limits:
    requests = block.get("requests", {})
    rate = requests.get("rate")
    return Limits(
        requests=rate and replace(rate, burst=requests.get("burst", rate.burst)),
        images=block.get("images", ()),
        concurrency=block.get("concurrency"),
        budgets=block.get("budgets", ()),
    )
