"""The LiteLLM SDK with `api_base`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.clients.openai_suite import QUIET, Played, example, played


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Played]:
    with played(tmp_path_factory.mktemp("litellm"), "litellm_sdk.py") as found:
        yield found


def test_pictures_are_made_and_edited(suite: Played) -> None:
    assert suite.steps["generate"] == {"kind": "png"}
    assert suite.steps["several"] == {"count": 3, "distinct": 3}
    assert suite.steps["edit"] == {"kind": "jpeg"}


def test_an_unknown_model_is_a_bad_request(suite: Played) -> None:
    assert (suite.steps["model"]["type"], suite.steps["model"]["status"]) == ("BadRequestError", 422)


@pytest.mark.parametrize(
    ("step", "tenant", "kind", "status", "text"),
    [
        ("ceiling", "strict", "APIError", 403, "ceiling of 1"),
        ("budget", "broke", "RateLimitError", 429, "budget of this month"),
        ("rate", "hourly", "RateLimitError", 429, "1 requests in 3600 s"),
    ],
)
def test_a_refusal_is_the_clients_own_typed_error_after_one_request(
    suite: Played, step: str, tenant: str, kind: str, status: int, text: str
) -> None:
    told = suite.steps[step]
    assert (told["type"], told["status"]) == (kind, status)
    assert text in told["message"]
    assert suite.on.statuses(tenant) == [status]


def test_a_rate_that_opens_soon_is_waited_for(suite: Played) -> None:
    assert "patience" in suite.steps
    assert suite.on.statuses("brisk") == [200, 429, 200]


def test_what_may_have_been_charged_is_not_sent_again(suite: Played) -> None:
    assert suite.steps["lost"]["status"] in (500, 502)
    assert suite.received("inference.flux-kontext.max.img2img.v2") == 1


def test_moderation_is_a_content_policy_violation(suite: Played) -> None:
    assert suite.steps["moderated"]["type"] == "ContentPolicyViolationError"
    assert suite.received("inference.flux-kontext.max.txt2img.v2") == 4


def test_the_example_of_readme_runs(suite: Played) -> None:
    suite.on.fleet.faults([])
    code = "".join(f"import os; os.environ[{name!r}] = {value!r}\n" for name, value in QUIET.items())
    assert suite.on.example("python", code + example("LiteLLM")) == "True\n"
