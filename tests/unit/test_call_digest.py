"""The digest of a named call: everything that its caller wrote is in it, and nothing that the gateway chose."""

from __future__ import annotations

import dataclasses
from dataclasses import replace
from typing import Any

import pytest

from app.domain.fingerprint import call_digest, scope_secret
from app.domain.job import Choice, Request
from app.domain.upload import Upload
from app.domain.validate import validate
from tests.unit.asks import CATALOG, ask, request

SECRET = scope_secret(b"pepper-of-the-tests-0123456789abcdef", "t:acme")


def digest(found: Request, secret: bytes = SECRET) -> str:
    return call_digest(found, secret=secret)


FIRST = request(seed=7, prompt="a boat")
CHANGES: dict[str, Any] = {
    "parameters": {**FIRST.parameters, "prompt": "another boat"},
    "seed": 8,
    "seed_given": False,
    "output": "png",
    "fit": "strict",
    "response_format": "b64_json",
    "user": "ada",
    "tags": ("spring",),
    "uploads": {"image": Upload(b"a picture")},
    "safety_asked": 1,
    "given": frozenset({"seed"}),
    "chosen": Choice("pro", "because"),
    "job_type": request(variant="max").job_type,
}


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(Request)])
def test_every_field_of_a_request_makes_another_call(name: str) -> None:
    assert digest(replace(FIRST, **{name: CHANGES[name]})) != digest(FIRST)


def test_an_assigned_seed_is_not_in_it() -> None:
    first, again = request(), request()
    assert first.seed != again.seed
    assert digest(first) == digest(again)


def test_a_form_and_json_in_any_order_and_spelling_are_the_same_call() -> None:
    fields = {"seed": 7, "variant": "dev", "guidance_scale": 3, "user": "ada"}
    first = digest(request("edit", **fields))
    assert digest(request("edit", **dict(reversed(fields.items())) | {"guidance_scale": 3.0})) == first
    texts = {name: str(value) for name, value in fields.items()}
    assert digest(validate(ask("edit", textual=True, **texts), CATALOG)) == first


def test_auto_is_the_same_call_whatever_it_chose() -> None:
    chosen = [replace(request(variant=name), chosen=Choice(name, "x")) for name in ("pro", "max")]
    assert digest(chosen[0]) == digest(chosen[1])


def test_a_new_default_of_the_catalogue_does_not_make_a_repeat_another_call() -> None:
    assert digest(replace(FIRST, parameters={**FIRST.parameters, "prompt_upsampling": True})) == digest(FIRST)


def test_a_webhook_makes_another_call() -> None:
    told = [call_digest(FIRST, secret=SECRET, hook=url) for url in ("", "https://a.example/", "https://b.example/")]
    assert len({digest(FIRST), *told}) == 3


def test_another_tenant_or_pepper_gives_another_digest() -> None:
    secrets = [SECRET, scope_secret(b"x", "t:acme"), scope_secret(b"x", "t:zeta")]
    assert len({digest(FIRST, secret) for secret in secrets}) == 3
