"""What is sealed opens under its own name and pepper, and in no other way."""

from __future__ import annotations

import pytest

from app.store.seal import EXTRA, Seal

SEAL = Seal(b"a pepper")
DATA = b"the sky is stormy" * 999


@pytest.mark.parametrize("data", [b"", b"x", DATA, memoryview(DATA)[5:]])
@pytest.mark.parametrize("after", [b"", b"a record"])
def test_a_sealed_value_opens_again(data: bytes | memoryview, after: bytes) -> None:
    value = SEAL.close("a name", data, after=after)
    assert value[: len(after)] == after
    assert len(value) == len(after) + EXTRA + len(data)
    assert SEAL.open("a name", value[len(after) :], after=after) == bytes(data)
    assert SEAL.open("a name", bytes(value[len(after) :]), after=after) == bytes(data)


def test_nothing_of_the_data_is_in_it_and_no_two_values_are_alike() -> None:
    one, two = bytes(SEAL.close("a name", DATA)), bytes(SEAL.close("a name", DATA))
    assert b"stormy" not in one
    assert one != two
    assert one[:12] != two[:12]  # a nonce that came twice would give the key stream away


def test_it_opens_under_no_other_name_pepper_or_record_and_not_when_it_is_damaged() -> None:
    value = bytes(SEAL.close("a name", DATA, after=b"a record"))[8:]
    assert SEAL.open("another name", value, after=b"a record") is None
    assert SEAL.open("a name", value, after=b"a recorf") is None
    assert SEAL.open("a name", value) is None
    assert Seal(b"another pepper").open("a name", value, after=b"a record") is None
    for at in (0, 11, 12, len(value) // 2, len(value) - 1):
        spoiled = value[:at] + bytes((value[at] ^ 1,)) + value[at + 1 :]
        assert SEAL.open("a name", spoiled, after=b"a record") is None
    for size in (0, 5, 12, 27, len(value) - 1):
        assert SEAL.open("a name", value[:size], after=b"a record") is None
