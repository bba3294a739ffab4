"""The shipped Prometheus files are valid, every alert is seen to fire and to be still, every series is one we have."""

from __future__ import annotations

import re
import subprocess
from typing import Any

import yaml

from app.telemetry.metrics import Metrics

from .dockerfile import ROOT

FOLDER = ROOT / "deploy" / "prometheus"
CASES = ROOT / "tests" / "deploy" / "rules.test.yml"
RULES: list[dict[str, Any]] = [
    rule for group in yaml.safe_load((FOLDER / "rules.yml").read_text())["groups"] for rule in group["rules"]
]


def promtool(*arguments: str) -> None:
    """promtool is satisfied."""
    done = subprocess.run(["promtool", *arguments], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_configuration_and_the_rules_are_valid() -> None:
    """promtool's own checks, with its lint of rules, which looks for duplicates."""
    promtool("check", "config", "--lint=all", "--lint-fatal", str(FOLDER / "prometheus.yml"))
    promtool("check", "rules", "--lint=all", "--lint-fatal", str(FOLDER / "rules.yml"))


def test_the_rules_say_what_their_cases_expect() -> None:
    """promtool evaluates them over series made up for it."""
    promtool("test", "rules", str(CASES))


def test_every_rule_has_a_case_and_every_alert_is_seen_in_both_states() -> None:
    """A rule without a case is not known to work."""
    tests = yaml.safe_load(CASES.read_text())["tests"]
    seen = [(case["alertname"], bool(case["exp_alerts"])) for test in tests for case in test.get("alert_rule_test", ())]
    alerts = {rule["alert"] for rule in RULES if "alert" in rule}
    assert {name for name, fires in seen if fires} == alerts
    assert {name for name, fires in seen if not fires} == alerts
    asked = " ".join(case["expr"] for test in tests for case in test.get("promql_expr_test", ()))
    asked += " ".join(rule["expr"] for rule in RULES if "alert" in rule)
    assert all(rule["record"] in asked for rule in RULES if "record" in rule)


def test_every_series_and_label_of_a_rule_exists() -> None:
    """Against the application's own registry: a metric that is renamed breaks its alert here, not in the night."""
    known: dict[str, set[str]] = {}
    registry: Any = Metrics(version="0", variants=()).registry
    for collector in registry._collector_to_names:
        for name in registry._collector_to_names[collector]:
            known[name] = {*getattr(collector, "_labelnames", ()), "instance", "job"}
    recorded = {rule["record"] for rule in RULES if "record" in rule}
    for rule in RULES:
        named = set(re.findall(r"kontext_gateway[\w:]+", rule["expr"]))
        plain = {name for name in named if ":" not in name}
        assert plain <= known.keys(), rule
        assert {name for name in named if ":" in name} <= recorded, rule
        labels = set().union(*(known[name] for name in plain)) or {"job", "instance"}
        used = {word for found in re.findall(r"by \(([^)]*)\)", rule["expr"]) for word in re.findall(r"\w+", found)}
        used |= set(re.findall(r"[{,]\s*(\w+)\s*=", rule["expr"]))
        assert used <= labels, (rule, used - labels)


def test_every_alert_says_how_bad_it_is_and_what_to_do() -> None:
    """A severity of two, a summary and a description."""
    for rule in RULES:
        if "alert" in rule:
            assert rule["labels"]["severity"] in ("warning", "critical")
            assert len(rule["annotations"]["summary"]) > 10
            assert len(rule["annotations"]["description"]) > 20
