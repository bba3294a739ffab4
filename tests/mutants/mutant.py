"""What a mutant is: a mistake, how it is put into a gateway or a script, and the rows that must go red on it.

Nothing in the application knows of them: a method, or a script's text, is replaced before the command starts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from app.prodia import turns
from app.quota import hold, ledger, seat
from app.store.redis import Script

SCRIPTS: Mapping[str, Any] = {
    "finish": ledger,
    "reserve": hold,
    "retract": hold,
    "seat": seat,
    "unseat": seat,
    "turns": turns,
}  # where each is called


@dataclass(frozen=True)
class Killer:
    """A row that finds the mistake: its id, what its trouble then says, and the fewest counts that show it."""

    row: str
    says: str
    counts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Mutant:
    """One mistake.

    Args:
        says: what is done wrong.
        killers: what must find it.
        patch: puts it into this process's gateway; for a mistake in a script, `script` and `change` say it instead.
        change: the text that is replaced, and by what.
    """

    says: str
    killers: tuple[Killer, ...]
    patch: Callable[[], None] | None = None
    script: str = ""
    change: tuple[str, str] = ("", "")

    def text(self, shipped: str) -> str:
        """A script with the mistake in it. Raises AssertionError when the script no longer has the place for it."""
        assert shipped.count(self.change[0]) == 1, f"{self.script}.lua has no such place: {self.change[0]!r}"
        return shipped.replace(*self.change)

    def apply(self) -> None:
        """Make the gateway of this process the wrong one."""
        if self.patch is not None:
            self.patch()
        else:
            name = self.script.upper()
            setattr(SCRIPTS[self.script], name, changed(getattr(SCRIPTS[self.script], name), *self.change))


def changed(shipped: Script, old: str, new: str) -> Script:
    """A script with another text in the place of one."""
    assert old in shipped.text
    text = shipped.text.replace(old, new)
    return replace(shipped, text=text, sha=hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())
