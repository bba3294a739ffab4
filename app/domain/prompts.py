"""What can be told of a prompt without understanding it: its words, and how many independent changes it asks for.

Pure. Called by `auto` and `advice` with the words of `guidance.toml`. Every expression is an alternation of plain
phrases or a run of one class of characters, so that the time grows with the prompt's length alone. The count is
conservative: what is not plainly an instruction is none.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from pydantic import BaseModel, ConfigDict

LONGEST = 4_096
"""Characters of a prompt that are read; it may be longer before it is validated, or by an operator's catalogue."""

# Text in quotes is to be shown, not to be done. No pair can begin inside another, so that each character is met once.
_QUOTED = re.compile(r'"[^"]*"|“[^“”]*”|«[^«»]*»|(?<!\w)\'[^\']*\'(?!\w)')
_NUMBERED = re.compile(r"(?<![\w.])\(?\d{1,2}[.)](?=\s)", re.ASCII)
_BULLET = re.compile(r"[\s*•–—>#-]+")
_APOSTROPHES = str.maketrans({"’": "'", "‘": "'"})


class Grammar(BaseModel):
    """The words by which changes are counted; what each list means is written in the file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    sentence_ends: tuple[str, ...]
    joints: tuple[str, ...]
    lead_ins: tuple[str, ...]
    verbs: tuple[str, ...]
    verbs_or_nouns: tuple[str, ...]
    determiners: tuple[str, ...]
    back_references: tuple[str, ...]
    keeps: tuple[str, ...]
    carried_verbs: tuple[str, ...]
    carried_by: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Reading:
    """One prompt as it was read. `text` is lower case with single spaces."""

    text: str
    words: int
    changes: int


def read(prompt: object, grammar: Grammar) -> Reading:
    """Read a prompt; what is not a text reads as an empty one, which is refused elsewhere."""
    if not isinstance(prompt, str):
        return Reading("", 0, 0)
    plain = prompt[:LONGEST].lower().translate(_APOSTROPHES)
    lines = (" ".join(line.split()) for line in _QUOTED.sub(" ", plain).splitlines())
    return Reading(" ".join(plain.split()), len(plain.split()), _changes("\n".join(lines), grammar))


def spotted(phrases: tuple[str, ...], prompt: Reading) -> bool:
    """Whether the prompt has one of the phrases as whole words."""
    return _any_of(phrases).search(prompt.text) is not None


def _changes(text: str, grammar: Grammar) -> int:
    seen: set[str] = set()
    for line in _NUMBERED.split(text):
        for sentence in filter(None, _any_of(grammar.sentence_ends).split(line)):
            seen.update(_of_sentence(sentence, grammar))
    return len(seen)


def _of_sentence(sentence: str, grammar: Grammar) -> Iterator[str]:
    """The clauses of one sentence that each ask for a change of their own."""
    instructed, verb = False, ""
    for clause in _any_of(grammar.joints).split(sentence):
        clause = _bare(clause, grammar)
        if not clause:
            continue
        if found := _instruction(clause, grammar):
            back = _any_of(grammar.back_references).match(clause[found.end() :].lstrip())
            if not (instructed and back):
                yield clause
            instructed, verb = True, found[0]
        elif _any_of(grammar.keeps).match(clause):
            instructed, verb = True, ""
        elif verb in grammar.carried_verbs and _any_of(grammar.determiners).match(clause):
            if _any_of(grammar.carried_by).search(clause):
                yield clause
        elif not instructed:
            return


def _instruction(clause: str, grammar: Grammar) -> re.Match[str] | None:
    """The verb that a clause begins with, where it is one and has something to change."""
    if found := _any_of(grammar.verbs).match(clause):
        return found if clause[found.end() :].strip() else None
    found = _any_of(grammar.verbs_or_nouns).match(clause)
    return found if found and _any_of(grammar.determiners).match(clause[found.end() :].lstrip()) else None


def _bare(clause: str, grammar: Grammar) -> str:
    """The clause without what may stand before its verb."""
    at, lead_in = 0, _any_of(grammar.lead_ins)
    while found := _BULLET.match(clause, at) or lead_in.match(clause, at):
        at = found.end()
    return clause[at:].strip()


@lru_cache(maxsize=64)
def _any_of(phrases: tuple[str, ...]) -> re.Pattern[str]:
    """Finds the first of the phrases as whole words; a mark such as a comma needs no space around it."""
    longest_first = sorted(phrases, key=len, reverse=True)
    whole = (rf"(?<![\w-]){re.escape(one)}(?![\w-])" if one[0].isalnum() else re.escape(one) for one in longest_first)
    return re.compile("|".join(whole))
