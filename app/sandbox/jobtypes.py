"""The five FLUX.1 Kontext job types: parameters, ranges, defaults, price and typical time.

Data only, typed from Prodia's public description of the models; read by validation, the bill and the picture.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal["string", "integer", "number", "boolean", "array"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameter:
    """One key of a job's `config`, in the vocabulary of JSON Schema."""

    name: str
    kind: Kind
    default: Any = None
    required: bool = False
    minimum: float | None = None
    maximum: float | None = None
    multiple_of: int | None = None
    min_length: int | None = None
    max_length: int | None = None
    choices: tuple[str, ...] = ()
    pattern: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class JobType:
    """One job type. `micro_usd` is the price of one job, `seconds` its typical time."""

    name: str
    title: str
    product: str
    micro_usd: int
    seconds: float
    takes_input: bool
    parameters: Mapping[str, Parameter]

    @property
    def has_safety(self) -> bool:
        return "safety_tolerance" in self.parameters


def _table(*parameters: Parameter) -> Mapping[str, Parameter]:
    return {parameter.name: parameter for parameter in parameters}


PROMPT = Parameter(name="prompt", kind="string", required=True, min_length=3, max_length=4_096)
SEED = Parameter(name="seed", kind="integer")
IMAGES = Parameter(name="images", kind="array", min_length=1)
UPSAMPLING = Parameter(name="prompt_upsampling", kind="boolean", default=False)
RATIO = r"^[1-9][0-9]{0,4}:[1-9][0-9]{0,4}$"

GENERATE = _table(
    PROMPT,
    Parameter(name="aspect_ratio", kind="string", default="1:1", pattern=RATIO),
    UPSAMPLING,
    Parameter(name="safety_tolerance", kind="integer", default=4, minimum=0, maximum=6),
    SEED,
)
EDIT = _table(
    PROMPT,
    Parameter(name="aspect_ratio", kind="string", pattern=RATIO),
    UPSAMPLING,
    Parameter(name="safety_tolerance", kind="integer", default=2, minimum=0, maximum=2),
    SEED,
    IMAGES,
)
STYLES = (
    "3d-model analog-film anime cinematic comic-book craft-clay digital-art enhance fantasy-art isometric line-art "
    "low-poly neon-punk origami photographic pixel-art texture"
)
DEV = _table(
    PROMPT,
    Parameter(name="style_preset", kind="string", choices=tuple(STYLES.split())),
    Parameter(name="width", kind="integer", default=1_024, minimum=512, maximum=1_040, multiple_of=32),
    Parameter(name="height", kind="integer", default=1_024, minimum=512, maximum=1_040, multiple_of=32),
    Parameter(name="steps", kind="integer", default=30, minimum=1, maximum=50),
    Parameter(name="guidance_scale", kind="number", default=2.5),
    SEED,
    Parameter(name="progressive", kind="boolean", default=False),
    IMAGES,
)


JOB_TYPES: Mapping[str, JobType] = {
    job.name: job
    for job in (
        JobType(
            name="inference.flux-kontext.pro.txt2img.v2",
            title="pro generate",
            product="inference-flux-kontext-pro",
            micro_usd=40_000,
            seconds=6.0,
            takes_input=False,
            parameters=GENERATE,
        ),
        JobType(
            name="inference.flux-kontext.pro.img2img.v2",
            title="pro edit",
            product="inference-flux-kontext-pro",
            micro_usd=40_000,
            seconds=6.0,
            takes_input=True,
            parameters=EDIT,
        ),
        JobType(
            name="inference.flux-kontext.max.txt2img.v2",
            title="max generate",
            product="inference-flux-kontext-max",
            micro_usd=80_000,
            seconds=7.0,
            takes_input=False,
            parameters=GENERATE,
        ),
        JobType(
            name="inference.flux-kontext.max.img2img.v2",
            title="max edit",
            product="inference-flux-kontext-max",
            micro_usd=80_000,
            seconds=7.0,
            takes_input=True,
            parameters=EDIT,
        ),
        JobType(
            name="inference.flux-fast.dev-kontext.img2img.v1",
            title="dev edit",
            product="inference-flux-fast-dev-kontext",
            micro_usd=25_000,
            seconds=7.0,
            takes_input=True,
            parameters=DEV,
        ),
    )
}
