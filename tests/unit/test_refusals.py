"""Which refusals last: a client that sleeps on `Retry-After` must not be sent to sleep until tomorrow."""

from __future__ import annotations

import pytest

from app.domain.tenant import Rate
from app.quota.limits import Cap, Kind
from app.quota.refusals import cap_refusal, rate_refusal

NOW = 1_000_000


@pytest.mark.parametrize("kind", ["usd", "img"])
@pytest.mark.parametrize(("left", "lasting"), [(59, False), (60, False), (61, True), (86_400, True)])
def test_a_window_that_is_used_up_lasts_when_its_end_is_over_a_minute_away(
    kind: Kind, left: int, lasting: bool
) -> None:
    refusal = cap_refusal(Cap("tenant", "t", kind, "day", 5), (0, NOW + left), 5, 0, 1, NOW)
    assert refusal.lasting is lasting
    assert (refusal.retry_after or 0) <= 60


@pytest.mark.parametrize("kind", ["usd", "img"])
def test_a_window_that_is_only_held_by_jobs_in_flight_does_not_last(kind: Kind) -> None:
    refusal = cap_refusal(Cap("tenant", "t", kind, "month", 5), (0, NOW + 86_400), 4, 1, 1, NOW)
    assert (refusal.lasting, refusal.retry_after) == (False, 2)


@pytest.mark.parametrize(("wait", "lasting"), [(1.0, False), (60.0, False), (60.5, True), (3600.0, True)])
def test_a_rate_lasts_when_its_next_request_is_over_a_minute_away(wait: float, lasting: bool) -> None:
    reply = [b"no", b"", b"1", b"%d" % (wait * 1e6), b"0", b"0"]
    assert rate_refusal([("tenant", "t", Rate(1, 3600, 1))], reply).lasting is lasting
