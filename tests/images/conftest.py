"""One gate for the folder, so that its decode processes start once."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from app.images.gate import Gate


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
async def gate(anyio_backend: str) -> AsyncIterator[Gate]:
    opened = Gate(workers=2)
    yield opened
    await opened.aclose()
