"""How one sandbox behaves. What Prodia does not publish is a switch here, with the likeliest answer as its default.

Built by the commands and by tests; read by every other module of this folder.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from .faults import Fault


@dataclass(frozen=True, kw_only=True)
class SandboxConfig:
    """The settings of one sandbox. Raises ValueError for a value out of range."""

    token: str = field(default="sandbox-token", repr=False)
    """The only bearer token that is accepted."""
    bill_path: Path | None = None
    """Where the bill is appended, one JSON line per billed job; an existing bill is continued. None: in memory only."""
    time_scale: float = 1.0
    """Factor on a job type's typical seconds (6 or 7, with up to 5 % jitter). 0 answers at once."""
    faults: Sequence[Fault] = ()
    """What goes wrong. This and most of what follows can be set in a file and while running: see `scenario.py`."""
    bill_failures: bool = False
    """Whether a failed or moderated job costs its price. A job refused by validation never does."""
    seed: int = 0
    """Makes fault draws, jitter and the seeds of seedless jobs repeatable in order of arrival."""

    picture: Literal["full", "small"] = "full"
    """`small` draws a valid picture of 1/16 of each side and does not decode the input: for load tests."""
    picture_bytes: int | None = None
    """Pads every picture, validly, to this many bytes (WebP: to the next even number). Never makes one smaller."""

    unknown_type_status: Literal[400, 429] = 400
    """Prodia was seen to answer an unknown job type either way."""
    unknown_keys: Literal["reject", "ignore"] = "reject"
    """Whether a key the job type does not have is refused with `additional properties ... not allowed`."""
    strict_filenames: bool = False
    """Refuse two inputs of the same file name. The official client sends such requests."""
    history: Literal["null", "absent", "array"] = "null"
    """`state.history` of a completed job."""
    disclose_seed: bool = False
    """Echo the seed that a seedless job was given."""
    image_failures: Literal["json", "multipart"] = "json"
    """Container of a failed job when the caller accepted a bare image."""
    output_filename: str | None = None
    """File name of the output part. None: `output.` and the format's extension."""
    capacity: int | None = None
    """Most jobs in progress at once; one more is answered 429 with `Retry-After: 1`. None: no limit."""

    log_limit: int = 200_000
    """How many of the last jobs, and of the last bill rows, are kept in memory."""
    body_limit: int = 40_000_000
    """Largest request body in bytes."""

    def __post_init__(self) -> None:
        if not 0 <= self.time_scale <= 1_000:
            raise ValueError("time_scale must be between 0 and 1000")
        for name in ("picture_bytes", "capacity"):
            value = getattr(self, name)
            if value is not None and value < 0:
                raise ValueError(f"{name} must not be negative")
        for name in ("log_limit", "body_limit"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1")
        if not self.token:
            raise ValueError("token must not be empty")
        if self.output_filename is not None and not self.output_filename.isprintable():
            raise ValueError("output_filename must be printable")
