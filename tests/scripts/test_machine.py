"""Whatever is called, by whom, in whatever order and how often: the books balance and do what the plain model does."""

from __future__ import annotations

from tests.scripts.desk import Desk
from tests.scripts.machine import play


def test_the_scripts_do_what_the_model_does(desk: Desk) -> None:
    play(desk, examples=80)
