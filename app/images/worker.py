"""What runs in a decode process, the only place where an upload's pixels are decoded. Called by `gate` through `lanes`.

Whatever a picture does to Pillow becomes `Malformed` with a constant text; what it does to the process (a crash, too
much memory or CPU time) ends that process alone. Imports no more than it needs, for every worker imports it anew.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import warnings
from dataclasses import dataclass
from io import BytesIO
from typing import Any

from PIL import Image, JpegImagePlugin, PngImagePlugin, WebPImagePlugin

from app.images.header import MAX_PIXELS, Header, Malformed, TooHeavy
from app.images.probe import read_header

_MEMORY = 1_500_000_000  # bytes of data and heap; 50 megapixels of RGBA take 200 MB per copy, and a WebP four copies
_CPU_SECONDS = 10  # per picture; the slowest that is accepted takes about 4
_PLUGINS = (JpegImagePlugin, PngImagePlugin, WebPImagePlugin)  # named, or Pillow would import every plugin to find WebP
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_QUALITIES = (92, 85, 75, 60, 45)


@dataclass(frozen=True, slots=True)
class Made:
    """A picture encoded anew: upright, of the size asked for, without metadata."""

    data: bytes
    format: str


def start() -> None:
    """Prepare a fresh process: limits, no reaction to the terminal's Ctrl-C, and an end when the parent ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    warnings.simplefilter("error", Image.DecompressionBombWarning)
    Image.MAX_IMAGE_PIXELS = MAX_PIXELS
    if sys.platform == "linux":
        import resource

        resource.setrlimit(resource.RLIMIT_DATA, (_MEMORY, _MEMORY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core file would hold the caller's picture
    threading.Thread(target=_end_with_parent, daemon=True).start()


def ready() -> None:
    """Nothing: that it returns says that the process started."""


def conform(data: bytes, target: tuple[int, int], max_bytes: int, formats: tuple[str, ...]) -> Made:
    """`remake`, with a limit on CPU time, and with whatever goes wrong in Pillow as Malformed.

    Raises:
        Malformed: the picture cannot be decoded.
        TooHeavy: no encoding of it is small enough.
    """
    _limit_cpu()
    try:
        return remake(data, target, max_bytes, formats)
    except Malformed:
        raise
    except Exception:
        raise Malformed("The picture could not be decoded.") from None


def remake(data: bytes, target: tuple[int, int], max_bytes: int, formats: tuple[str, ...]) -> Made:
    """Decode, turn upright, bring to `target` (width, height), and encode within `max_bytes` as one of `formats`."""
    header = read_header(data)
    image, profile = _decode(header.without_metadata(data), header, target)
    return _encode(image, profile, header.format, max_bytes, formats)


def _decode(data: bytes, header: Header, target: tuple[int, int]) -> tuple[Image.Image, bytes]:
    """The upright picture in L, LA, RGB or RGBA at `target` size, and its colour profile."""
    size = target if header.orientation < 5 else target[::-1]
    box = None
    with Image.open(BytesIO(data), formats=(header.format.upper(),)) as source:
        if source.size != (header.width, header.height):
            raise Malformed("The picture has another size than its header says.")
        profile = source.info.get("icc_profile") or b""
        # JPEG can be decoded at 1/2, 1/4 or 1/8; twice the target keeps the final filter's quality.
        if drafted := source.draft(None, (2 * size[0], 2 * size[1])):
            box = drafted[1]
        source.load()
        image = _plain(source)
    if image.size != size:
        image = image.resize(size, Image.Resampling.LANCZOS, box=box, reducing_gap=2.0)
    if header.orientation in _UPRIGHT:
        image = image.transpose(_UPRIGHT[header.orientation])
    if image.mode in ("LA", "RGBA") and image.getextrema()[-1] == (255, 255):
        image = image.convert(image.mode[:-1])
    return image, profile


def _plain(image: Image.Image) -> Image.Image:
    """The same picture with 8 bits per channel, no palette, and transparency, if any, as a channel."""
    if image.mode == "I;16":
        return image.point(lambda value: value / 256).convert("L")
    grey = image.mode in ("1", "L", "LA")
    mode = ("L" if grey else "RGB") + ("A" if image.has_transparency_data else "")
    return image if image.mode == mode else image.convert(mode)


def _encode(image: Image.Image, profile: bytes, source: str, max_bytes: int, formats: tuple[str, ...]) -> Made:
    """The first encoding that fits: as it came if possible, then smaller and lossy."""
    lossy = "webp" if source == "webp" or image.mode in ("LA", "RGBA") else "jpeg"
    attempts: list[tuple[str, dict[str, Any]]] = [(lossy, {"quality": quality, "method": 2}) for quality in _QUALITIES]
    if source == "png":
        attempts.insert(0, ("png", {"compress_level": 3}))
    image.info.clear()
    for format, options in attempts:
        if format not in formats:
            continue
        if profile[16:20] == (b"GRAY" if image.mode[0] == "L" and format != "webp" else b"RGB "):
            options["icc_profile"] = profile
        written = BytesIO()
        image.save(written, format.upper(), **options)
        if written.tell() <= max_bytes:
            return Made(written.getvalue(), format)
    raise TooHeavy("The picture cannot be encoded within the byte limit.")


def _limit_cpu() -> None:
    """Let this picture use so much more CPU time; past it the system ends the process."""
    if sys.platform == "linux":
        import resource

        used = resource.getrusage(resource.RUSAGE_SELF)
        soft = int(used.ru_utime + used.ru_stime) + 1 + _CPU_SECONDS
        resource.setrlimit(resource.RLIMIT_CPU, (soft, resource.getrlimit(resource.RLIMIT_CPU)[1]))


def _end_with_parent() -> None:
    """A worker keeps its own queue open, so it would otherwise outlive a killed parent, and wait for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
