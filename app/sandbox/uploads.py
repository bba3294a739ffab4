"""Whether the uploaded pictures fit the job: formats, sides, sizes and file names.

Pure; called once a job's parameters are valid. Prodia's own wording for inputs is not public: these texts follow the
grammar of its other validation messages.
"""

from collections import Counter
from collections.abc import Iterator

from .jobtypes import JobType
from .request import JobRequest, Upload
from .schema import number

LEAST_SIDE, MOST_SIDE = 256, 1_920
MOST_BYTES = 10_000_000


def input_violations(job: JobType, asked: JobRequest, *, strict_filenames: bool) -> list[str]:
    """What is wrong with the inputs, in a stable order. A job type without inputs ignores what is sent."""
    inputs = _inputs(asked)
    if strict_filenames:
        several = [name for name, times in Counter(part.filename for part in inputs).items() if times > 1]
        if several:
            return [f"input file names must differ: '{several[0]}'"]
    if not job.takes_input:
        return []
    if not inputs:
        return ["at '/inputs': minItems: got 0, want 1"]
    names = {part.filename for part in inputs}
    unknown = [f"at '/config/images/{at}': no such input" for at, n in enumerate(_images(asked)) if n not in names]
    return unknown or list(_picture(inputs.index(chosen_input(asked)), chosen_input(asked)))


def chosen_input(asked: JobRequest) -> Upload:
    """The picture to edit: the first that `config.images` names, else the first uploaded. Others are ignored."""
    inputs = _inputs(asked)
    wanted = next(iter(_images(asked)), None)
    return next((part for part in inputs if wanted is not None and part.filename == wanted), inputs[0])


def _inputs(asked: JobRequest) -> list[Upload]:
    return [part for part in asked.uploads if part.name == "input"]


def _images(asked: JobRequest) -> list[str]:
    images: list[str] = asked.document["config"].get("images", [])
    return images


def _picture(place: int, upload: Upload) -> Iterator[str]:
    facts = upload.inspection
    where = f"at '/inputs/{place}"
    if facts.size > MOST_BYTES:
        yield f"{where}/bytes': maximum: got {number(facts.size)}, want {number(MOST_BYTES)}"
    if facts.format is None:
        yield f"{where}': value must be one of 'image/jpeg', 'image/png', 'image/webp'"
        return
    for name, side in (("width", facts.width), ("height", facts.height)):
        if side is None:
            yield f"{where}': the picture cannot be decoded"
            return
        if side < LEAST_SIDE:
            yield f"{where}/{name}': minimum: got {number(side)}, want {LEAST_SIDE}"
        if side > MOST_SIDE:
            yield f"{where}/{name}': maximum: got {number(side)}, want {number(MOST_SIDE)}"
