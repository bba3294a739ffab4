"""API keys as text: what is minted is recognised, what was mistyped is not, and only a keyed hash is stored."""

from __future__ import annotations

import hashlib
import hmac
import re
import zlib
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.domain.tokens import ALPHABET, PREFIX, digest, mint, shown, well_formed

SAMPLE = "kgw_live_AbCdEfGhIjKlMnOpQrStUvWxYz0123451HTd0k"
PEPPER = b"p" * 32


def test_a_minted_key_has_the_published_form_and_is_recognised() -> None:
    for _ in range(200):
        key = mint()
        assert re.fullmatch(r"kgw_live_[0-9A-Za-z]{38}", key)
        assert well_formed(key)


def test_the_checksum_is_the_crc_32_of_the_32_characters_in_base62() -> None:
    value = 0
    for digit in SAMPLE[41:]:
        value = value * 62 + "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz".index(digit)
    assert value == zlib.crc32(SAMPLE[9:41].encode())
    assert well_formed(SAMPLE)


def test_minted_keys_differ_and_use_the_whole_alphabet() -> None:
    keys = {mint() for _ in range(2000)}
    assert len(keys) == 2000
    assert set("".join(key[9:41] for key in keys)) == set(ALPHABET)
    assert len(set(ALPHABET)) == 62


def test_every_change_of_one_character_is_detected() -> None:
    for place in range(len(PREFIX), len(SAMPLE)):
        for other in ALPHABET:
            if other != SAMPLE[place]:
                assert not well_formed(SAMPLE[:place] + other + SAMPLE[place + 1 :])


def test_every_exchange_of_two_characters_is_detected() -> None:
    for key in [SAMPLE, *(mint() for _ in range(5))]:
        for first, second in combinations(range(len(PREFIX), len(key)), 2):
            swapped = list(key)
            swapped[first], swapped[second] = swapped[second], swapped[first]
            assert well_formed("".join(swapped)) == (key[first] == key[second])


@pytest.mark.parametrize(
    "text",
    [
        "", PREFIX, SAMPLE[:-1], SAMPLE + "0", SAMPLE + "\n", " " + SAMPLE, SAMPLE.upper(), SAMPLE[9:],
        SAMPLE.replace("live", "test"), SAMPLE[:9] + "é" + SAMPLE[10:], SAMPLE[:9] + "\u0661" + SAMPLE[10:],
        SAMPLE[:9] + "-" + SAMPLE[10:], SAMPLE[:-1] + "\uff16", "\udcff" * 47, "\x00" * 47, PREFIX + "0" * 10_000_000,
    ],
    ids=range(16),
)  # fmt: skip
def test_what_is_not_a_key_is_refused(text: str) -> None:
    assert not well_formed(text)


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=60) | st.text(ALPHABET, min_size=38, max_size=38).map(PREFIX.__add__))
def test_no_text_breaks_the_functions(text: str) -> None:
    assert well_formed(text) in (True, False)
    assert re.fullmatch(r"[0-9a-f]{64}", digest(text, PEPPER))
    assert shown(text) == "…" or well_formed(text)


def test_the_digest_is_a_keyed_hash_and_needs_the_pepper() -> None:
    assert digest(SAMPLE, PEPPER) == hmac.new(PEPPER, SAMPLE.encode(), hashlib.sha256).hexdigest()
    assert digest(SAMPLE, PEPPER) != digest(SAMPLE, b"q" * 32)
    assert digest(SAMPLE, PEPPER) != digest(mint(), PEPPER)
    with pytest.raises(ValueError, match="pepper"):
        digest(SAMPLE, b"")


def test_a_listing_shows_four_secret_characters_at_most() -> None:
    assert shown(SAMPLE) == "kgw_live_AbCd…"
    assert shown("hunter2") == "…"
