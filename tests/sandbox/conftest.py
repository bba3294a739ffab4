from collections.abc import Iterator

import pytest

from app.sandbox import SandboxConfig

from .running import Box, running


@pytest.fixture(scope="session")
def shared_box() -> Iterator[Box]:
    with running(SandboxConfig(time_scale=0, picture="small")) as box:
        yield box


@pytest.fixture
def box(shared_box: Box) -> Box:
    """A sandbox that answers at once with small pictures, without faults and with an empty log."""
    shared_box.faults()
    shared_box.client.post("/sandbox/reset")
    return shared_box


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"
