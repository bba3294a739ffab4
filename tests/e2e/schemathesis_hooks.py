"""What a schema cannot describe: pictures, and how a value is spelled. Loaded by the schema-driven test's process."""

from __future__ import annotations

import base64
import re
from datetime import UTC, datetime
from typing import Any

import schemathesis
from hypothesis import strategies as st
from schemathesis.transport.serialization import Binary

from app.domain.catalog import load
from app.domain.usage import parse_query
from app.errors import InvalidRequest
from tests.images.pictures import picture

PICTURES = [picture(kind, width, 256) for kind in ("jpeg", "png", "webp") for width in (256, 300)]
CODED = [base64.b64encode(data).decode() for data in PICTURES]
INTEGERS = {name for job in load().jobs for name, parameter in job.parameters.items() if parameter.kind == "integer"}
INTEGERS |= {"n", "output_compression", "partial_images"}  # OpenAI's
HOOK = "webhook_url"  # is for tenants that allow it, and for calls that do not wait
TEXTS = {"prompt", "user", "tags", "safety_identifier"}

schemathesis.openapi.format("image-data-url", st.sampled_from([f"data:image/png;base64,{text}" for text in CODED]))
schemathesis.openapi.format("image-base64", st.sampled_from(CODED))
schemathesis.openapi.format("printable", st.text("abcXYZ019 -_.@é漢😀", min_size=1, max_size=32))
schemathesis.openapi.format("binary", st.sampled_from(PICTURES).map(Binary))


@schemathesis.hook
def filter_case(context: schemathesis.HookContext, case: schemathesis.Case[Any]) -> bool:
    """Leave out what looks wrong and is legal, or looks legal and is not, for reasons that a schema cannot say.

    An integer spelled 6.0 is one to JSON Schema, and the gateway refuses that spelling on purpose. And a form carries
    texts and files only: nulls, objects and lists become texts, or nothing at all, before they are sent, and a number
    in the place of a text is one. A webhook is only for some tenants and calls. Two dates of a report may be legal
    each and not together.
    """
    if not _fit_together(case.query or {}) or (case.path == "/v1/client-tokens" and not _narrow_enough(case.body)):
        return False
    fields = case.body if isinstance(case.body, dict) else {}
    if HOOK in fields and case.path in ("/v1/generate", "/v1/edit"):
        return False
    if isinstance(config := fields.get("config"), dict):  # of a job in Prodia's form
        fields = fields | config
    if any(isinstance(value, float) and value.is_integer() for name, value in fields.items() if name in INTEGERS):
        return False
    return case.media_type != "multipart/form-data" or all(_as_it_looks(*field) for field in fields.items())


def _narrow_enough(body: Any) -> bool:
    """Whether a body asks for no more than its key allows, which a document cannot say."""
    fields = body if isinstance(body, dict) else {}
    life, ceiling, variants = fields.get("expires_in", 1), fields.get("ceiling", 0), fields.get("variants", [])
    return (
        not any(isinstance(value, float) and value.is_integer() for value in fields.values())
        and not (isinstance(life, int) and life > 3600)
        and not (isinstance(ceiling, int) and 2 < ceiling <= 6)
        and not (isinstance(variants, list) and "dev" in variants)
        and not (isinstance(fields.get("origins"), list) and fields["origins"])
    )


def _fit_together(query: dict[str, Any]) -> bool:
    dates = {name: query[name] for name in ("from", "to") if name in query}
    if not dates or not all(re.fullmatch(r"\d{4}-\d\d-\d\d", str(value)) for value in dates.values()):
        return True
    try:
        parse_query([(name, str(value)) for name, value in dates.items()], today=datetime.now(UTC).date())
    except InvalidRequest:
        return False
    return True


def _as_it_looks(name: str, value: object) -> bool:
    values = value if isinstance(value, list) and name == "tags" else [value]
    return not any(
        one is None or isinstance(one, list | dict) or (name in TEXTS and not isinstance(one, str)) for one in values
    )
