"""The stage itself: its tenants are refused for what they stand for, and each request is counted once."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.clients.stage import Stage, stage
from tests.pipeline.calls import generate


@pytest.fixture(scope="module")
def on(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    with stage(tmp_path_factory.mktemp("stage")) as running:
        yield running


@pytest.mark.parametrize(
    ("tenant", "fields", "refused"),
    [
        ("strict", {"safety_tolerance": 4}, (403, "safety_ceiling")),
        ("broke", {}, (402, "budget_exhausted")),
        ("hourly", {}, (429, "rate_limited")),
    ],
)
def test_a_tenant_is_refused_and_its_request_is_counted(
    on: Stage, tenant: str, fields: dict[str, object], refused: tuple[int, str]
) -> None:
    """Each refused tenant meets its own refusal, and the log has its requests without the stage's own."""
    assert on.requests(tenant) == []
    answer = generate(on.url, on.tokens[tenant], **fields)
    assert (answer.status, answer.code) == refused
    assert on.statuses(tenant) == [refused[0]]
