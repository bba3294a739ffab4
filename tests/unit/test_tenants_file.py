"""The tenants file: what it means, how blocks merge, and that every mistake in it is told with file, line and field."""

from __future__ import annotations

import json
import textwrap
import time
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from app.domain.tenant import Budget, CacheRule, ImageQuota, KeyPolicy, Limits, Rate, SafetyRule, Tenant
from app.domain.tenants_file import (
    MAX_BYTES,
    Mistake,
    TenantsFile,
    TenantsFileError,
    load,
    parse_budget,
    parse_duration,
    parse_images,
    parse_limits,
    parse_rate,
)

VARIANTS = {"generate": frozenset({"pro", "max"}), "edit": frozenset({"pro", "max", "dev"})}
EXAMPLE = (Path(__file__).parents[2] / "deploy" / "tenants.example.yaml").read_text("utf-8")


def read(text: str) -> TenantsFile:
    return load(text, file="tenants.yaml", variants=VARIANTS)


def acme(body: str, defaults: str = "") -> str:
    """A file with one tenant; its first own line is line 4 where there are no defaults."""
    block = f"defaults:\n{textwrap.indent(textwrap.dedent(defaults).strip(), '  ')}\n" if defaults else ""
    return f"version: 1\n{block}tenants:\n  acme:\n{textwrap.indent(textwrap.dedent(body).strip(), '    ')}\n"


def tenant(body: str, defaults: str = "") -> Tenant:
    return read(acme(body, defaults)).tenants["acme"]


def mistakes(text: str) -> tuple[Mistake, ...]:
    with pytest.raises(TenantsFileError) as caught:
        read(text)
    return caught.value.mistakes


def outcome(text: str) -> TenantsFile | tuple[Mistake, ...]:
    try:
        return read(text)
    except TenantsFileError as error:
        return error.mistakes


# What a file means.


def test_every_field_of_the_example_reaches_its_tenant() -> None:
    found = read(EXAMPLE)
    first = found.tenants["acme"]
    assert list(found.tenants) == ["acme", "globex-web", "globex-studio"]
    assert (first.id, first.name, first.weight, first.suspended, first.keep_metadata) == (
        "acme",
        "Acme storefront",
        2,
        False,
        False,
    )
    assert first.variants == {"generate": ("pro", "max"), "edit": ("pro", "max", "dev")}
    assert first.safety.rules == {"generate": SafetyRule(1, 0), "edit": SafetyRule(1, None)}
    assert first.safety.mode == "reject"
    assert first.safety.allow_without_knob == {"dev"}
    assert first.limits == Limits(
        requests=Rate(120, 60, 40),
        images=(ImageQuota(500, "day"),),
        concurrency=8,
        budgets=(Budget(5_000_000, "day"), Budget(100_000_000, "month")),
    )
    assert first.per_user == Limits(requests=Rate(10, 60, 10), images=(ImageQuota(20, "day"),))
    assert first.timezone == "Europe/Berlin"
    assert first.cache == CacheRule("tenant", 604_800)
    assert first.webhooks_allow == ("https://hooks.acme.example/",)
    assert first.cors_origins == ("https://shop.acme.example",)
    studio = found.tenants["globex-studio"]
    assert studio.keep_metadata
    assert studio.cache == CacheRule("pool:globex", 43_200)
    assert studio.safety.rules == {"generate": SafetyRule(4, None), "edit": SafetyRule(2, 1)}
    assert found.tenants["globex-web"].limits.budgets == (Budget(50_000_000, "week"),)


def test_browser_origins_are_the_union_over_tenants() -> None:
    assert read(EXAMPLE).cors_origins == {
        "https://shop.acme.example",
        "https://www.globex.example",
        "http://localhost:5173",
    }


def test_a_tenant_that_sets_nothing_has_no_rules_no_limits_and_every_variant() -> None:
    assert tenant("{}") == Tenant(id="acme", name="acme")
    assert tenant("{}").safety.rules == {}
    assert tenant("{}").limits.empty
    assert tenant("{}").variants is None


def test_an_operation_without_variants_and_one_that_is_not_named_stay_apart_from_none() -> None:
    assert tenant("variants: {edit: [dev], generate: []}").variants == {"edit": ("dev",), "generate": ()}
    assert tenant("variants: {edit: [dev]}").variants == {"edit": ("dev",)}


def test_the_same_file_written_as_json_is_read() -> None:
    text = json.dumps(
        {"version": 1, "tenants": {"acme": {"limits": {"budgets": [{"usd": "0.000001", "per": "week"}]}}}}
    )
    assert read(text).tenants["acme"].limits.budgets == (Budget(1, "week"),)


def test_a_file_with_a_byte_order_mark_and_windows_line_ends_is_read() -> None:
    assert read("\ufeff" + EXAMPLE.replace("\n", "\r\n")) == read(EXAMPLE)


@pytest.mark.parametrize(
    ("body", "value"),
    [
        ("name: 'on'", "on"),
        ('name: "007"', "007"),
        ("name: Ünïcode – 画像", "Ünïcode – 画像"),
    ],
)
def test_quoted_text_is_taken_as_it_is_written(body: str, value: str) -> None:
    assert tenant(body).name == value


def test_a_cache_may_be_off_with_and_without_quotes() -> None:
    assert tenant("cache: {scope: off}").cache.scope == "off"
    assert tenant('cache: {scope: "off"}').cache.scope == "off"


def test_a_webhook_host_alone_means_its_root_so_that_no_longer_host_can_match_it() -> None:
    assert tenant("webhooks: {allow: ['https://hooks.acme.example']}").webhooks_allow == (
        "https://hooks.acme.example/",
    )


@pytest.mark.parametrize("origin", ["http://localhost:5173", "https://a.example:8443", "http://[::1]:3000"])
def test_origins_as_browsers_send_them_are_kept(origin: str) -> None:
    assert tenant(f"cors: {{origins: ['{origin}']}}").cors_origins == (origin,)


# How blocks merge.


def test_blocks_merge_field_by_field() -> None:
    merged = tenant(
        "safety: {generate: {ceiling: 1}}",
        "safety: {generate: {ceiling: 4, default: 0}, edit: {ceiling: 2}, mode: reject, allow_without_knob: [dev]}",
    )
    assert merged.safety.rules == {"generate": SafetyRule(1, 0), "edit": SafetyRule(2, None)}
    assert merged.safety.mode == "reject"
    assert merged.safety.allow_without_knob == {"dev"}


def test_lists_replace_and_do_not_merge() -> None:
    defaults = "limits: {budgets: [{usd: '1', per: day}, {usd: '9', per: month}], images: [{max: 5, per: day}]}"
    assert tenant("limits: {budgets: [{usd: '2', per: week}]}", defaults).limits == Limits(
        images=(ImageQuota(5, "day"),), budgets=(Budget(2_000_000, "week"),)
    )
    assert tenant("limits: {budgets: []}", defaults).limits.budgets == ()


def test_rate_and_burst_merge_like_any_other_field() -> None:
    defaults = "limits: {requests: {rate: 60/1m, burst: 5}}"
    assert tenant("limits: {requests: {rate: 10/1s}}", defaults).limits.requests == Rate(10, 1, 5)
    assert tenant("limits: {requests: {burst: 7}}", defaults).limits.requests == Rate(60, 60, 7)


def test_defaults_may_hold_every_field_but_the_name() -> None:
    body = textwrap.dedent(
        """
        weight: 3
        variants: {edit: [pro]}
        safety: {edit: {ceiling: 1, default: 0}, mode: reject, allow_without_knob: [dev]}
        limits:
          requests: {rate: 1/1h, burst: 1}
          images: [{max: 1, per: minute}]
          concurrency: 2
          budgets: [{usd: "0.5", per: hour}]
          per_user: {concurrency: 1}
        timezone: Asia/Kathmandu
        cache: {scope: "pool:p-1", ttl: 90s}
        webhooks: {allow: ["https://h.example/x"]}
        cors: {origins: ["https://o.example"]}
        suspended: true
        keep_metadata: true
        """
    ).strip()
    inherited = tenant("name: Acme", body)
    assert inherited == tenant(f"name: Acme\n{body}")
    for field in ("weight", "variants", "limits", "per_user", "timezone", "cache", "suspended", "keep_metadata"):
        assert getattr(inherited, field) != getattr(Tenant(id="acme", name="Acme"), field)


def test_one_tenant_s_block_does_not_touch_another_s() -> None:
    text = (
        "version: 1\ndefaults: {safety: {edit: {ceiling: 2}}}\n"
        "tenants:\n  a: {safety: {edit: {ceiling: 0}}}\n  b: {weight: 2}\n"
    )
    found = read(text).tenants
    assert found["a"].safety.rules["edit"].ceiling == 0
    assert found["b"].safety.rules["edit"].ceiling == 2


# Every mistake, with its place.

IN_A_TENANT = [
    # body, line within the body, field below tenants.acme, phrase
    ("nmae: Acme", 1, "nmae", "did you mean name?"),
    ("frobnicate: 1", 1, "frobnicate", "known here: name, weight"),
    ("limits:\n  budget: []", 2, "limits.budget", "did you mean budgets?"),
    ("limits: {per_user: {per_user: {}}}", 1, "limits.per_user.per_user", "not a known field"),
    ("per_user: {}", 1, "per_user", "not a known field"),
    ("safety: {genrate: {ceiling: 1}}", 1, "safety.genrate", "did you mean generate?"),
    ("safety: {edit: {celing: 1}}", 1, "safety.edit.celing", "did you mean ceiling?"),
    ("name: A\nweight: 1\nname: B", 3, "name", "second time, after line 4"),
    ("limits: {concurrency: 1, concurrency: 2}", 1, "limits.concurrency", "second time"),
    ("name: on", 1, "name", "on is a boolean in YAML: put it in quotes"),
    ("name: yes", 1, "name", "yes is a boolean"),
    ("name: 012", 1, "name", "012 is a number"),
    ("name: 1:30", 1, "name", "1:30 is a number"),
    ("name: 2026-01-31", 1, "name", "is a date"),
    ("name: ~", 1, "name", "not a string in YAML"),
    ("name:", 1, "name", "an empty value"),
    ("name: [a]", 1, "name", "must be a string"),
    ("name: ''", 1, "name", "1 to 200 characters"),
    ("name: |\n  two\n  lines", 1, "name", "one line"),
    ("weight: 0", 1, "weight", "from 1 to 1000"),
    ("weight: 1001", 1, "weight", "from 1 to 1000"),
    ("weight: true", 1, "weight", "must be a whole number"),
    ("weight: '2'", 1, "weight", "without quotes"),
    ("weight: 1.0", 1, "weight", "must be a whole number"),
    ("weight: 012", 1, "weight", "plain decimal digits"),
    ("weight: 0x10", 1, "weight", "plain decimal digits"),
    ("weight: 1_0", 1, "weight", "plain decimal digits"),
    ("weight: 1:30", 1, "weight", "plain decimal digits"),
    (f"weight: {'9' * 5000}", 1, "weight", "from 1 to 1000"),
    ("variants: [pro]", 1, "variants", "must be a mapping"),
    ("variants: {edit: pro}", 1, "variants.edit", "must be a list"),
    ("variants: {generate: [pro, dev]}", 1, "variants.generate[1]", "must be one of max, pro"),
    ("variants: {edit: [prp]}", 1, "variants.edit[0]", "did you mean pro?"),
    ("variants: {edit: [pro, max, pro]}", 1, "variants.edit[2]", "repeats entry [0]"),
    ("variants: {upscale: [pro]}", 1, "variants.upscale", "known here: generate, edit"),
    ("variants: {edit: [on]}", 1, "variants.edit[0]", "put it in quotes"),
    ("safety: {generate: {ceiling: 7}}", 1, "safety.generate.ceiling", "from 0 to 6"),
    ("safety: {edit: {ceiling: 3}}", 1, "safety.edit.ceiling", "from 0 to 2"),
    ("safety: {edit: {default: -1}}", 1, "safety.edit.default", "from 0 to 2"),
    ("safety: {edit: {ceiling: no}}", 1, "safety.edit.ceiling", "must be a whole number"),
    ("safety: {edit: {ceiling: 1, default: 2}}", 1, "safety.edit.default", "default 2 is above the ceiling 1"),
    ("safety: {mode: refuse}", 1, "safety.mode", "clamp, reject"),
    ("safety: {allow_without_knob: [def]}", 1, "safety.allow_without_knob[0]", "did you mean dev?"),
    ("safety: 1", 1, "safety", "must be a mapping"),
    ("limits:", 1, "limits", "must be a mapping"),
    ("limits: {requests: 120/1m}", 1, "limits.requests", "must be a mapping"),
    ("limits: {requests: {rate: 120}}", 1, "limits.requests.rate", "120 is a number"),
    ("limits: {requests: {rate: 120/m}}", 1, "limits.requests.rate", "such as 120/1m"),
    ("limits: {requests: {rate: 120/2m}}", 1, "limits.requests.rate", "such as 120/1m"),
    ("limits: {requests: {rate: 0/1m}}", 1, "limits.requests.rate", "such as 120/1m"),
    ("limits: {requests: {rate: 5/86401s}}", 1, "limits.requests.rate", "such as 120/1m"),
    ("limits:\n  requests:\n    rate: 1/1s\n    burst: 0", 4, "limits.requests.burst", "from 1 to 1000000"),
    ("limits: {requests: {burst: 5}}", 1, "limits.requests.burst", "needs a `rate`"),
    ("limits: {per_user: {requests: {burst: 5}}}", 1, "limits.per_user.requests.burst", "needs a `rate`"),
    ("limits: {concurrency: 0}", 1, "limits.concurrency", "from 1 to 10000"),
    ("limits: {concurrency: 10001}", 1, "limits.concurrency", "from 1 to 10000"),
    ("limits: {images: {max: 1, per: day}}", 1, "limits.images", "must be a list"),
    ("limits: {images: [5]}", 1, "limits.images[0]", "must be a mapping"),
    ("limits:\n  images:\n    - max: 0\n      per: day", 3, "limits.images[0].max", "from 1 to"),
    ("limits:\n  images:\n    - max: 5", 3, "limits.images[0].per", "is required"),
    ("limits: {images: [{max: 5, per: fortnight}]}", 1, "limits.images[0].per", "minute, hour, day, week, month"),
    ("limits: {images: [{max: 5, per: day}, {max: 6, per: day}]}", 1, "limits.images[1]", "repeats entry [0]"),
    ("limits: {budgets: [{usd: 5.00, per: day}]}", 1, "limits.budgets[0].usd", "write the amount as a string"),
    ("limits: {budgets: [{usd: 5, per: day}]}", 1, "limits.budgets[0].usd", "write the amount as a string"),
    ("limits: {budgets: [{usd: '0', per: day}]}", 1, "limits.budgets[0].usd", "above 0"),
    ("limits: {budgets: [{usd: '0.000', per: day}]}", 1, "limits.budgets[0].usd", "above 0"),
    ("limits: {budgets: [{usd: '-1', per: day}]}", 1, "limits.budgets[0].usd", "above 0"),
    ("limits: {budgets: [{usd: '1.0000001', per: day}]}", 1, "limits.budgets[0].usd", "at most six decimals"),
    ("limits: {budgets: [{usd: '1000000000.000001', per: day}]}", 1, "limits.budgets[0].usd", "up to 1000000000"),
    ("limits: {budgets: [{usd: 1e3, per: day}]}", 1, "limits.budgets[0].usd", "must be dollars such as"),
    ("limits: {budgets: [{usd: '$5', per: day}]}", 1, "limits.budgets[0].usd", "must be dollars such as"),
    ("limits: {budgets: [{usd: '1,000', per: day}]}", 1, "limits.budgets[0].usd", "must be dollars such as"),
    ("limits: {budgets: [{usd: '\u0665', per: day}]}", 1, "limits.budgets[0].usd", "must be dollars such as"),
    ("limits:\n  budgets:\n    - {usd: '1', per: day}\n    - {per: day}", 4, "limits.budgets[1].usd", "is required"),
    ("timezone: Europe/Berln", 1, "timezone", "did you mean Europe/Berlin?"),
    ("timezone: ../../etc/passwd", 1, "timezone", "IANA time zone"),
    ("timezone: localtime", 1, "timezone", "IANA time zone"),
    ("timezone: right/Europe/Berlin", 1, "timezone", "IANA time zone"),
    ("cache: {scope: 'pool:'}", 1, "cache.scope", "pool:<name>"),
    ("cache: {scope: 'pool:Big_Team'}", 1, "cache.scope", "a-z, 0-9 and -"),
    (f"cache: {{scope: 'pool:{'a' * 33}'}}", 1, "cache.scope", "1 to 32 characters"),
    ("cache: {scope: no}", 1, "cache.scope", "no is a boolean"),
    ("cache: {ttl: 90}", 1, "cache.ttl", "90 is a number"),
    ("cache: {ttl: 1w}", 1, "cache.ttl", "such as 90s, 15m, 12h or 7d"),
    ("cache: {ttl: 0s}", 1, "cache.ttl", "such as 90s"),
    ("cache: {ttl: 367d}", 1, "cache.ttl", "up to 366d"),
    ("webhooks: {allow: ['http://h.example/']}", 1, "webhooks.allow[0]", "must be an https:// URL"),
    ("webhooks: {allow: ['https://u:p@h.example/']}", 1, "webhooks.allow[0]", "without user"),
    ("webhooks: {allow: ['https://*.example/']}", 1, "webhooks.allow[0]", "wildcard"),
    ("webhooks: {allow: ['https://h.example:70000/']}", 1, "webhooks.allow[0]", "must be an https:// URL"),
    ("cors: {origins: ['*']}", 1, "cors.origins[0]", "`*` is refused"),
    ("cors: {origins: ['https://*.acme.example']}", 1, "cors.origins[0]", "`*` is refused"),
    ("cors: {origins: ['https://shop.example/']}", 1, "cors.origins[0]", "without a path"),
    ("cors: {origins: ['https://shop.example/app']}", 1, "cors.origins[0]", "without a path"),
    ("cors: {origins: [shop.example]}", 1, "cors.origins[0]", "http(s)://host"),
    ("cors: {origins: ['null']}", 1, "cors.origins[0]", "http(s)://host"),
    ("cors: {origins: ['https://Shop.example']}", 1, "cors.origins[0]", "lower case"),
    ("cors: {origins: ['https://shop.example:443']}", 1, "cors.origins[0]", "own port"),
    ("cors: {origins: ['https://a.example', 'https://a.example']}", 1, "cors.origins[1]", "repeats entry [0]"),
    ("suspended: yes", 1, "suspended", "must be true or false"),
    ("suspended: 'true'", 1, "suspended", "without quotes"),
    ("suspended: 1", 1, "suspended", "must be true or false"),
    ("suspended:", 1, "suspended", "must be true or false"),
    ("keep_metadata: on", 1, "keep_metadata", "must be true or false"),
]


@pytest.mark.parametrize(("body", "line", "field", "phrase"), IN_A_TENANT)
def test_a_mistake_in_a_tenant_is_told_with_its_line_and_field(body: str, line: int, field: str, phrase: str) -> None:
    (mistake,) = mistakes(acme(body))
    assert (mistake.file, mistake.line, mistake.field) == ("tenants.yaml", line + 3, f"tenants.acme.{field}")
    assert phrase in mistake.message


OF_THE_FILE = [
    # text, line, field, phrase
    ("", 1, "", "is empty"),
    ("\n\n", 1, "", "is empty"),
    ("# only a comment\n", 1, "", "is empty"),
    ("---\n", 1, "", "is empty"),
    ("just text\n", 1, "", "must be a mapping"),
    ("- version: 1\n", 1, "", "must be a mapping"),
    ("version: 1\n", 1, "tenants", "is required"),
    ("tenants: {a: {}}\n", 1, "version", "is required"),
    ("version: 2\ntenants: {a: {}}\n", 1, "version", "must be 1"),
    ("version: '1'\ntenants: {a: {}}\n", 1, "version", "must be 1"),
    ("version: 01\ntenants: {a: {}}\n", 1, "version", "must be 1"),
    ("version: 1\ntenants: {a: {}}\nteams: {}\n", 3, "teams", "not a known field"),
    ("version: 1\ntenants:\n", 2, "tenants", "must be a mapping"),
    ("version: 1\ntenants: {}\n", 2, "tenants", "at least one tenant"),
    ("version: 1\ntenants: []\n", 2, "tenants", "must be a mapping"),
    ("version: 1\ntenants:\n  a:\n", 3, "tenants.a", "must be a mapping"),
    ("version: 1\ntenants:\n  a: {}\n  b: {}\n  a: {}\n", 5, "tenants.a", "after line 3"),
    ("version: 1\ntenants:\n  _other: {}\n", 3, "tenants._other", "is reserved"),
    ("version: 1\ntenants:\n  Acme: {}\n", 3, "tenants.Acme", "1 to 63 characters"),
    ("version: 1\ntenants:\n  -a: {}\n", 3, "tenants.-a", "the first a letter or digit"),
    (f"version: 1\ntenants:\n  {'a' * 64}: {{}}\n", 3, f"tenants.{'a' * 64}", "1 to 63 characters"),
    ("version: 1\ntenants:\n  no: {}\n", 3, "tenants", "no is a boolean in YAML: put it in quotes"),
    ("version: 1\ntenants:\n  7: {}\n", 3, "tenants", "7 is a number in YAML: put it in quotes"),
    ("version: 1\ntenants:\n  [a]: {}\n", 3, "tenants", "name must be a string"),
    ("version: 1\ntenants:\n  a: {}\n  <<: {}\n", 4, "tenants", "<< is a merge key"),
    ("version: 1\ndefaults: {name: x}\ntenants: {a: {}}\n", 2, "defaults.name", "not a known field"),
    ("version: 1\ndefaults: []\ntenants: {a: {}}\n", 2, "defaults", "must be a mapping"),
    ("version: 1\ndefaults: {weight: 0}\ntenants: {a: {weight: 1}}\n", 2, "defaults.weight", "from 1 to 1000"),
    ("version: 1\ntenants:\n  a: &a {}\n", 3, "", "anchor or alias"),
    ("version: 1\ntenants:\n  a: {}\n  b: *a\n", 4, "", "anchor or alias"),
    ("version: 1\ntenants:\n  a: {name: !!str x}\n", 3, "", "has a tag"),
    ("version: 1\ntenants:\n  a: !!python/object:os.system {}\n", 3, "", "has a tag"),
    ("version: 1\ntenants:\n  a: {}\n  !!str b: {}\n", 4, "", "has a tag"),
    ("version: 1\ntenants: {a: {}}\n---\nversion: 1\n", 3, "", "more than one document"),
    ("version: 1\ntenants: {a: {}\n", 2, "", "not YAML, or is cut short"),
    ("version: 1\ntenants:\n\ta: {}\n", 3, "", "not YAML"),
    ("version: 1\ntenants: a: b\n", 2, "", "not YAML"),
    ('version: 1\ntenants: {a: {name: "x\n', 2, "", "not YAML, or is cut short"),
    ("version: 1\ntenants: {a: {}}", 2, "", "ends inside a line"),
    ("version: 1\ntenants:\n  a:\n    weight: 10", 4, "", "ends inside a line"),
    (f"version: 1\ntenants: {'[' * 5000}\n", 2, "", "nested deeper"),
    ("version: 1\ntenants: {a: {name: x\x00}}\n", 2, "", "U+0000"),
    ("version: 1\ntenants: {a: {name: \udcff}}\n", 2, "", "not plain UTF-8 text (U+DCFF)"),
    ("version: 1\n# \u2028tenants: {a: {}}\n", 2, "", "U+2028"),
    ("version: 1\n# \rtenants: {a: {}}\n", 2, "", "U+000D"),
    ("version: 1\n#" + "x" * MAX_BYTES + "\n", 1, "", "larger than 5000000 bytes"),
]


@pytest.mark.parametrize(("text", "line", "field", "phrase"), OF_THE_FILE, ids=[case[0][:40] for case in OF_THE_FILE])
def test_a_mistake_of_the_file_is_told_with_its_line(text: str, line: int, field: str, phrase: str) -> None:
    (mistake,) = mistakes(text)
    assert (mistake.file, mistake.line, mistake.field) == ("tenants.yaml", line, field)
    assert phrase in mistake.message


def test_a_default_above_a_ceiling_is_found_when_only_the_merged_block_has_it() -> None:
    text = (
        "version: 1\n"
        "defaults: {safety: {generate: {ceiling: 4, default: 3}}}\n"
        "tenants:\n"
        "  fine: {}\n"
        "  strict: {safety: {generate: {ceiling: 1}}}\n"
    )
    (mistake,) = mistakes(text)
    assert (mistake.line, mistake.field) == (5, "tenants.strict.safety.generate.ceiling")
    assert "default 3 is above the ceiling 1 (see line 2)" in mistake.message


def test_a_default_above_a_ceiling_in_the_defaults_is_told_once_for_all_tenants() -> None:
    text = "version: 1\ndefaults: {safety: {edit: {ceiling: 0, default: 2}}}\ntenants: {a: {}, b: {}, c: {}}\n"
    assert [(mistake.line, mistake.field) for mistake in mistakes(text)] == [(2, "defaults.safety.edit.default")]


def test_every_mistake_is_told_at_once_and_in_line_order() -> None:
    text = acme("weight: 0\nlimits:\n  budgets: [{usd: 5, per: daay}]\nzone: UTC\ncache: *x\nlimits: {}")
    found = mistakes(text + "extra: 1\nversion: 1\n")
    assert [(mistake.line, mistake.field) for mistake in found] == [
        (4, "tenants.acme.weight"),
        (6, "tenants.acme.limits.budgets[0].per"),
        (6, "tenants.acme.limits.budgets[0].usd"),
        (7, "tenants.acme.zone"),
        (8, ""),
        (9, "tenants.acme.limits"),
        (10, "extra"),
        (11, "version"),
    ]


def test_a_mistake_reads_as_file_line_field_and_sentence() -> None:
    text = acme("weight: 0") + "x: 1\n"
    with pytest.raises(TenantsFileError) as caught:
        read(text)
    assert str(caught.value).splitlines()[0] == (
        "tenants.yaml:4: tenants.acme.weight: must be a whole number from 1 to 1000, written in plain decimal digits"
    )
    assert str(Mistake("t.yaml", 3, "", "is empty")) == "t.yaml:3: is empty"


def test_an_alias_bomb_is_refused_before_it_can_grow() -> None:
    levels = "\n".join(f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 9)}]" for n in range(1, 60))
    started = time.process_time()
    assert all(
        "anchor or alias" in mistake.message for mistake in mistakes(f"l0: &l0 [x]\n{levels}\n") if not mistake.field
    )
    assert time.process_time() - started < 1


def test_a_webhook_s_secret_is_not_repeated_in_the_error() -> None:
    (mistake,) = mistakes(acme("webhooks: {allow: ['https://user:hunter2@h.example/']}"))
    assert "hunter2" not in str(mistake)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, len(EXAMPLE) - 2))
def test_a_file_cut_short_inside_a_line_never_loads(length: int) -> None:
    if not EXAMPLE[:length].endswith("\n"):
        mistakes(EXAMPLE[:length])


PIECES = [
    *"{}[]:,-#&*!|>'\"%@`?~ \n\t\r\x00\x85\ufeff\u2028\ud800é",
    "\n---\n", "<<: ", "&a ", "*a", "!!int ", "? ", "on", "null", "012", "1:30", "1e3", "0x1f", "2026-01-01", "...\n",
    "tenants:", "defaults:", "safety: ", "limits: {}", "per_user:", "{max: 1, per: day}", "  ", "\n    ", "- ",
]  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, len(EXAMPLE)), st.integers(0, 30), st.sampled_from(PIECES) | st.text(max_size=4)),
        min_size=1,
        max_size=6,
    )
)
def test_a_mutated_file_loads_or_is_refused_with_its_mistakes(edits: list[tuple[int, int, str]]) -> None:
    text = EXAMPLE
    for at, length, piece in edits:
        text = text[:at] + piece + text[at + length :]
    found = outcome(text)
    if isinstance(found, TenantsFile):
        assert found.tenants
    else:
        lines = [mistake.line for mistake in found]
        assert lines == sorted(lines)
        assert lines[0] >= 1
        assert lines[-1] <= text.count("\n") + 1


@settings(max_examples=100, deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(
                    ["acme", "safety", "edit", "ceiling", "limits", "requests", "rate", "images", "per", "cors"]
                ),
                inner,
                max_size=4,
            )
        ),
        max_leaves=12,
    )
)
def test_any_value_in_any_place_loads_or_is_refused(value: object) -> None:
    for holder in ({"version": 1, "tenants": value}, {"version": 1, "defaults": value, "tenants": {"a": value}}, value):
        assert outcome(json.dumps(holder))


def test_a_thousand_tenants_load_in_less_than_twice_the_time_of_their_yaml() -> None:
    head, rest = EXAMPLE.split("  acme:\n")
    body = rest.split("\n  # Two teams")[0]
    text = head + "".join(f"  acme-{n}:\n{body}\n" for n in range(1000))
    ratios = []
    for _ in range(3):
        began = time.process_time()
        assert len(read(text).tenants) == 1000
        ours, began = time.process_time() - began, time.process_time()
        assert len(yaml.load(text, Loader=yaml.CSafeLoader)["tenants"]) == 1000
        ratios.append(ours / (time.process_time() - began))
    assert min(ratios) < 2


# The same words on the command line.


def test_limits_are_read_from_the_words_of_a_command_line() -> None:
    assert parse_rate("10/1m") == Rate(10, 60, 10)
    assert parse_rate("10/30s", burst=3) == Rate(10, 30, 3)
    assert [parse_rate(f"1/{period}").seconds for period in ("1s", "1m", "1h", "1d")] == [1, 60, 3600, 86_400]
    assert parse_budget("5.00/day") == Budget(5_000_000, "day")
    assert parse_images("20/day") == ImageQuota(20, "day")
    assert [parse_duration(text) for text in ("90s", "15m", "12h", "7d")] == [90, 900, 43_200, 604_800]
    assert parse_limits(requests="10/1m", burst=4, images=["20/day"], concurrency=2, budgets=["1/week"]) == Limits(
        Rate(10, 60, 4), (ImageQuota(20, "day"),), 2, (Budget(1_000_000, "week"),)
    )
    assert parse_limits().empty


@pytest.mark.parametrize(
    ("wrong", "phrase"),
    [
        ({"requests": "10"}, "must be a rate"),
        ({"requests": "10/1m", "burst": 0}, "from 1 to 1000000"),
        ({"burst": 3}, "request rate beside the burst"),
        ({"images": ["x/day"]}, "whole number from 1"),
        ({"images": ["5"]}, "must be one of minute"),
        ({"budgets": ["5.00"]}, "must be one of minute"),
        ({"budgets": ["5.00/dya"]}, "did you mean day?"),
        ({"budgets": ["nan/day"]}, "must be dollars"),
        ({"concurrency": 0}, "from 1 to 10000"),
    ],
)
def test_a_wrong_word_on_the_command_line_gets_a_clear_sentence(wrong: dict[str, object], phrase: str) -> None:
    with pytest.raises(ValueError, match=phrase):
        parse_limits(**wrong)  # type: ignore[arg-type]


# What a key narrows, as it is stored.


def test_a_key_s_policy_survives_being_stored() -> None:
    limits = Limits(Rate(10, 60, 4), (ImageQuota(20, "day"),), 2, (Budget(1_000_000, "week"),))
    for policy in (KeyPolicy(), KeyPolicy(limits, ("pro",), ("edit",)), KeyPolicy(Limits(), (), None)):
        assert KeyPolicy.from_json(policy.to_json()) == policy
    assert KeyPolicy().to_json() == "{}"
    assert " " not in KeyPolicy(limits, ("pro",), ("edit",)).to_json()


@pytest.mark.parametrize(
    "text",
    [
        "", "null", "[]", "{", '{"extra":1}', '{"variants":"pro"}', '{"variants":[1]}', '{"limits":{"extra":1}}',
        '{"limits":{"concurrency":0}}', '{"limits":{"concurrency":true}}', '{"limits":{"concurrency":"1"}}',
        '{"limits":{"budgets":[{"micro_usd":1.5,"per":"day"}]}}', '{"limits":{"budgets":[{"micro_usd":1,"per":"dy"}]}}',
        '{"limits":{"requests":{"count":1,"seconds":1}}}', '{"limits":{"budgets":[{"micro_usd":-1,"per":"day"}]}}',
    ],
)  # fmt: skip
def test_a_stored_policy_that_is_not_one_is_refused_and_never_widened(text: str) -> None:
    with pytest.raises(ValueError, match=r": "):
        KeyPolicy.from_json(text)
