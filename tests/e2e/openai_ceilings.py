"""Attempts at the ceiling through OpenAI's images API: as a member of JSON, and as a part of a form."""

from __future__ import annotations

import json
import random

from tests.e2e import ceilings
from tests.e2e.ceilings import ANY, INSIDE, PHOTO, PHOTO64, PROMPTS, Attempt, Policy
from tests.e2e.exchange import FILE, FORM, form

QUERY = ("", "", "?safety_tolerance=6", "?extra_body[safety_tolerance]=6")
HARMLESS = ('"quality":"auto"', '"size":"1536x1024"', '"moderation":"auto"', '"n":1', '"stream":false')


def pictures(tenant: Policy, seed: int, draw: random.Random) -> Attempt:
    """One `POST /v1/images/generations` or `/v1/images/edits`."""
    operation = draw.choice(("generate", "edit"))
    variant = draw.choice(("pro", "max")) if operation == "generate" else draw.choice(("pro", "max", "dev"))
    path = "/v1/images/generations" if operation == "generate" else "/v1/images/edits"
    target = path + draw.choice(QUERY)
    if operation == "edit" and draw.random() < 0.5:
        asked, body = _form(variant, seed, draw)
        return Attempt(tenant, operation, variant, asked, target, FORM, body)
    asked, body = _document(operation, variant, seed, draw)
    return Attempt(tenant, operation, variant, asked, target, "application/json", body)


def _document(operation: str, variant: str, seed: int, draw: random.Random) -> tuple[int | str | None, bytes]:
    asked, spelled = ceilings.member(operation, draw)
    if any("null" in one for one in spelled):
        asked = ANY  # here null means that it is not given
    members = [f'"prompt":{json.dumps(draw.choice(PROMPTS))}', f'"model":"flux-kontext-{variant}"', f'"seed":{seed}']
    if operation == "edit":
        url = f'"data:image/jpeg;base64,{PHOTO64}"'
        members.append(draw.choice((f'"image":{url}', f'"images":[{{"image_url":{url}}}]')))
    members += [*spelled, *(draw.choice(HARMLESS) for _ in range(variant != "dev"))]
    draw.shuffle(members)
    return asked, ("{" + ("," + draw.choice(INSIDE)).join(members) + "}").encode("utf-8", "surrogatepass")


def _form(variant: str, seed: int, draw: random.Random) -> tuple[int | str | None, bytes]:
    asked, spelled = ceilings.parts(draw)
    whole: list[tuple[str, bytes] | tuple[str, bytes, str] | bytes] = [
        (draw.choice(("image", "image[]")), PHOTO, FILE), ("prompt", draw.choice(PROMPTS).encode()),
        ("model", variant.encode()), ("seed", str(seed).encode()), *spelled,
    ]  # fmt: skip
    draw.shuffle(whole)
    return asked, form(*whole)
