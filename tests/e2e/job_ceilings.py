"""Attempts at the ceiling in Prodia's wire form: a tolerance in a job's config, beside it, and in other parts."""

from __future__ import annotations

import json
import random

from app.domain.catalog import load
from tests.e2e import ceilings
from tests.e2e.ceilings import INSIDE, PHOTO, PROMPTS, WRONG, Attempt, Policy
from tests.e2e.exchange import FORM, form

CATALOG = load()
ACCEPTS = ("application/json", "multipart/form-data", "image/jpeg", "multipart/form-data; image/jpeg", "*/*")
JPEG = '; filename="image.jpg"\r\nContent-Type: image/jpeg'
JSON = '; filename="job.json"\r\nContent-Type: application/json'
CONFIG = ('"config"', '"config"', r'"con\u0066ig"')
UNSAFE = '"config":{"prompt":"x y z","safety_tolerance":6}'
BESIDE = (
    '"safety_tolerance":6', UNSAFE, UNSAFE.replace("config", r"con\u0066ig"), '"Config":{"safety_tolerance":6}',
    '"job":{"config":{"safety_tolerance":6}}', '"name":"x"', '"type":"inference.flux-kontext.max.txt2img.v2"',
)  # fmt: skip


def job(tenant: Policy, seed: int, draw: random.Random) -> Attempt:
    """One `POST /v2/job`."""
    operation = draw.choice(("generate", "edit"))
    variant = draw.choice(ceilings.EDIT_VARIANTS) if operation == "edit" else draw.choice(("pro", "max"))
    asked, spelled = ceilings.member(operation, draw)
    members = [f'"prompt":{json.dumps(draw.choice(PROMPTS))}', f'"seed":{seed}', *spelled]
    if draw.random() < 0.2:
        members.append('"include_messages":true')
    elif draw.random() < 0.05:
        asked = WRONG
        members.append('"include_messages":{"safety_tolerance":6}')
    draw.shuffle(members)
    inner = "{" + ("," + draw.choice(INSIDE)).join(members) + "}"
    known = CATALOG.find(operation, variant)
    assert known is not None
    outer = [f'"type":"{known.type}"', f"{draw.choice(CONFIG)}:{inner}"]
    if draw.random() < 0.05:
        asked = WRONG
        outer.append(draw.choice(BESIDE))
    draw.shuffle(outer)
    text = ("{" + ",".join(outer) + "}").encode("utf-8", "surrogatepass")
    target = "/v2/job" + draw.choice(("", "", "?price=true", "?safety_tolerance=6"))
    accept = (("Accept", draw.choice(ACCEPTS)),)
    if operation == "generate" and draw.random() < 0.5:
        return Attempt(tenant, operation, variant, asked, target, "application/json", text, accept)
    parts: list[tuple[str, bytes] | tuple[str, bytes, str] | bytes] = [("job", text, draw.choice((JSON, "")))]
    if operation == "edit":
        parts += [("input", PHOTO, JPEG)] * draw.choice((1, 1, 2))
    if draw.random() < 0.08:
        asked = WRONG
        parts.append(
            draw.choice((("job", text, JSON), ("safety_tolerance", b"6"), ("config", b'{"safety_tolerance":6}')))
        )
    draw.shuffle(parts)
    return Attempt(tenant, operation, variant, asked, target, FORM, form(*parts), accept)
