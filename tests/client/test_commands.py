"""`generate` and `edit` as processes: what they print, where they write, what they leave alone, how they end."""

from __future__ import annotations

import hashlib
import json
from base64 import b64encode
from pathlib import Path
from typing import Any

import pytest
import typer.main
from PIL import Image

from app.cli import cli
from app.domain import catalog
from tests.client.running import Shop, amiss, problem
from tests.fleet import free_port, get_json


def kind(path: Path) -> str | None:
    """The format of a picture."""
    with Image.open(path) as picture:
        return picture.format


def test_a_picture_and_an_edit_are_saved_and_told_in_one_line_each(shop: Shop) -> None:
    """File, seed, source, cost and job id on standard output, nothing on standard error."""
    done = shop.run("generate", "a lighthouse", "--seed", "11", "-o", "first.png")
    assert (done.returncode, done.stderr) == (0, "")
    file, seed, source, cost, job = done.stdout.rstrip("\n").split("\t")
    assert (file, seed, source, cost, job[:4]) == ("first.png", "seed 11", "upstream", "$0.040000", "job_")
    done = shop.run("edit", "first.png", "make it night", "--seed", "12", "--json")
    told = json.loads(done.stdout)
    assert (told["n"], told["file"], told["seed"], told["cost"]["usd"]) == (1, told["id"] + ".jpg", 12, "0.040000")
    assert [kind(shop.folder / name) for name in ("first.png", told["file"])] == ["PNG", "JPEG"]
    assert told["input"]["sha256"] == hashlib.sha256((shop.folder / "first.png").read_bytes()).hexdigest()
    third = shop.run("edit", told["image"]["id"], "make it day", "-o", "day.webp")
    assert third.returncode == 0, third.stderr


def test_every_parameter_of_the_catalogue_is_an_option_of_its_command() -> None:
    """Also those that are no parameters of a model."""
    for (operation, _), job in catalog.load().enabled.items():
        command = typer.main.get_command(cli).commands[operation]  # type: ignore[attr-defined]
        options = {name for option in command.params for name in option.opts}
        wanted = {*job.parameters, "variant", "output_format", "user", "tag"} | ({"fit"} if job.inputs else set())
        assert {"--" + name.replace("_", "-") for name in wanted - {"prompt"}} <= options, operation


def test_options_reach_the_upstream_as_they_were_given_and_only_then(shop: Shop) -> None:
    """Integers, numbers, booleans, choices, and a field set by its name."""
    Image.new("RGB", (512, 512), "teal").save(shop.folder / "in.png")
    dev = ("--variant", "dev", "--style-preset", "anime", "--width", "512", "--height", "768", "--steps", "12")
    more = ("--guidance-scale", "3.5", "--progressive", "--seed", "5", "--tag", "a", "--tag", "b", "--user", "u1")
    done = shop.run("edit", "in.png", "make it blue", *dev, *more, "--fit", "strict", "-o", "out.jpg")
    assert done.returncode == 0, done.stderr
    done = shop.run("generate", "a red boat", "--set", "aspect_ratio=3:2", "--set", "seed=9", "--prompt-upsampling")
    assert done.returncode == 0, done.stderr
    edit, made = (job["config"] for job in get_json(shop.fleet.upstream + "/sandbox/jobs")["jobs"])
    del edit["prompt"], made["prompt"]
    assert edit == {
        "style_preset": "anime", "width": 512, "height": 768, "steps": 12, "guidance_scale": 3.5, "progressive": True,
        "seed": 5,
    }  # fmt: skip
    assert (made["aspect_ratio"], made["seed"], made["prompt_upsampling"]) == ("3:2", 9, True)


@pytest.mark.parametrize("low", [False, True], ids=["high", "low"])
@pytest.mark.parametrize("operation", ["generate", "edit"])
def test_every_option_is_in_the_request_as_it_was_given(shop: Shop, operation: str, low: bool) -> None:
    """All of them at once, also with values that count as false; what is not given is not sent."""
    texts = {"variant": "pro", "aspect_ratio": "3:2", "output_format": "webp", "user": "u1"}
    numbers = {"seed": 0 if low else 5, "safety_tolerance": 0 if low else 2}
    switches = {"prompt_upsampling": not low}
    if operation == "edit":
        texts |= {"style_preset": "anime", "fit": "strict"}
        numbers |= {"width": 0 if low else 512, "height": 0 if low else 768, "steps": 0 if low else 12}
        numbers |= {"guidance_scale": 0.0 if low else 3.5}
        switches |= {"progressive": not low}
    words = [word for name, value in (texts | numbers).items() for word in (f"--{name.replace('_', '-')}", str(value))]
    words += [f"--{'' if value else 'no-'}{name.replace('_', '-')}" for name, value in switches.items()]
    words += ["--tag", "a", "--tag", "b", "--set", "other=0", "--set", "more=text"]
    (shop.folder / "in.png").write_bytes(b"a picture")
    source = ["in.png"] if operation == "edit" else []
    with amiss([problem("422 Unprocessable Entity", '{"code": "invalid_request", "charged": "no"}')] * 2) as server:
        assert shop.run(operation, *source, "a red boat", *words, GATEWAY_URL=server.url).returncode == 1
        assert shop.run(operation, *source, "a red boat", GATEWAY_URL=server.url).returncode == 1
    always: dict[str, Any] = {"prompt": "a red boat", "response_format": "b64_json"}
    if operation == "edit":
        always["image"] = {"b64": b64encode(b"a picture").decode()}
    full, bare = map(json.loads, server.bodies)
    assert full == always | texts | numbers | switches | {"tags": ["a", "b"], "other": 0, "more": "text"}
    assert bare == always


def test_a_file_that_is_there_is_not_replaced_and_nothing_is_paid_to_find_out(shop: Shop) -> None:
    """With --force it is replaced."""
    (shop.folder / "mine.jpg").write_text("precious")
    done = shop.run("generate", "a red boat", "-o", "mine.jpg")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "mine.jpg: is there already; --force replaces files\n"
    assert (shop.folder / "mine.jpg").read_text() == "precious"
    assert shop.received == 0
    assert shop.run("generate", "a red boat", "-o", "mine.jpg", "--force").returncode == 0
    assert kind(shop.folder / "mine.jpg") == "JPEG"


def test_a_name_that_is_taken_while_the_picture_is_made_is_left_alone(shop: Shop) -> None:
    """The picture is paid for, so it is saved beside it."""
    running = shop.started("generate", "a red boat", "--seed", "21", "-o", "new.jpg")
    while shop.fleet.stats()["in_progress"] == 0:
        assert running.poll() is None
    (shop.folder / "new.jpg").write_text("precious")
    out, errors = running.communicate(timeout=60)
    assert (running.returncode, errors) == (0, b"")
    assert out.startswith(b"new-2.jpg\t")
    assert (shop.folder / "new.jpg").read_text() == "precious"
    assert kind(shop.folder / "new-2.jpg") == "JPEG"


def test_a_picture_can_go_to_standard_output(shop: Shop) -> None:
    """Then the line goes to standard error."""
    running = shop.started("generate", "a red boat", "--output-format", "png", "-o", "-")
    out, errors = running.communicate(timeout=60)
    assert out.startswith(b"\x89PNG")
    assert errors.startswith(b"-\tseed ")
    assert list(shop.folder.iterdir()) == []


def test_what_was_changed_on_the_way_is_told(shop: Shop) -> None:
    """A tolerance above the ceiling, a picture that was made to fit, and the variant that was chosen."""
    Image.new("RGB", (2400, 1200), "teal").save(shop.folder / "large.png")
    done = shop.run("generate", "a red boat", "--safety-tolerance", "6")
    assert done.stderr == "note: safety_tolerance 6 was lowered to 4, the ceiling\n"
    done = shop.run("edit", "large.png", "make it blue")
    assert done.stderr == "note: the input was made to fit, 1920x960\n"
    done = shop.run("generate", "a red boat", "--variant", "auto")
    assert done.stderr.startswith("note: variant pro was chosen, because ")


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (["generate", "hi"], 1, "invalid_request: `prompt` must have 3 to 4096 characters. (nothing was charged)"),
        (["generate", "a boat", "--variant", "dev"], 1, "invalid_request: `variant` must be one of pro, max"),
        (["generate", "a boat", "--set", "colour=red"], 1, "invalid_request: `colour` is not a field of generate."),
        (["edit", "text.txt", "make it blue"], 1, "unsupported_type: "),
        (["edit", "none.jpg", "make it blue"], 2, "none.jpg: No such file or directory"),
        (["edit", ".", "make it blue"], 2, ".: Is a directory"),
        (["generate", "a boat", "--seed", "first"], 2, "Usage: "),
        (["generate"], 2, "give one prompt, or --prompts FILE"),
        (["generate", "a boat", "--prompts", "text.txt"], 2, "give one prompt, or --prompts FILE"),
        (["generate", "a boat", "--set", "colour"], 2, "--set colour: must be NAME=VALUE of a field that no other"),
        (["generate", "a boat", "--seed", "1", "--set", "seed=2"], 2, "--set seed: must be NAME=VALUE of a field"),
        (["generate", "a boat", "-o", "boat.gif"], 2, "boat.gif: must end in .jpg, .jpeg, .png, .webp, or give"),
        (["generate", "a boat", "-o", "none/boat.jpg"], 2, "none: is not a directory"),
        (["generate", "a boat", "-o", "{seed}/boat.jpg"], 2, "{seed}/boat.jpg: {seed} and {job_id} belong into"),
        (["generate", "a boat", "--key-file", "none"], 2, "none: No such file or directory"),
        (["generate", "a boat", "--key-file", "empty"], 2, "empty: is empty"),
        (["generate", "a boat", "--url", "gopher://here"], 2, "the gateway's address must be http(s)://host[:port]"),
        (["generate", "a boat", "--timeout", "0"], 2, "timeout must be above 0, and retries not below 0"),
    ],
)
def test_a_mistake_is_one_line_and_costs_nothing(shop: Shop, words: list[str], code: int, told: str) -> None:
    """1 for what the gateway refuses, 2 for what is wrong here."""
    (shop.folder / "text.txt").write_text("a text, not a picture\n")
    (shop.folder / "empty").touch()
    before = set(shop.folder.iterdir())
    done = shop.run(*words)
    assert (done.returncode, done.stdout) == (code, "")
    assert done.stderr.startswith(told)
    assert told == "Usage: " or done.stderr.count("\n") == 1
    assert set(shop.folder.iterdir()) == before
    assert shop.received == 0


def test_a_gateway_that_is_not_there_is_exit_code_3(shop: Shop) -> None:
    """It says where it was looked for."""
    port = free_port()
    done = shop.run("generate", "a red boat", "--url", f"http://127.0.0.1:{port}")
    assert done.returncode == 3
    assert done.stderr.startswith(f"unreachable: no connection to 127.0.0.1:{port}: ")
    assert done.stderr.endswith("(nothing was charged)\n")
    assert done.stderr.count("\n") == 1


def test_a_failure_that_may_have_been_charged_says_so(shop: Shop) -> None:
    """In the line for people and in the document for machines; it is not sent again."""
    shop.fleet.faults([{"kind": "cut_after_accept", "count": 1}])
    done = shop.run("generate", "a red boat", "--json")
    assert done.returncode == 1
    assert done.stderr.startswith("upstream_failed: ")
    assert done.stderr.endswith("(it may have been charged)\n")
    assert json.loads(done.stdout)["error"]["charged"] == "unknown"
    assert shop.received == 1


def test_the_key_comes_from_the_environment_or_a_file_and_from_no_option(shop: Shop) -> None:
    """No option takes the key; a file's line end is not part of it."""
    (shop.folder / "key").write_text(shop.keys["acme"] + "\n")
    assert shop.run("generate", "a red boat", "--key-file", "key", GATEWAY_KEY="").returncode == 0
    done = shop.run("generate", "a red boat", GATEWAY_KEY="")
    assert (done.returncode, done.stderr) == (2, "GATEWAY_KEY is not set, and --key-file is not given\n")
    for name in ("generate", "edit"):
        command = typer.main.get_command(cli).commands[name]  # type: ignore[attr-defined]
        assert [o for p in command.params for o in p.opts if "key" in o] == ["--key-file"]


def test_a_full_disk_is_told_with_the_id_that_the_picture_is_kept_under(shop: Shop) -> None:
    """It was paid for, so it can still be had."""
    if not Path("/dev/full").exists():
        raise AssertionError("this system has no /dev/full")
    done = shop.run("generate", "a red boat", "-o", "/dev/full", "--force")
    assert done.returncode == 1
    assert "No space left on device; the picture is kept as img_" in done.stderr
