"""A fault of the gateway's own is answered like every refusal, and tells nothing of what went wrong."""

from __future__ import annotations

from io import BytesIO, TextIOWrapper
from pathlib import Path

import httpx2
import pytest
from pydantic import SecretStr

from app.main import create_app
from app.settings import Settings
from app.telemetry import logs
from tests.fleet import PEPPER, TOKEN


async def test_an_error_that_nobody_expected_is_a_problem_document_without_traces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tenants.yaml").write_text('{"version": 1, "tenants": {"acme": {"name": "Acme"}}}\n')
    settings = Settings(
        prodia_token=SecretStr(TOKEN),
        prodia_base_url="http://127.0.0.1:1/v2",
        redis_url=SecretStr("redis://127.0.0.1:1/0"),
        gateway_key_pepper=SecretStr(PEPPER),
        gateway_tenants_file=tmp_path / "tenants.yaml",
        gateway_data_dir=tmp_path,
    )
    written = BytesIO()
    stream = TextIOWrapper(written)
    made = create_app(settings, log=logs.configure(stream=stream))

    async def broken(*_: object) -> None:
        raise RuntimeError("a secret kanarienvogel")

    monkeypatch.setattr(type(made.gateway), "authenticate", broken)
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app=made.public), base_url="http://x") as client:
        answer = await client.get("/v1/me", headers={"Authorization": "Bearer kanarienvogel"})
    found = answer.json()
    assert (answer.status_code, answer.headers["content-type"]) == (500, "application/problem+json")
    assert (found["code"], found["charged"], found["status"]) == ("internal", "unknown", 500)
    assert answer.headers["x-request-id"] == found["request_id"]
    log = written.getvalue().decode()
    assert found["request_id"] in log
    assert "RuntimeError" in log
    assert "test_crash.py" in log
    assert "kanarienvogel" not in answer.text + str(answer.headers) + log
