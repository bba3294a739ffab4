"""Money arithmetic: whole micro-dollars in and out, and who pays for a price that is not the book's."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.domain.pricing import actual, parse_usd, usd


@pytest.mark.parametrize(
    ("text", "micro"),
    [("0.04", 40_000), ("0.08", 80_000), ("0.025", 25_000), ("0.000001", 1), ("1", 1_000_000), ("5.00", 5_000_000)],
)
def test_a_price_is_read_exactly(text: str, micro: int) -> None:
    assert parse_usd(text) == micro


@pytest.mark.parametrize(
    "text",
    ["", "0", "0.00", "-0.04", "0.0000001", "abc", "0,04", "nan", "inf", "-inf", "$1", "1/3", "1e308", "1e10",
     "1000000000.000001"],
)  # fmt: skip
def test_what_is_no_price_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="must be"):
        parse_usd(text)


@given(st.integers(min_value=1, max_value=10**15))
def test_an_amount_is_written_with_six_places_and_read_back_the_same(micro: int) -> None:
    assert parse_usd(usd(micro)) == micro
    assert len(usd(micro).partition(".")[2]) == 6


def test_amounts_below_zero_and_zero_are_written_too() -> None:
    assert (usd(0), usd(-40_000), usd(-1_500_000)) == ("0.000000", "-0.040000", "-1.500000")


@given(st.integers(0, 10**9), st.none() | st.integers(0, 10**9))
def test_a_tenant_never_pays_more_than_was_reserved_and_nothing_of_the_bill_is_lost(
    reserved: int, reported: int | None
) -> None:
    price = actual(reserved, reported)
    assert price.billed == (reserved if reported is None else reported)
    assert price.paid <= reserved
    assert price.paid + price.drift == price.billed
    assert price.drift == 0 or price.paid == reserved


def test_a_lower_price_is_passed_on_and_a_missing_one_is_the_books() -> None:
    assert actual(40_000, 30_000).paid == 30_000
    assert actual(40_000, None).paid == 40_000
    assert (actual(40_000, 100_000).paid, actual(40_000, 100_000).drift) == (40_000, 60_000)
