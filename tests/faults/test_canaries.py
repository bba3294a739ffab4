"""A secret is found however it is written, and nothing else is taken for it."""

from __future__ import annotations

import base64
import json
from urllib.parse import quote, quote_plus

import pytest

from tests.faults.canaries import hits

SECRET = b"a lighthouse? at dawn > \xc3\xa9"


@pytest.mark.parametrize("before", range(4))
@pytest.mark.parametrize("after", range(4))
@pytest.mark.parametrize("write", [base64.b64encode, base64.urlsafe_b64encode])
def test_base64_at_any_place(before: int, after: int, write: type) -> None:
    text = write(b"x" * before + SECRET + b"y" * after)
    assert hits([("a log", text)], {"prompt": SECRET}) == ["the prompt is in a log"]


def test_other_ways_to_write_it() -> None:
    for text in (SECRET, SECRET.hex().encode(), quote(SECRET).encode(), quote_plus(SECRET, safe="").encode()):
        assert hits([("a log", b"..." + text + b"...")], {"prompt": SECRET})
    assert hits([("a log", json.dumps(SECRET.decode()).encode())], {"prompt": SECRET})


def test_what_only_resembles_it_is_not_a_hit() -> None:
    assert not hits([("a log", SECRET[:-1]), ("another", base64.b64encode(SECRET[:-3]))], {"prompt": SECRET})
