"""How many independent changes a prompt asks for, told by its words alone."""

from __future__ import annotations

import sys

import pytest

from app.domain.guidance import load
from app.domain.prompts import read, spotted

GRAMMAR = load().changes
SEVERAL = {
    "make the sky stormy and add a boat": 2,
    "Make the sky stormy, add a boat and remove the pier": 3,
    "Remove the car. Add a tree.": 2,
    "remove the car; add a tree": 2,
    "remove the car\nadd a tree": 2,
    "1. remove the car 2. add a tree 3. paint the wall white": 3,
    "1) remove the car\n2) add a tree": 2,
    "(1) remove the car (2) add a tree": 2,
    "- remove the car\n- add a tree\n- make it night": 3,
    "* Remove the car\n* Add a tree": 2,
    "please remove the car and then add a tree": 2,
    "First remove the car, then add a tree, finally make it rain": 2,
    "Could you remove the car? Also, add a tree.": 2,
    "I want you to change the wall to red, and also to be nice, add a lamp": 2,
    "change the sky to orange and the car to blue": 2,
    "turn the man into a robot and the dog into a wolf": 2,
    "replace the sofa with a bench & repaint the wall green": 2,
    "REMOVE THE CAR AND ADD A TREE": 2,
    "get rid of the wires, brighten the face": 2,
    "keep the face unchanged, add a hat and remove the glasses": 2,
    "in the background, add a castle and remove the wires": 2,
    "remove the man's hat and add a dog": 2,
    "make it night and add a moon": 2,
    "turn the sky red, blur the background": 2,
    "remove the hat, replace it with a crown, and add a cape": 2,
    "don't touch the face; recolor the dress green; add a bag": 2,
    "swap the shoes for boots plus add a scarf": 2,
    "Step 1) remove the car. Step 2) add a tree.": 2,
    "make the dog’s collar red and add a bone": 2,
    "give her a hat as well as remove the earrings": 2,
}
ONE_OR_NONE = {
    "make the sky stormy": 1,
    "add a hat": 1,
    "make the sky stormy and dramatic": 1,
    "make the sky stormy, dark and windy": 1,
    "remove the man and the woman": 1,
    "remove the hat, the glasses and the beard": 1,
    "remove the hat and replace it with a crown": 1,
    "add salt and pepper shakers": 1,
    "add a man walking, swimming and smiling": 1,
    "make her smile and wave": 1,
    "remove the car, remove the car": 1,
    "remove the car but keep the tree": 1,
    "don't remove the car, don't add a tree": 0,
    'change the sign to say "remove the car, add a tree and make it red"': 1,
    "change the sign to say 'stop, add fuel'": 1,
    "change the sign to say “stop, add fuel”": 1,
    "a lighthouse at dawn": 0,
    "a cat and a dog, with a hat": 0,
    "a machine that can lift, move boxes and add labels": 0,
    "a robot designed to remove dust, add polish and paint walls": 0,
    "cut glass, light rain, paint splashes and colour": 0,
    "turn of the century, set design, cover art": 0,
    "dress, place, age": 0,
    "make-up, add-on, cut-out": 0,
    "portrait of a woman, 85 mm, f/1.8, 4k": 0,
    "add": 0,
    "remove, add, make": 0,
    "a photo taken at 10. The light is low.": 0,
    "the address is 1, Make Street; the Add Road": 0,
    "": 0,
}


@pytest.mark.parametrize(("prompt", "changes"), [*SEVERAL.items(), *ONE_OR_NONE.items()])
def test_changes_are_counted(prompt: str, changes: int) -> None:
    assert read(prompt, GRAMMAR).changes == changes


def test_the_table_holds_both_kinds() -> None:
    assert len(SEVERAL) >= 20
    assert len(ONE_OR_NONE) >= 20
    assert min(SEVERAL.values()) >= 2 > max(ONE_OR_NONE.values())


def test_what_is_no_text_reads_as_nothing() -> None:
    for prompt in (None, 7, ["add a hat and remove the car"], {"add": 1}):
        assert read(prompt, GRAMMAR).changes == read(prompt, GRAMMAR).words == 0


def test_only_so_much_of_a_prompt_is_read() -> None:
    """A body may hold megabytes in the place of a prompt, and is refused only after it was looked at."""
    assert read("hat " * 1_000_000, GRAMMAR).words == 1_024


def test_words_are_whole_and_their_case_does_not_matter() -> None:
    prompt = read("A MASK,  and\n unmasked Faces", GRAMMAR)
    assert prompt.words == 5
    assert spotted(("mask",), prompt)
    assert spotted(("and unmasked",), prompt)
    assert not spotted(("masked", "face"), prompt)


NASTY = [
    "and ", ",", "\n", " ", "'", '"', "“", "“”", "1. ", "(1) ", "- ", "please ", "make ", "make it ", "a",
    "add a hat and ",
    "change the a to b and ", "'a' ", "\u0130", "\U0001f30a", "remove the ", "(", ".", "\u2028", "-", "* ", "first, ",
]  # fmt: skip


def steps(size: int, piece: str) -> int:
    """Lines of Python that a prompt of this size takes: unlike a clock it says the same on every machine."""
    counted = 0

    def trace(frame: object, event: str, argument: object) -> object:
        nonlocal counted
        counted += 1
        return trace

    text = (piece * size)[:size]
    read(text, GRAMMAR)
    sys.settrace(trace)  # type: ignore[arg-type]
    try:
        read(text, GRAMMAR)
    finally:
        sys.settrace(None)
    return counted


@pytest.mark.parametrize("piece", NASTY)
def test_twice_the_prompt_is_at_most_twice_the_work(piece: str) -> None:
    """Where a loop is Python's; the expressions themselves are held by the test below."""
    assert steps(4_096, piece) <= 2.2 * steps(2_048, piece) + 100


def test_no_expression_repeats_more_than_one_character_at_a_time() -> None:
    """An expression of plain phrases and single-class runs cannot go back and forth over a prompt."""
    from app.domain import prompts

    own = [prompts._QUOTED, prompts._NUMBERED, prompts._BULLET]
    made = [prompts._any_of(phrases) for phrases in GRAMMAR.__dict__.values()]
    for pattern in [*own, *made]:
        assert ")*" not in pattern.pattern
        assert ")+" not in pattern.pattern
        assert "){" not in pattern.pattern
        assert ".*" not in pattern.pattern.replace(r"\.", "")
    assert len(made) == 10
