"""What the suites of OpenAI's clients share: the stage with two jobs that go wrong, and the examples of README."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.clients.stage import Stage, Steps, stage
from tests.docs.page import blocks

FAULTS: list[dict[str, Any]] = [
    {"kind": "cut_after_accept", "job_type": "inference.flux-kontext.max.img2img.v2"},
    {"kind": "moderated_prompt", "job_type": "inference.flux-kontext.max.txt2img.v2", "after": 3},
]
# Without this LiteLLM asks the network for prices when it is imported.
QUIET = {"LITELLM_LOCAL_MODEL_COST_MAP": "True"}


@dataclass(frozen=True)
class Played:
    """A script that has run to its end, and the stage that it ran on."""

    on: Stage
    steps: Steps

    def received(self, job_type: str) -> int:
        """Jobs of a type that the upstream received."""
        return int(self.on.fleet.stats()["by_type"].get(job_type, {}).get("received", 0))


@contextmanager
def played(folder: Path, script: str) -> Iterator[Played]:
    """The lost job is a max edit; the moderated one is the fourth max generation."""
    with stage(folder) as on:
        on.fleet.faults(FAULTS)
        yield Played(on, on.node(script) if script.endswith(".mjs") else on.python(script, **QUIET))


def example(part: str) -> str:
    """The code of a client in README."""
    (code,) = [block.text for block in blocks() if block.part == part]
    return code
