"""Many prompts at once: a bound that holds, a failure that stops nothing, names that never collide, Ctrl-C, the bar."""

from __future__ import annotations

import json
import os
import pty
import signal

from PIL import Image

from tests.client.running import Shop, amiss, problem
from tests.fleet import get_json, wait_until
from tests.pipeline.calls import generate

PROMPTS = "".join(f"a boat of colour {number}\n" for number in range(9))


def test_never_more_are_under_way_than_was_said(shop: Shop) -> None:
    """By what the upstream saw at once; all of the width is used."""
    done = shop.run("generate", "--prompts", "-", "--jobs", "3", "-o", "made/", stdin=PROMPTS)
    assert done.returncode == 0, done.stderr
    stats = shop.fleet.stats()
    assert (stats["received"], stats["peak_in_progress"]) == (9, 3)
    assert len(list((shop.folder / "made").iterdir())) == len(done.stdout.splitlines()) == 9
    assert done.stderr == "9 of 9 pictures, $0.360000 in all\n"


def test_a_prompt_that_fails_stops_no_other_and_is_told_by_its_number(shop: Shop) -> None:
    """One after the other, text and JSON lines mixed, each with its own fields and file; exit code 1."""
    lines = ["a red boat", "", "hi", '{"prompt": "a blue boat", "seed": 5, "output": "blue.png"}', '{"prompt": "no"}']
    (shop.folder / "prompts.txt").write_text("\n".join(lines))
    done = shop.run(
        "generate", "--prompts", "prompts.txt", "--seed", "4", "-o", "{n}-{seed}.webp", "--json", "--jobs", "1"
    )
    assert done.returncode == 1
    told = {line["n"]: line for line in map(json.loads, done.stdout.splitlines())}
    assert (told[1]["file"], told[3]["file"], told[3]["seed"]) == ("1-4.webp", "blue.png", 5)
    assert told[2]["error"]["field"] == told[4]["error"]["field"] == "prompt"
    errors = done.stderr.splitlines()
    assert errors[-1] == "2 of 4 pictures, $0.080000 in all"
    assert sorted(line[:18] for line in errors[:-1]) == ["2: invalid_request", "4: invalid_request"]
    assert sorted(path.name for path in shop.folder.iterdir()) == ["1-4.webp", "blue.png", "prompts.txt"]


def test_a_gateway_that_goes_away_half_way_is_exit_code_1_and_3_only_if_it_was_never_reached(shop: Shop) -> None:
    """After a picture, after a refusal, and from the start."""
    json_reply = {"Accept": "application/json"}
    made = generate(shop.url, shop.keys["acme"], json_reply, prompt="a red boat", response_format="b64_json").body
    head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(made)}\r\n\r\n".encode()
    refused = problem("422 Unprocessable Entity", '{"code": "invalid_request", "charged": "no"}')
    for answers, code in (([head + made], 1), ([refused], 1), ([None], 3)):
        with amiss(answers) as server:
            done = shop.run(
                "generate", "--prompts", "-", "--jobs", "1", stdin="a boat\na ship\n", GATEWAY_URL=server.url
            )
        assert (done.returncode, len(server.heads)) == (code, 1), done.stderr
        assert "2: unreachable: " in done.stderr


def test_one_picture_is_edited_in_several_ways(shop: Shop) -> None:
    """The numbers are in the names."""
    Image.new("RGB", (512, 512), "teal").save(shop.folder / "in.png")
    done = shop.run("edit", "in.png", "--prompts", "-", "-o", "out-{n}.png", stdin="make it night\nmake it day\n")
    assert done.returncode == 0, done.stderr
    assert {path.name for path in shop.folder.iterdir()} == {"in.png", "out-1.png", "out-2.png"}


def test_two_equal_pictures_are_two_files_even_with_force(shop: Shop) -> None:
    """They are one job, so the names are the same; a command never overwrites what it has just written."""
    done = shop.run("generate", "--prompts", "-", "--seed", "31", "--force", stdin="a red boat\na red boat\n")
    assert done.returncode == 0, done.stderr
    first, second = sorted(path.name for path in shop.folder.iterdir())
    assert first.removesuffix("-2.jpg") == second.removesuffix(".jpg")
    assert done.stderr == "2 of 2 pictures, $0.040000 in all\n"


def test_a_mistake_in_the_file_is_found_before_anything_is_paid_for(shop: Shop) -> None:
    """With its line, and exit code 2."""
    (shop.folder / "taken.jpg").touch()
    for text, told in (
        ("a red boat\n{broken\n", "standard input, line 2: begins with { and is not JSON"),
        ('a red boat\n{"seed": 1}\n', "standard input, line 2: `prompt` must be a text"),
        ('{"prompt": "a boat", "image": "x"}\n', "standard input, line 1: `image` cannot be set here"),
        (
            'a boat\n{"prompt": "a boat", "output": "taken.jpg"}\n',
            "taken.jpg: is there already; --force replaces files",
        ),
        ('{"prompt": "b", "output": "x.jpg"}\n' * 2, "x.jpg: is the name of several pictures; use a directory, or {n}"),
        ("\n \n", "standard input: holds no prompt"),
    ):
        done = shop.run("generate", "--prompts", "-", stdin=text)
        assert (done.returncode, done.stdout, done.stderr[: len(told)]) == (2, "", told)
    for output, told in (("one.jpg", "one.jpg: is the name of several pictures"), ("-", "-o -: is for one picture")):
        done = shop.run("generate", "--prompts", "-", "-o", output, stdin="a red boat\na blue boat\n")
        assert (done.returncode, done.stdout, done.stderr[: len(told)]) == (2, "", told)
    assert shop.received == 0


def test_ctrl_c_ends_in_order_and_says_what_was_paid(shop: Shop) -> None:
    """One is made, two are under way and found among the recent jobs, the rest is never sent."""
    shop.fleet.faults([{"kind": "hang", "after": 1}])
    (shop.folder / "prompts.txt").write_text(PROMPTS)
    running = shop.started("generate", "--prompts", "prompts.txt", "--jobs", "2", "-o", "made/")
    try:
        wait_until(lambda: shop.received == 3, 20)
        running.send_signal(signal.SIGINT)
        out, errors = running.communicate(timeout=20)
    finally:
        running.kill()
        running.wait()
    assert running.returncode == 130
    assert len(out.splitlines()) == 1
    assert errors.decode() == (
        "interrupted: 1 pictures made, $0.040000 paid; 2 under way: "
        "whatever was sent on to the upstream already is made and paid for, "
        "and is found with GET /v1/jobs, or Client.jobs() in Python\n"
    )
    assert shop.received == 3
    jobs = get_json(f"{shop.url}/v1/jobs?limit=3", token=shop.keys["acme"])["data"]
    assert sorted(job["charged"] for job in jobs) == ["unknown", "unknown", "yes"]
    assert len(list((shop.folder / "made").iterdir())) == 1


def watched(shop: Shop, *words: str) -> tuple[int, str, str]:
    """A command with a terminal as its standard error: exit code, standard output, and what the terminal was sent."""
    master, slave = pty.openpty()
    running = shop.started(*words, stderr=slave)
    os.close(slave)
    seen = b""
    try:
        while data := _read(master):
            seen += data
        out, _ = running.communicate(timeout=20)
    finally:
        running.kill()
        running.wait()
        os.close(master)
    return running.returncode, out.decode(), seen.decode()


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65_536)
    except OSError:  # what Linux says when the last writer has gone
        return b""


def test_a_terminal_is_shown_a_bar_that_finishes_and_a_pipe_is_not(shop: Shop) -> None:
    """The bar moves against the typical time, is full at the end, and the cursor is shown again."""
    code, out, seen = watched(shop, "generate", "a red boat", "-o", "boat.jpg")
    assert code == 0
    assert out.startswith("boat.jpg\tseed ")
    assert "\x1b" not in out
    assert "0/1" in seen
    assert "1/1" in seen.split("\x1b[2K")[-1]
    assert seen.rstrip().endswith("\x1b[?25h")
    assert len({frame for frame in seen.split("\x1b[2K") if "0/1" in frame}) >= 2
    done = shop.run("generate", "a red boat")
    assert (done.returncode, done.stderr) == (0, "")


def test_the_bar_stands_aside_for_errors(shop: Shop) -> None:
    """An error is a line of its own on the terminal, and the bar goes on below it."""
    (shop.folder / "prompts.txt").write_text("hi\na red boat\n")
    code, _, seen = watched(shop, "generate", "--prompts", "prompts.txt", "--jobs", "1")
    assert code == 1
    assert "1: invalid_request: `prompt` must have 3 to 4096 characters. (nothing was charged)\r\n" in seen
    assert "2/2" in seen
    assert seen.endswith("1 of 2 pictures, $0.040000 in all\r\n")
