"""What can be made to go wrong, as data: a list of `Fault`s, each of one kind with its own checked options.

Given in the configuration, or as part of a scenario (see `scenario.py`). A mistake is a `FaultError` that names the
field. How each kind looks on the wire is in `spoil.py`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from .jobtypes import JOB_TYPES

Seconds = Annotated[float, Field(ge=0, le=3_600, allow_inf_nan=False)]
Fraction = Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False)]
HeaderText = Annotated[str, Field(max_length=200, pattern=r"^[\x20-\x7e]*$")]
RetryAfter = HeaderText | int | None | Annotated[list[HeaderText | int], Field(max_length=2)]
"""A number of seconds, any text, nothing, or a list of up to two values, which become two headers. With `as_date` a
number is sent as the HTTP-date so many seconds from now."""


class FaultError(ValueError):
    """A fault that cannot be used. `field` is its path, such as `0.options.retry_after`."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}")
        self.field = field
        self.message = message


class Options(BaseModel):
    """Options common to no kind: the strictness of all."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class Accepting(Options):
    """The job is accepted: it runs, and is billed unless `billed` is false."""

    billed: bool = True
    after_seconds: Seconds | None = None
    """How long the job runs, not scaled. None: as long as any other."""


class Failing(Options):
    """The job is accepted and ends as a failed job with this text; billed if the sandbox bills failures."""

    outcome: ClassVar[str] = "failed"
    text: str = Field(default="The upstream model failed to process the job", max_length=2_000)
    after_seconds: Seconds | None = None


class Busy(Options):
    retry_after: RetryAfter = 1
    as_date: bool = False
    body: str = "no capacity: the job cannot be scheduled\n"


class Moderated(Failing):
    """Prodia does not publish how it says this; the words are those of the models' owner."""

    outcome: ClassVar[str] = "moderated"


class ModeratedPrompt(Moderated):
    text: str = Field(default="Request Moderated: the prompt was flagged", max_length=2_000)


class ModeratedInput(Moderated):
    text: str = Field(default="Request Moderated: the input image was flagged", max_length=2_000)


class ModeratedOutput(Moderated):
    text: str = Field(default="Content Moderated", max_length=2_000)


class FailedJson(Failing):
    """As `failed`, in a JSON body whatever was accepted: what Prodia answered until January 2025."""


class Error(Accepting):
    status: int = Field(default=500, ge=400, le=599)
    html: bool = False
    body: str | None = None
    retry_after: RetryAfter = None
    as_date: bool = False
    accepted: bool = False
    """False: refused before acceptance, never billed. True: the job ran, and its answer was lost to this error."""


class CutAfterAccept(Accepting):
    after_seconds: Seconds | None = 0.0
    reset: bool = False
    """Close with a TCP reset instead of an orderly end."""


class Hang(Accepting):
    after_seconds: Seconds | None = 0.0
    seconds: Seconds = 300.0
    """Closed without an answer after this long, if the caller has not given up before."""


class CutMidBody(Accepting):
    fraction: Fraction = 0.5
    reset: bool = False


class Malformed(Accepting):
    variant: Literal[
        "broken_json", "missing_output", "missing_job", "empty_output", "wrong_content_type", "no_boundary", "garbage"
    ] = "broken_json"


class Truncated(Accepting):
    fraction: Fraction = 0.5


class WrongContentType(Accepting):
    content_type: HeaderText = "text/html; charset=utf-8"
    where: Literal["answer", "output"] = "answer"


class Trickle(Accepting):
    seconds: Seconds = 5.0
    pieces: int = Field(default=20, ge=1, le=10_000)


class Slow(Accepting):
    after_seconds: Seconds | None = 130.0


class DuplicateParts(Accepting):
    part: Literal["job", "output", "both"] = "both"


class Overcharge(Accepting):
    dollars: float | None = Field(default=None, ge=0, le=1_000, allow_inf_nan=False)
    """The price reported and billed. None: twice the book's."""


class Unauthorised(Options):
    body: str = "token is invalid\n"


class Redirect(Options):
    status: Literal[301, 302, 303, 307, 308] = 307
    location: HeaderText = "https://elsewhere.invalid/v2/job"


KINDS: Mapping[str, type[Options]] = {
    "failed": Failing,
    "busy": Busy,
    "cut_after_accept": CutAfterAccept,
    "error": Error,
    "moderated_prompt": ModeratedPrompt,
    "moderated_input": ModeratedInput,
    "moderated_output": ModeratedOutput,
    "hang": Hang,
    "cut_mid_body": CutMidBody,
    "malformed": Malformed,
    "truncated": Truncated,
    "wrong_content_type": WrongContentType,
    "trickle": Trickle,
    "slow": Slow,
    "duplicate_parts": DuplicateParts,
    "unauthorised": Unauthorised,
    "failed_json": FailedJson,
    "overcharge": Overcharge,
    "redirect": Redirect,
}


class _Spec(Options):
    kind: str
    job_type: str | None = None
    count: int | None = Field(default=None, ge=1)
    probability: float = Field(default=1.0, ge=0, le=1, allow_inf_nan=False)
    after: int = Field(default=0, ge=0)
    options: dict[str, Any] = Field(default_factory=dict)


@dataclass(frozen=True)
class Fault:
    """One thing that goes wrong. Raises FaultError naming the field that is not right.

    It concerns jobs of `job_type` (None: all), lets the first `after` of them pass, fires on each later one with
    `probability`, and at most `count` times (None: without end). At most one fault fires per job: of several, each
    has its own share, in the order of the list.
    """

    kind: str
    job_type: str | None = None
    count: int | None = None
    probability: float = 1.0
    after: int = 0
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _checked(_Spec, self.__dict__, "")
        if self.kind not in KINDS:
            raise FaultError("kind", "must be one of " + ", ".join(KINDS))
        if self.job_type is not None and self.job_type not in JOB_TYPES:
            raise FaultError("job_type", "must be one of " + ", ".join(JOB_TYPES))
        if self.kind == "moderated_input" and self.job_type is not None and not JOB_TYPES[self.job_type].takes_input:
            raise FaultError("job_type", "this job type has no input to moderate")
        object.__setattr__(self, "_settings", _checked(KINDS[self.kind], self.options, "options."))

    @property
    def settings(self) -> Options:
        """The options, checked and with their defaults."""
        settings: Options = self.__dict__["_settings"]
        return settings

    def as_data(self) -> dict[str, Any]:
        """The fault as JSON data, ready to be given back to `parse_faults`."""
        return asdict(self)


def _checked(model: type[Options], data: Mapping[str, Any], prefix: str) -> Options:
    try:
        return model.model_validate(dict(data))
    except ValidationError as error:
        name = str(error.errors()[0]["loc"][0])
        told = [one["msg"] for one in error.errors() if one["loc"][0] == name]
        raise FaultError(prefix + name, ", or: ".join(dict.fromkeys(told))) from None


def parse_faults(data: object) -> list[Fault]:
    """Faults from JSON data: a list of objects with the fields of `Fault`. Raises FaultError with the place."""
    if not isinstance(data, Sequence) or isinstance(data, str | bytes):
        raise FaultError("faults", "must be a list")
    return [_parse_fault(place, item) for place, item in enumerate(data)]


def _parse_fault(place: int, item: object) -> Fault:
    if not isinstance(item, Mapping):
        raise FaultError(str(place), "must be an object")
    for key in item:
        if key not in Fault.__dataclass_fields__:
            raise FaultError(f"{place}.{key}", "is not a field of a fault")
    if "kind" not in item:
        raise FaultError(f"{place}.kind", "is required")
    try:
        return Fault(**item)
    except FaultError as error:
        raise FaultError(f"{place}.{error.field}", error.message) from None
