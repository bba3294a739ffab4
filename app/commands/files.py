"""Where pictures are put, decided and checked before anything is paid for; a file that is there is never overwritten.

Called by `pictures.py` and `report.py`. A picture that was paid for is saved even when its name was taken meanwhile:
then under the same name with a number.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from itertools import chain, count
from pathlib import Path
from typing import Any

from app.client import Picture
from app.commands.prompts import Wanted

_PLACE = re.compile(r"\{(seed|job_id)\}")
_FORMATS = {".jpg": "jpeg", ".jpeg": "jpeg", ".png": "png", ".webp": "webp"}
_ENDINGS = {"image/jpeg": ".jpg", "image/png": ".png", "image/webp": ".webp"}


class Files:
    """The files of one command.

    Args:
        output: a file, a directory, a template with {n}, {seed} and {job_id}, `-` for standard output, or None: here,
            named by the job.
        force: whether files that are there may be replaced. Never one that the same command has written.
    """

    def __init__(self, output: str | None, *, force: bool) -> None:
        self._output = output
        self._force = force
        self._written: set[Path] = set()
        self._folder = "" if output is None else output.rstrip("/") + "/" if _folder(output) else None

    def plan(self, wanted: Sequence[Wanted]) -> list[Wanted]:
        """The same pictures with the output format that their file's ending asks for, unless one was given.

        Raises:
            ValueError: a name that cannot be used.
            OSError: a directory that cannot be made.
        """
        if self.to_stdout:
            if len(wanted) > 1:
                raise ValueError("-o -: is for one picture")
            return list(wanted)
        if self._output is not None and self._output.endswith("/"):
            Path(self._output).mkdir(parents=True, exist_ok=True)
        taken: set[Path] = set()
        planned = []
        for one in wanted:
            name = self._name(one)
            self._check(name, taken)
            planned.append(_formatted(one, name))
        return planned

    def save(self, one: Wanted, picture: Picture) -> Path:
        """Write a picture; its path. Raises OSError, and leaves no half of a file behind."""
        if self.to_stdout:
            sys.stdout.buffer.write(picture.data)
            sys.stdout.buffer.flush()
            return Path("-")
        known = {"seed": str(picture.seed), "job_id": re.sub(r"[^\w-]", "_", picture.job_id)}
        name = self._name(one)
        if name.endswith("{job_id}"):
            name += _ENDINGS.get(picture.content_type, "")
        first = Path(_PLACE.sub(lambda found: known[found[1]], name))
        for path in chain([first], (first.with_stem(f"{first.stem}-{number}") for number in count(2))):
            replace = self._force and path not in self._written
            try:
                file = path.open("wb" if replace else "xb")
            except FileExistsError:
                continue
            self._written.add(path)
            try:
                with file:
                    file.write(picture.data)
            except OSError:
                if not replace:
                    path.unlink()
                raise
            return path
        raise AssertionError("numbers do not end")

    @property
    def to_stdout(self) -> bool:
        """Whether the picture goes to standard output."""
        return self._output == "-"

    def _name(self, one: Wanted) -> str:
        """What is known of the name before the picture is made."""
        if one.output is not None:
            name = str(Path(self._folder or "", one.output))
        else:
            name = (self._output or "") if self._folder is None else self._folder + "{job_id}"
        seed = one.parameters.get("seed")
        return name.replace("{n}", str(one.n)).replace("{seed}", "{seed}" if seed is None else str(seed))

    def _check(self, name: str, taken: set[Path]) -> None:
        path = Path(name)
        if _PLACE.search(str(path.parent)):
            raise ValueError(f"{name}: {{seed}} and {{job_id}} belong into the file's name")
        if not path.parent.is_dir():
            raise ValueError(f"{path.parent}: is not a directory")
        known = not _PLACE.search(name)
        if known and path in taken:
            hint = "use a directory, or {n}, {seed} or {job_id} in the name"
            raise ValueError(f"{name}: is the name of several pictures; {hint}")
        if known and (path.is_dir() or (path.exists() and not self._force)):
            raise ValueError(f"{name}: is there already; --force replaces files")
        if not os.access(path if known and path.exists() else path.parent, os.W_OK):
            raise ValueError(f"{name}: cannot be written")
        taken.add(path)


def _folder(output: str) -> bool:
    return output.endswith("/") or Path(output).is_dir()


def _formatted(one: Wanted, name: str) -> Wanted:
    ending = Path(name).suffix.lower()
    if "output_format" in one.parameters or not ending:
        return one
    if ending not in _FORMATS:
        raise ValueError(f"{name}: must end in {', '.join(_FORMATS)}, or give --output-format")
    more: dict[str, Any] = {**one.parameters, "output_format": _FORMATS[ending]}
    return Wanted(one.n, one.prompt, more, one.output)
