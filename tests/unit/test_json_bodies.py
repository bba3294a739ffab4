"""JSON bodies are read strictly, and in time that grows with their size and not with its square."""

from __future__ import annotations

import time

import pytest

from app.errors import InvalidRequest
from app.surfaces.body import parse_json


def test_a_repeated_name_among_very_many_is_found_at_once() -> None:
    """50,000 names of which the last is there twice: compared with each other they take minutes."""
    names = [f"n{number}" for number in range(50_000)]
    body = "{" + ",".join(f'"{name}":0' for name in [*names, names[-1]]) + "}"
    began = time.process_time()
    with pytest.raises(InvalidRequest, match="`n49999` is given more than once"):
        parse_json(body.encode())
    assert time.process_time() - began < 5
