"""Every route of both listeners as the framework will match it, and the role that it declares."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.routing import APIRoute
from pydantic import SecretStr

from app.main import create_app
from app.settings import Settings
from app.surfaces.deps import by_any, by_key
from tests.fleet import PEPPER, TOKEN

OPEN = {
    ("GET", "/metrics"),
    ("GET", "/healthz"),
    ("GET", "/readyz"),
    ("GET", "/openapi.json"),
    ("HEAD", "/openapi.json"),
}
ROLES = {"key": by_key, "any": by_any}
# What a client token may call; everything else is for keys.
FOR_TOKENS = {
    ("POST", "/v1/generate"),
    ("POST", "/v1/edit"),
    ("POST", "/v2/job"),
    ("POST", "/v2/job/async"),
    ("GET", "/v2/job/async/{job_id}/job.state.current"),
    ("GET", "/v2/job/async/{job_id}/job.json"),
    ("GET", "/v2/job/async/{job_id}/output"),
    ("GET", "/v2/job/async/{job_id}/output/{filename}"),
    ("GET", "/v1/models"),
    ("GET", "/v1/jobs"),
    ("GET", "/v1/jobs/{job_id}"),
    ("DELETE", "/v1/jobs/{job_id}"),
    ("GET", "/v1/jobs/{job_id}/events"),
    ("POST", "/v1/images/generations"),
    ("POST", "/v1/images/edits"),
    ("GET", "/v1/images/generations"),  # a 405 in OpenAI's words
    ("DELETE", "/v1/images/generations"),
    ("DELETE", "/v1/images/edits"),
    ("GET", "/v1/images/edits"),
    ("GET", "/v1/models/{model}"),
}


@dataclass(frozen=True)
class Declared:
    """One route and method of a listener, and who may call it: "open", "key", "any" (a client token too), or its own
    words; None says nothing."""

    method: str
    path: str
    role: str | None


def declared(app: FastAPI) -> list[Declared]:
    """Every route of a listener, included routers walked into."""
    found = []
    for route in _flat(app.routes):
        role = "open" if route.path == "/openapi.json" else None  # the framework's own route; see `OPEN`
        if isinstance(route, APIRoute):
            roles = [name for name, check in ROLES.items() if _authenticates(route.dependant, check)]
            role = roles[0] if roles else (route.openapi_extra or {}).get("x-role")
        found += [Declared(method, route.path, role) for method in sorted(route.methods or ())]
    return found


def settings(folder: Path, tenants: Mapping[str, object]) -> Settings:
    """Those of a gateway that is connected to nothing."""
    (folder / "tenants.yaml").write_text(json.dumps({"version": 1, "tenants": tenants}) + "\n")
    return Settings(
        prodia_token=SecretStr(TOKEN), prodia_base_url="http://127.0.0.1:1/v2",
        redis_url=SecretStr("redis://127.0.0.1:1/0"),
        gateway_key_pepper=SecretStr(PEPPER), gateway_tenants_file=folder / "tenants.yaml", gateway_data_dir=folder,
    )  # fmt: skip


def listeners(folder: Path, tenants: Mapping[str, object]) -> dict[str, FastAPI]:
    """The applications of a gateway's public and ops listeners; nothing is connected."""
    made = create_app(settings(folder, tenants))
    public, ops = made.public._app, made.ops._app
    assert isinstance(public, FastAPI)
    assert isinstance(ops, FastAPI)
    return {"public": public, "ops": ops}


def _flat(routes: list[Any]) -> Iterator[Any]:
    for route in routes:
        if inner := getattr(route, "original_router", None):
            yield from _flat(inner.routes)
        else:
            assert hasattr(route, "methods"), f"{route}: a mount or socket would escape this test"
            yield route


def _authenticates(dependant: Any, check: Any) -> bool:
    return dependant.call is check or any(_authenticates(one, check) for one in dependant.dependencies)
