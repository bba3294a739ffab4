"""Pictures kept in the process: within their bytes and their time."""

from __future__ import annotations

from dataclasses import dataclass

from app.cache.hot import KEEP, Hot


@dataclass(frozen=True)
class Picture:
    image: bytes


def test_a_repeat_is_answered_and_a_stranger_is_not() -> None:
    """What was kept is found under its own name alone."""
    hot: Hot[Picture] = Hot(100)
    kept = Picture(b"a" * 10)
    hot.keep("one", kept, seconds=5)
    assert hot.get("one") is kept
    assert hot.get("two") is None


def test_the_least_recently_used_leave_first_and_the_bytes_are_held() -> None:
    """Five pictures of 25 bytes in a room for four: the one not asked for since goes."""
    hot: Hot[Picture] = Hot(100)
    for name in "abcd":
        hot.keep(name, Picture(bytes(25)), seconds=5)
    hot.get("a")
    hot.keep("e", Picture(bytes(25)), seconds=5)
    assert [name for name in "abcde" if hot.get(name)] == ["a", "c", "d", "e"]


def test_what_is_too_large_or_has_no_time_left_is_not_kept() -> None:
    """A picture of more than a quarter of the room would drive out the others."""
    hot: Hot[Picture] = Hot(100)
    hot.keep("large", Picture(bytes(26)), seconds=5)
    hot.keep("late", Picture(bytes(5)), seconds=0)
    assert (hot.get("large"), hot.get("late")) == (None, None)


def test_nothing_is_kept_for_longer_than_its_time() -> None:
    """Neither beyond its own seconds nor beyond the bound for all."""
    now = [0.0]
    hot: Hot[Picture] = Hot(100, lambda: now[0])
    hot.keep("brief", Picture(b"a"), seconds=2)
    hot.keep("long", Picture(b"a"), seconds=3600)
    now[0] = 2.5
    assert hot.get("brief") is None
    assert hot.get("long") is not None
    now[0] = KEEP + 0.5
    assert hot.get("long") is None


def test_what_is_replaced_is_counted_once() -> None:
    """Keeping under the same name again neither grows the count nor leaves the old bytes."""
    hot: Hot[Picture] = Hot(100)
    for _ in range(50):
        hot.keep("a", Picture(bytes(25)), seconds=5)
    hot.keep("b", Picture(bytes(25)), seconds=5)
    assert hot.get("a") is not None
    assert hot.get("b") is not None
