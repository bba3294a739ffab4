"""Nothing that a user can set, call, meet or measure is undocumented, and nothing is documented that does not exist."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml

from app.cli import cli
from app.domain import bill, guidance, reconciliation, tenants_file, usage
from app.domain import catalog as catalogue
from app.errors import CODES, OPENAI, GatewayError
from app.installation import offered
from app.main import SURFACES
from app.prodia.faults import MONEY, RETRY
from app.sandbox import SandboxConfig
from app.sandbox.faults import KINDS
from app.sandbox.scenario import switches_of
from app.sandbox.server import create_sandbox
from app.settings import Settings, seconds
from app.surfaces import ops
from app.surfaces.openai_fields import WITHOUT
from app.surfaces.prodia_wire import status_of
from app.telemetry.logs import request_line
from app.telemetry.metrics import Metrics
from app.telemetry.outcome import Outcome
from tests.bench.__main__ import parser

from .page import README, ROOT, anchors, blocks, console, dialogue, named, table

CATALOG = catalogue.load()
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("deploy/**/*.md")]


def test_every_setting_is_documented_with_its_default() -> None:
    """The table of settings is the Settings class."""
    rows = {named(row[0])[0]: row for row in table("Setting")}
    fields = {name.upper(): field for name, field in Settings.model_fields.items() if name != "sandbox"}
    assert list(rows) == list(fields)
    for name, field in fields.items():
        _, unit, shown, meaning = rows[name]
        assert unit, name
        assert meaning, name
        default = field.default
        if shown in ("required", "none", "built in", "`REDIS_URL`"):
            assert default in (None, ""), name
        elif isinstance(default, bool):
            assert shown == f"`{str(default).lower()}`", name
        elif isinstance(default, int | float):
            assert seconds(named(shown)[0]) == default, name
        else:
            assert named(shown) == [str(default)], name


def test_every_error_code_is_documented_with_status_and_retry() -> None:
    """The table of errors is the table in the code."""
    found = {named(code)[0]: (int(status), again == "yes") for code, status, again, *_ in table("Code")}
    assert found == {code: (kind.status, kind.retryable) for code, kind in CODES.items()}


def test_every_field_that_openai_has_and_kontext_has_not_is_documented() -> None:
    """The table is the surface's, with the values that pass and what to do instead."""
    shown = {named(row[0])[0]: (named(row[1]), row[2]) for row in table("Not offered")}
    neutral = {name: [v if isinstance(v, str) else json.dumps(v) for v in f.neutral] for name, f in WITHOUT.items()}
    assert shown == {name: (neutral[name], found.instead) for name, found in WITHOUT.items()}


def test_every_error_that_openai_knows_otherwise_is_documented() -> None:
    """The table of OpenAI's statuses and codes is the table in the code."""
    shown = {named(row[0])[0]: (int(row[1]), named(row[2])[0]) for row in table("Our code")}
    assert shown == OPENAI


def test_every_status_of_the_prodia_surface_is_documented_with_its_codes() -> None:
    """The table of statuses is what the surface answers; a 400 is every code that is not named."""
    shown = [([int(status) for status in row[0].split(", ")], row[1].split("; ")) for row in table("Status of a job")]
    found = {}
    for statuses, texts in shown:
        for status, text in zip(statuses, texts if len(statuses) > 1 else ["; ".join(texts)], strict=True):
            found |= {code: status for code in named(text) if code in CODES}
    answered = {code: status_of(GatewayError(code, "")) for code in CODES}
    assert found == {code: status for code, status in answered.items() if status != 400}


def test_every_metric_is_documented_with_type_and_labels() -> None:
    """The table of metrics is the registry."""
    registry: Any = Metrics(version="0", variants=()).registry
    real = {}
    for collector in registry._collector_to_names:
        if not hasattr(collector, "_labelnames"):
            continue  # the client library's own process_* series
        name = collector._name + ("_total" if collector._type == "counter" else "")
        real[name] = (collector._type, list(collector._labelnames))
    shown = {named(name)[0]: (kind, named(labels)) for name, kind, labels, _ in table("Metric")}
    assert shown == real


def test_metrics_named_in_the_text_exist() -> None:
    """A metric that a sentence tells to watch is one of the table."""
    known = {named(row[0])[0] for row in table("Metric")}
    text = (ROOT / "deploy" / "tenants.example.yaml").read_text() + README
    assert set(re.findall(r"kontext_gateway_\w+", text)) <= known


def _commands() -> Iterator[tuple[str, set[str], int]]:
    """Every command with its options and the number of its arguments."""

    def walk(command: Any, path: str) -> Iterator[tuple[str, set[str], int]]:
        if hasattr(command, "commands"):
            for name, child in command.commands.items():
                yield from walk(child, f"{path} {name}")
            return
        options = [p for p in command.params if p.param_type_name == "option" and p.name != "help"]
        names = {name for option in options for name in (*option.opts, *option.secondary_opts)}
        yield path, names, sum(1 for p in command.params if p.param_type_name == "argument")

    yield from walk(typer.main.get_command(cli), "kontext-gateway")


def test_every_command_and_option_is_documented() -> None:
    """The table of commands is the command tree."""
    shown = {named(command)[0]: set(named(options)) for command, options, _ in table("Command")}
    assert shown == {path: options for path, options, _ in _commands()}


def test_every_command_line_in_readme_can_be_typed() -> None:
    """Commands in examples have the options and the arguments that they are given."""
    known = {path: (options, arguments) for path, options, arguments in _commands()}
    seen = 0
    for block in blocks():
        lines = [c.text for c in dialogue(block)] if block.language == "console" else block.text.split("&&")
        for line in lines if block.language in ("console", "sh") else ():
            if "kontext-gateway " not in line or line.startswith("curl"):
                continue
            words = shlex.split(line[line.index("kontext-gateway") :])
            path = next(" ".join(words[:n]) for n in (3, 2) if " ".join(words[:n]) in known)
            options, arguments = known[path]
            rest = words[len(path.split()) :]
            given = {word for word in rest if re.match("--?[a-z]", word)}
            assert given <= options, line
            flags = {"--sandbox", "--json", "--csv", "--bill-failures", "--no-bill-failures", "--if-missing", "--apply"}
            values = len([word for word in rest if word not in given]) - len(given - flags)
            assert values == arguments - ("--prompts" in given), line
            seen += 1
    assert seen >= 10


def test_every_option_of_the_benchmark_is_documented_with_its_default() -> None:
    """The table of options is the benchmark's parser."""
    options = [option for option in parser()._actions if option.dest != "help"]
    rows = {named(row[0])[0].split()[0]: row[1] for row in table("Option of the benchmark")}
    assert list(rows) == [option.option_strings[0] for option in options]
    for option in options:
        if isinstance(option.default, int) and not isinstance(option.default, bool):
            assert rows[option.option_strings[0]] == str(option.default), option.dest


def test_every_field_of_the_tenants_file_is_documented() -> None:
    """The table of fields is the reader's schema."""

    def walk(kind: Any, path: str) -> Iterator[str]:
        if isinstance(kind, dict):
            for name, child in kind.items():
                yield from walk(child, f"{path}.{name}".lstrip("."))
        else:
            yield path

    real = list(walk(tenants_file._schema(offered(CATALOG)), ""))
    assert sorted(named(row[0])[0] for row in table("Field of a tenant")) == sorted(real)


def test_every_fault_of_the_sandbox_is_documented_with_its_options() -> None:
    """The table of faults is the table in the code."""
    shown = {named(kind)[0]: set(named(options)) for kind, options, _ in table("Fault")}
    assert shown == {kind: set(options.model_fields) for kind, options in KINDS.items()}


def test_every_switch_of_the_sandbox_is_documented_with_its_default() -> None:
    """The table of switches is what can be switched, with the configuration's defaults."""
    found = switches_of(SandboxConfig())
    rows = {named(row[0])[0]: row for row in table("Switch")}
    assert list(rows) == list(found)
    for name, default in found.items():
        shown = rows[name][2]
        assert (None if shown == "none" else named(shown)[0]) == (
            None if default is None else f"{default:g}" if isinstance(default, float) else str(default).lower()
        ), name


def test_every_call_of_sandbox_and_gateway_is_documented() -> None:
    """The tables of calls, taken together with the text, name every route."""
    sandbox = {named(row[0])[0] for row in table("Sandbox call")}
    routes: list[Any] = create_sandbox(SandboxConfig()).routes
    assert sandbox == {f"{method} {route.path}" for route in routes for method in route.methods - {"HEAD"}}
    for surface in (*SURFACES, ops):
        for route in surface.router.routes:
            path = re.sub(r"\{(?!filename)\w+\}", "{id}", route.path)  # type: ignore[attr-defined]
            assert re.search(re.escape(path) + r"[`\" ?]", README) or f"8081{path}" in README, path


def test_every_rule_of_auto_and_advice_is_documented() -> None:
    """The two tables are the rules, in their order, with the figures of their conditions."""
    rules = guidance.load()
    picks = [(named(row[0])[0], row[1]) for row in table("Auto picks")]
    assert [variant for variant, _ in picks] == [rule.variant for rule in rules.auto.rule]
    advice = [(named(row[0])[0], row[1]) for row in table("Advice")]
    assert [code for code, _ in advice] == [rule.code for rule in rules.advice.rule]
    for rule, (_, text) in zip((*rules.auto.rule, *rules.advice.rule), (*picks, *advice), strict=True):
        figures = rule.model_dump(include={"min_words", "max_words", "min_changes", "min_applied"}, exclude_none=True)
        assert all(re.search(rf"\b{figure}\b", text) for figure in figures.values()), text
        assert {*rule.given, *rule.absent} <= set(named(text)), text


def test_every_parameter_and_figure_of_a_report_is_documented() -> None:
    """The tables of the usage call are what it takes and what it gives."""
    rows = {name: row for row in table("Parameter of a report") for name in named(row[0])}
    assert set(rows) == {"from", "to", "per", "group_by", *usage.FILTERS}
    assert named(rows["per"][1]) == list(usage.PERS)
    assert named(rows["group_by"][1]) == list(usage.GROUPS)
    assert str(usage.MAX_DAYS) in rows["to"][1]
    assert [named(row[0])[0] for row in table("Figure")] == ["images", "delivered", *usage.MONEY]
    assert f"{usage.MAX_ROWS:,} rows" in README


def test_every_column_of_a_bill_and_every_verdict_is_documented() -> None:
    """The tables are what the parser takes and what the matcher tells."""
    assert [named(row[0])[0] for row in table("Column of a bill")] == list(bill.COLUMNS)
    assert [named(row[0])[0] for row in table("Verdict")] == list(reconciliation.TOLD)


def test_the_outcome_table_is_the_policy_in_force() -> None:
    """Outcome, default policy and number of re-sends."""
    shown = {named(row[0])[0]: (named(row[2])[0], int(row[3])) for row in table("Outcome")}
    assert shown == {outcome: (money, RETRY.get(outcome, 0)) for outcome, money in MONEY.items()}


def test_the_catalogue_tables_are_the_catalogue() -> None:
    """Variants with type, price and time; parameters with those that have them and with every choice."""
    shown = {
        (named(r[0])[0], r[1]): (named(r[2])[0], r[3].lstrip("$"), float(r[4].split()[0])) for r in table("Variant")
    }
    real = {
        (job.variant, job.operation): (job.type, job.price_usd, job.typical_seconds) for job in CATALOG.enabled.values()
    }
    assert shown == real
    columns = ((("generate", "pro"), ("generate", "max")), (("edit", "pro"), ("edit", "max")), (("edit", "dev"),))
    rows = {named(row[0])[0]: row for row in table("Parameter")}
    for position, column in enumerate(columns, 1):
        for place in column:
            has = {name for name, row in rows.items() if row[position] != "-"}
            assert has == set(CATALOG.enabled[place].parameters), place
    for job in CATALOG.enabled.values():
        for name, parameter in job.parameters.items():
            text = " ".join(rows[name])
            bounds = [b for b in (parameter.minimum, parameter.maximum, parameter.max_length) if b is not None]
            assert all(str(bound) in text.replace(",", "") for bound in bounds), name
            assert parameter.choices is None or named(rows[name][4]) == list(parameter.choices)


def test_every_field_of_a_log_line_is_documented() -> None:
    """What a request's line can hold is what the table lists."""
    full = Outcome("req", tenant="t", key_id="k", operation="edit", variant="pro", source="cache", job_id="j",
                   safety_action="requested", charged="no", attempts=1)  # fmt: skip
    real = {*request_line(full, "POST", 200, 1.0), "timestamp", "level", "event"}
    assert {name for row in table("Log field") for name in named(row[0])} == real


def test_samples_can_be_read() -> None:
    """JSON parses; a tenants file and a catalogue load as `kontext-gateway check` loads them; other YAML parses."""
    seen = set()
    for block in blocks():
        seen.add(block.language)
        if block.language == "json":
            json.loads(block.text)
        elif block.language == "toml":
            tomllib.loads(block.text)
            assert len(catalogue.load(block.text, file="README.md").enabled) == len(CATALOG.enabled) + 1
        elif block.language == "yaml" and block.text.startswith("version:"):
            assert tenants_file.load(block.text, file="README.md", variants=offered(CATALOG)).tenants
        elif block.language == "yaml":
            assert yaml.safe_load(block.text)
    samples = {"json", "toml", "yaml", "console", "python"}
    assert samples <= seen <= samples | {"sh", "text", "js"}


def test_the_example_tenants_file_loads() -> None:
    """deploy/tenants.example.yaml is a file that the gateway takes."""
    text = (ROOT / "deploy" / "tenants.example.yaml").read_text("utf-8")
    assert tenants_file.load(text, file="tenants.example.yaml", variants=offered(CATALOG)).tenants


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_every_link_leads_somewhere(path: Path) -> None:
    """Relative links name files of the repository, fragments name headings."""
    text = path.read_text("utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith("https://"):
            continue
        file, _, fragment = target.partition("#")
        at = (path.parent / file) if file else path
        assert at.exists(), target
        assert not fragment or fragment in anchors(at.read_text("utf-8")), target


def _own_files() -> list[Path]:
    """Every text file of the repository; without git, everything outside hidden folders and caches."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if listed.returncode == 0:
        return [ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]
    own = ("app", "tests", "deploy")
    return [
        *(p for p in ROOT.glob("*") if p.is_file()),
        *(p for name in own for p in (ROOT / name).rglob("*") if p.is_file()),
    ]


def test_the_project_speaks_of_itself_alone() -> None:
    """No file names a folder of the machine it was written on, a package registry's host, or an issue by number."""
    # Each pattern is broken up, so that this file does not hold what it looks for.
    here = [r"/work" r"/\w", r"/tmp" r"/w\b", r"/root" r"/", r"/home" r"/\w"]
    registries = [
        r"pypi\." r"org",
        r"files\.python" r"hosted",
        r"registry\." r"npmjs",
        r"index" r"-url",
        r"proxy\." r"golang",
    ]
    issues = [r"\b[Ii]ssue" r" ?#?\d", r"(?<![\w&'\"#])#" r"\d{1,5}\b(?!;)"]
    pattern = re.compile("|".join(here + registries + issues))
    wrong = []
    for path in _own_files():
        try:
            text = path.read_text("utf-8")
        except UnicodeDecodeError:
            continue
        wrong += [f"{path.relative_to(ROOT)}: {found[0]}" for found in pattern.finditer(text)]
    assert not wrong


def test_readme_has_no_more_commands_to_run_than_two() -> None:
    """One `sh` block installs and starts, one tests; everything else is shown as a dialogue."""
    runnable = [(block.section, len(block.text.splitlines())) for block in blocks() if block.language == "sh"]
    assert runnable == [("Run it", 1), ("Test it", 1)]
    assert all(command.text for command in console("Use it"))


def test_the_list_at_the_top_has_every_chapter() -> None:
    top, _, rest = README.partition("\n## ")
    assert sorted(re.findall(r"\[([^]]+)\]\(#", top)) == sorted(re.findall(r"^## (.+)$", "## " + rest, re.M))
