"""The statuses of the Prodia surface: what public clients send again by themselves is what a repeat may help, at no
cost."""

from __future__ import annotations

import pytest

from app.errors import CODES, Charged, GatewayError
from app.surfaces.prodia_wire import status_of

NEVER_AGAIN = (400, 401, 403, 405)  # the official client, the AI SDK and urllib3's list agree on these


@pytest.mark.parametrize("code", CODES)
def test_what_cannot_be_helped_by_a_repeat_is_not_repeated(code: str) -> None:
    """Our own side's faults are repeated once: nothing was charged, and the next replica may do better."""
    status = status_of(GatewayError(code, ""))
    if code in ("upstream_misconfigured", "internal"):
        assert status >= 500
    else:
        assert (status not in NEVER_AGAIN) == CODES[code].retryable


@pytest.mark.parametrize("charged", ["yes", "unknown"])
@pytest.mark.parametrize("code", [code for code in CODES if code.startswith("upstream_")])
def test_what_may_have_been_charged_is_never_repeated(code: str, charged: Charged) -> None:
    assert status_of(GatewayError(code, "", charged=charged)) == 400


def test_a_name_that_is_still_at_work_is_asked_again() -> None:
    assert status_of(GatewayError("idempotency_in_flight", "", charged="unknown")) == 429


@pytest.mark.parametrize("code", ["rate_limited", "image_quota_exhausted", "budget_exhausted"])
def test_a_limit_that_lasts_is_not_waited_for(code: str) -> None:
    error = GatewayError(code, "", retry_after=3600)
    error.lasting = True
    assert status_of(error) == 403
