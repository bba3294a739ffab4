"""How each kind of fault looks on the wire: refusals before a job is accepted, and good answers made bad.

Pure, called by the job endpoint; what a fault's options mean is written where they are declared, in `faults.py`.
"""

import math
import time
from collections.abc import Mapping
from dataclasses import replace
from email.utils import formatdate

from .delivery import Answer, Cut, Hang, Trickle, Whole, text
from .document import Part, envelope
from .faults import (
    Busy,
    CutAfterAccept,
    CutMidBody,
    DuplicateParts,
    Error,
    Malformed,
    Options,
    Redirect,
    Truncated,
    Unauthorised,
    WrongContentType,
)
from .faults import (
    Hang as HangFault,
)
from .faults import (
    Trickle as TrickleFault,
)

HTML = (
    "<html>\r\n<head><title>{status} Error</title></head>\r\n"
    "<body>\r\n<center><h1>{status} Error</h1></center>\r\n</body>\r\n</html>\r\n"
)


def refusal(settings: Options) -> Answer | None:
    """The answer of a fault that keeps the job from being accepted; None for every other."""
    match settings:
        case Busy():
            return text(429, settings.body, retry_after(settings))
        case Unauthorised():
            return text(401, settings.body)
        case Redirect():
            return text(settings.status, "", [("location", settings.location)])
        case Error(accepted=False):
            return error(settings)
    return None


def error(settings: Error) -> Answer:
    headers = retry_after(settings)
    if settings.html:
        body = settings.body if settings.body is not None else HTML.format(status=settings.status)
        return Answer(settings.status, "text/html; charset=utf-8", body.encode(), headers)
    return text(settings.status, settings.body if settings.body is not None else "internal server error\n", headers)


def retry_after(settings: Busy | Error) -> list[tuple[str, str]]:
    value = settings.retry_after
    values = value if isinstance(value, list) else [] if value is None else [value]
    return [("retry-after", _date(one) if settings.as_date and isinstance(one, int) else str(one)) for one in values]


def _date(seconds: int) -> str:
    """The HTTP-date so many seconds from now; never sooner, because it has no fractions."""
    return formatdate(math.ceil(time.time()) + seconds, usegmt=True)


def wordless(settings: Options | None) -> Answer | None:
    """The answer of a fault that loses the finished job's answer altogether, so that no picture need be drawn."""
    match settings:
        case CutAfterAccept():
            return Answer(200, "", b"", delivery=Cut(0, settings.reset))
        case HangFault():
            return Answer(200, "", b"", delivery=Hang(settings.seconds))
        case Error():
            return error(settings)
    return None


def spoiled(settings: Options | None, answer: Answer, parts: list[Part]) -> Answer:
    """A completed job's answer after the fault has had its way with it; `parts` are what the answer was made of."""
    match settings:
        case CutMidBody():
            return replace(answer, delivery=Cut(settings.fraction, settings.reset))
        case TrickleFault():
            return replace(answer, delivery=Trickle(settings.seconds, settings.pieces))
        case Truncated():
            return replace(answer, body=answer.body[: int(len(answer.body) * settings.fraction)], delivery=Whole(True))
        case WrongContentType(where="answer"):
            return replace(answer, content_type=settings.content_type)
        case WrongContentType():
            return recomposed(answer, [_retyped(part, settings.content_type) for part in parts])
        case DuplicateParts():
            return recomposed(answer, [part for part in parts for _ in range(_times(part, settings))])
        case Malformed():
            return _malformed(settings.variant, answer, parts)
    return answer


def recomposed(answer: Answer, parts: list[Part]) -> Answer:
    """The answer made of other parts, in the container it had: of a bare one, the last part is all there is."""
    if _enveloped(answer):
        content_type, body = envelope(parts)
        return replace(answer, content_type=content_type, body=body)
    return replace(answer, content_type=parts[-1].content_type, body=parts[-1].data)


def _enveloped(answer: Answer) -> bool:
    return answer.content_type.startswith("multipart/")


def _retyped(part: Part, content_type: str) -> Part:
    return replace(part, content_type=content_type) if part.name == "output" else part


def _times(part: Part, settings: DuplicateParts) -> int:
    return 2 if settings.part in (part.name, "both") else 1


def _malformed(variant: str, answer: Answer, parts: list[Part]) -> Answer:
    match variant:
        case "garbage":
            return replace(answer, body=b"\x00garbage\xff" * 32)
        case "wrong_content_type":
            return replace(answer, content_type="application/octet-stream")
        case "no_boundary":
            return replace(answer, content_type=answer.content_type.partition(";")[0])
    if not _enveloped(answer):  # there are no parts to spoil, so the one body is
        return replace(answer, body=b"" if variant != "broken_json" else answer.body[: len(answer.body) // 2])
    spoil: Mapping[str, list[Part]] = {
        "broken_json": [replace(part, data=part.data[:-9]) if part.name == "job" else part for part in parts],
        "missing_output": [part for part in parts if part.name != "output"],
        "missing_job": [part for part in parts if part.name != "job"],
        "empty_output": [replace(part, data=b"") if part.name == "output" else part for part in parts],
    }
    return recomposed(answer, spoil[variant])
