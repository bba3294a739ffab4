"""Requests and callers for the tests of the pure domain."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from app.domain.catalog import Catalog, load
from app.domain.job import Ask, Caller, Request
from app.domain.tenant import KeyPolicy, Safety, SafetyRule, Tenant
from app.domain.upload import Upload
from app.domain.validate import validate

CATALOG = load()
PICTURE = b"a picture"


def ask(operation: str = "generate", *, textual: bool = False, accepted: str | None = None, **fields: Any) -> Ask:
    """A legal ask of an operation, prompt and upload included, with more fields or other ones. None leaves one out."""
    wanted = {"prompt": "a lighthouse at dawn"} | fields
    uploads = {"image": Upload(PICTURE)} if operation == "edit" else {}
    present = {name: value for name, value in wanted.items() if value is not None}
    return Ask(operation, present, uploads, textual=textual, accepted_format=accepted)


def request(operation: str = "generate", catalog: Catalog = CATALOG, **fields: Any) -> Request:
    """The same, as the catalogue has allowed it."""
    return validate(ask(operation, **fields), catalog)


def tenant(
    rules: Mapping[str, SafetyRule] | None = None, *, mode: Any = "clamp", without: Any = (), **fields: Any
) -> Tenant:
    """A tenant with a safety policy."""
    safety = Safety(MappingProxyType(dict(rules or {})), mode, frozenset(without))
    return Tenant(id="acme", name="Acme", safety=safety, **fields)


def caller(tenant: Tenant, policy: KeyPolicy | None = None) -> Caller:
    """A key of that tenant."""
    return Caller(tenant, "key_1", "digest", policy or KeyPolicy())
