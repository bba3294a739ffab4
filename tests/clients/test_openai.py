"""The official clients of OpenAI for Python and for Node, by changing base URL and key alone."""

from __future__ import annotations

import urllib.error
import urllib.request
from collections.abc import Iterator

import pytest

from tests.clients.openai_suite import Played, example, played

SCRIPTS = {"python": "openai_python.py", "node": "openai.mjs"}


@pytest.fixture(scope="module", params=SCRIPTS)
def suite(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Played]:
    with played(tmp_path_factory.mktemp(request.param), SCRIPTS[request.param]) as found:
        yield found


def test_a_picture_is_made_as_asked_and_found_again_by_its_seed(suite: Played) -> None:
    assert suite.steps["generate"] == {"kind": "png", "format": "png", "portrait": True}
    assert suite.steps["again"] == {"source": "cache", "seed": "42", "same": True}


def test_n_pictures_are_n_jobs_with_seeds_in_a_row(suite: Played) -> None:
    assert suite.steps["several"] == {"count": 3, "distinct": 3, "seeds": "7, 8, 9", "cost": "0.240000"}


def test_a_picture_is_edited_by_pro_and_by_dev(suite: Played) -> None:
    assert suite.steps["edit"] == {"kind": "jpeg"}
    assert len(suite.steps["edit by dev"]["urls"]) == 2


def test_a_link_is_followed_without_a_key_and_shows_nobody_elses_picture(suite: Played) -> None:
    for url in suite.steps["edit by dev"]["urls"]:
        with urllib.request.urlopen(url, timeout=30) as answer:
            assert answer.headers["content-type"] == "image/jpeg"
        for wrong in (url.replace("t=shop", "t=other"), url[:-1] + ("0" if url[-1] != "0" else "1")):
            with pytest.raises(urllib.error.HTTPError, match="404") as refused:
                urllib.request.urlopen(wrong, timeout=30)
            refused.value.close()
        head = {"Authorization": f"Bearer {suite.on.tokens['other']}"}
        with pytest.raises(urllib.error.HTTPError, match="404") as refused:
            urllib.request.urlopen(urllib.request.Request(url, headers=head), timeout=30)
        refused.value.close()


def test_models_are_listed_and_found(suite: Played) -> None:
    names = [f"flux-kontext-{variant}" for variant in ("dev", "max", "pro")]
    assert suite.steps["models"] == {"ids": names, "one": "flux-kontext-dev"}


@pytest.mark.parametrize(
    ("step", "param"),
    [
        ("mask", "mask"),
        ("two images", "image"),
        ("transparent", "background"),
        ("stream", "stream"),
        ("model", "model"),
    ],
)
def test_what_kontext_cannot_do_is_a_typed_error_that_names_the_field(suite: Played, step: str, param: str) -> None:
    told = suite.steps[step]
    assert (told["type"], told["status"], told["param"]) == ("UnprocessableEntityError", 422, param)
    assert (told["code"], told["kind"]) == ("invalid_request", "invalid_request_error")
    assert told["gateway"]["charged"] == "no"
    assert told["request"] == told["gateway"]["request_id"]


def test_a_wrong_key_is_an_authentication_error(suite: Played) -> None:
    told = suite.steps["key"]
    assert (told["type"], told["status"], told["code"]) == ("AuthenticationError", 401, "invalid_api_key")


@pytest.mark.parametrize(
    ("step", "tenant", "kind", "status", "code"),
    [
        ("ceiling", "strict", "PermissionDeniedError", 403, "safety_ceiling"),
        ("budget", "broke", "RateLimitError", 429, "insufficient_quota"),
        ("rate", "hourly", "RateLimitError", 429, "rate_limit_exceeded"),
    ],
)
def test_a_refusal_is_the_clients_own_typed_error_after_one_request(
    suite: Played, step: str, tenant: str, kind: str, status: int, code: str
) -> None:
    told = suite.steps[step]
    assert (told["type"], told["status"], told["code"]) == (kind, status, code)
    assert told["gateway"]["charged"] == "no"
    assert suite.on.statuses(tenant) == [status]


def test_a_rate_that_opens_soon_is_waited_for(suite: Played) -> None:
    assert "patience" in suite.steps
    assert suite.on.statuses("brisk") == [200, 429, 200]


def test_what_may_have_been_charged_is_told_and_not_sent_again(suite: Played) -> None:
    told = suite.steps["lost"]
    assert (told["status"], told["code"], told["gateway"]["charged"]) == (502, "upstream_failed", "unknown")
    assert suite.received("inference.flux-kontext.max.img2img.v2") == 1


def test_moderation_is_a_content_policy_violation(suite: Played) -> None:
    told = suite.steps["moderated"]
    assert (told["type"], told["status"], told["code"]) == ("BadRequestError", 400, "content_policy_violation")
    assert suite.received("inference.flux-kontext.max.txt2img.v2") == 4


def test_the_example_of_readme_for_python_runs(suite: Played) -> None:
    suite.on.fleet.faults([])
    assert suite.on.example("python", example("Client for Python")) == "2 jpeg\n"


def test_the_example_of_readme_for_node_runs(suite: Played) -> None:
    suite.on.fleet.faults([])
    assert suite.on.example("js", example("Client for Node")) == "true\n"
