"""What an installation keeps in files beside its settings: the operator's catalogue, and a sandbox's tenant and pepper.

For the composition root and the commands. Without the web framework, so that a command starts in a fraction of the
time that the gateway takes.
"""

from __future__ import annotations

import secrets
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType

from app.domain import catalog as catalogue
from app.domain.tenant import Budget, ImageQuota, Limits, Rate, Safety, SafetyRule, Tenant
from app.settings import Settings

DEMO = Tenant(
    id="demo",
    name="Demo",
    safety=Safety(
        rules=MappingProxyType({"generate": SafetyRule(ceiling=4), "edit": SafetyRule(ceiling=2)}),
        mode="clamp",
        allow_without_knob=frozenset({"dev"}),
    ),
    limits=Limits(
        requests=Rate(600, 60, 100),
        images=(ImageQuota(1000, "day"),),
        concurrency=16,
        budgets=(Budget(20_000_000, "day"),),
    ),
)


def load_catalog(settings: Settings) -> catalogue.Catalog:
    """The catalogue with the operator's file. Raises CatalogError, OSError."""
    path = settings.gateway_catalog_file
    try:
        return catalogue.load(None if path is None else path.read_text("utf-8"), file=str(path))
    except UnicodeDecodeError:
        raise catalogue.CatalogError([f"{path}:1: is not UTF-8 text"]) from None


def offered(catalog: catalogue.Catalog) -> dict[str, frozenset[str]]:
    """Operation -> variants, for the tenants file."""
    return {operation: frozenset(catalog.variants(operation)) for operation in ("generate", "edit")}


def pepper_of(data_dir: Path) -> str:
    """The sandbox's own pepper, made once and kept in the data directory for this user only."""
    data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    path = data_dir / "pepper"
    with suppress(FileExistsError):
        path.touch(mode=0o600, exist_ok=False)
        path.write_text(secrets.token_hex(32))
    return path.read_text().strip()
