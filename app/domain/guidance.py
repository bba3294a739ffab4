"""Rules about asking well, read from `guidance.toml`: how changes are counted, what `auto` picks, what advice is given.

Pure. Loaded by the composition root at start; a mistake in the file is a `ValueError` that names the field. Read by
`auto` and `advice`; how a prompt is read is in `prompts`.
"""

from __future__ import annotations

import tomllib
from importlib import resources
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from app.domain.prompts import Grammar, Reading, spotted

Names = tuple[str, ...]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Conditions(_Strict):
    """What must hold of a request, all of it; what each one means is written in the file."""

    operation: Literal["generate", "edit"] | None = None
    given: Names = ()
    absent: Names = ()
    min_words: int | None = Field(default=None, ge=1)
    max_words: int | None = Field(default=None, ge=1)
    min_changes: int | None = Field(default=None, ge=1)
    mentions: Names = ()
    silent_about: Names = ()

    def hold(self, operation: str, given: frozenset[str], known: frozenset[str], prompt: Reading) -> bool:
        """Whether they hold of a prompt with the fields `given`, for a variant that has the fields `known`."""
        return (
            self.operation in (None, operation)
            and given.issuperset(self.given)
            and (known - given).issuperset(self.absent)
            and (self.min_words is None or prompt.words >= self.min_words)
            and (self.max_words is None or prompt.words <= self.max_words)
            and (self.min_changes is None or prompt.changes >= self.min_changes)
            and (not self.mentions or spotted(self.mentions, prompt))
            and not (self.silent_about and spotted(self.silent_about, prompt))
        )


class AutoRule(Conditions):
    """A wish for one variant. `because` is told to the caller in a header too, so it is ASCII without quotes."""

    variant: str
    because: str = Field(min_length=1, max_length=120, pattern=r"^[ !#-\[\]-~]+$")


class AdviceRule(Conditions):
    """One piece of advice with its stable code."""

    code: str = Field(pattern=r"^[a-z][a-z_]{2,40}$")
    say: str = Field(min_length=1, max_length=160)
    min_applied: int | None = None
    better: str | None = None
    chosen_by_auto: bool | None = None


class Auto(_Strict):
    """`order` is from the dearest variant to the cheapest."""

    order: Names = Field(min_length=1)
    rule: tuple[AutoRule, ...]

    @model_validator(mode="after")
    def _sound(self) -> Self:
        if len(set(self.order)) != len(self.order):
            raise ValueError("a variant stands twice in `order`")
        if unknown := [rule.variant for rule in self.rule if rule.variant not in self.order]:
            raise ValueError(f"{unknown[0]} is not in `order`")
        if any(rule.absent for rule in self.rule):
            raise ValueError("`absent` speaks of a variant, which `auto` has yet to choose")
        if not self.rule or set(self.rule[-1].model_fields_set) != {"variant", "because"}:
            raise ValueError("the last rule must have no conditions, so that one always holds")
        return self


class Advice(_Strict):
    """All advice there is; at most `most` pieces are given at once."""

    most: int = Field(ge=1, le=10)
    rule: tuple[AdviceRule, ...]

    @model_validator(mode="after")
    def _sound(self) -> Self:
        codes = [rule.code for rule in self.rule]
        if len(set(codes)) != len(codes):
            raise ValueError("two rules have the same code")
        return self


class Guidance(_Strict):
    """The whole file."""

    changes: Grammar
    auto: Auto
    advice: Advice


def load(text: str | None = None) -> Guidance:
    """The built-in rules, or those of a text in their place. Raises ValueError, which names the field."""
    if text is None:
        text = resources.files("app.domain").joinpath("guidance.toml").read_text("utf-8")
    return Guidance.model_validate(tomllib.loads(text))
