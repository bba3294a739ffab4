"""The AI SDK with `@ai-sdk/openai-compatible`, which repeats by the status alone."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.clients.openai_suite import Played, example, played


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Played]:
    with played(tmp_path_factory.mktemp("ai-sdk"), "ai-sdk-openai-compatible.mjs") as found:
        yield found


def test_pictures_are_made_and_edited(suite: Played) -> None:
    assert suite.steps["generate"] == {"kind": "image/png", "portrait": True, "warnings": []}
    assert suite.steps["several"] == {"count": 3, "distinct": 3, "seeds": ["7, 8, 9"]}
    assert suite.steps["edit"] == {"kind": "image/jpeg"}


def test_a_picture_that_is_given_as_a_link_is_fetched(suite: Played) -> None:
    assert suite.steps["edit by dev"]["kind"] == "image/jpeg"
    assert [line["route"] for line in suite.on.requests("shop")].count("/v1/images/{image_id}") == 1


@pytest.mark.parametrize(("step", "param"), [("mask", "mask"), ("two images", "image"), ("model", "model")])
def test_what_kontext_cannot_do_is_a_typed_error_that_names_the_field(suite: Played, step: str, param: str) -> None:
    told = suite.steps[step]
    assert (told["typed"], told["retried"], told["status"], told["param"]) == (True, False, 422, param)


@pytest.mark.parametrize(
    ("step", "tenant", "code"),
    [
        ("ceiling", "strict", "safety_ceiling"),
        ("budget", "broke", "insufficient_quota"),
        ("rate", "hourly", "rate_limit_exceeded"),
    ],
)
def test_a_refusal_is_the_clients_own_typed_error_after_one_request(
    suite: Played, step: str, tenant: str, code: str
) -> None:
    told = suite.steps[step]
    assert (told["type"], told["typed"], told["retried"]) == ("AI_APICallError", True, False)
    assert (told["status"], told["code"]) == (403, code)
    assert suite.on.statuses(tenant) == [403]


def test_a_rate_that_opens_soon_is_waited_for(suite: Played) -> None:
    assert "patience" in suite.steps
    assert suite.on.statuses("brisk") == [200, 429, 200]


def test_what_may_have_been_charged_is_told_and_not_sent_again(suite: Played) -> None:
    assert (suite.steps["lost"]["status"], suite.steps["lost"]["code"]) == (424, "upstream_failed")
    assert suite.received("inference.flux-kontext.max.img2img.v2") == 1


def test_moderation_is_a_content_policy_violation(suite: Played) -> None:
    assert (suite.steps["moderated"]["status"], suite.steps["moderated"]["code"]) == (400, "content_policy_violation")


def test_the_example_of_readme_runs(suite: Played) -> None:
    suite.on.fleet.faults([])
    assert suite.on.example("js", example("AI SDK")) == "2 image/jpeg\n"
