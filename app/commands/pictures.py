"""`generate` and `edit`: a command line in front of `app.client`, for one prompt or many at once.

They talk to the gateway at GATEWAY_URL with the key in GATEWAY_KEY or a file; a key is no option, because options are
seen in the list of processes. Exit codes: 0, 1 a refusal or failure, 2 a wrong command line (nothing was sent), 3 the
gateway was not reached, 130 Ctrl-C.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from app.client import IMAGE_ID, Client, GatewayFailure, Picture
from app.commands.bar import Bar
from app.commands.files import Files
from app.commands.prompts import OURS, Wanted, read
from app.commands.report import Report

Prompt = Annotated[str | None, typer.Argument(help="What to show; for an edit, the instruction.")]
Source = Annotated[str, typer.Argument(help="The picture: a file, or the id of an earlier one (img_...).")]
Variant = Annotated[str | None, typer.Option(help="Which model.")]
Seed = Annotated[int | None, typer.Option(help="Makes the picture repeatable.")]
AspectRatio = Annotated[str | None, typer.Option(help="Such as 16:9.")]
Upsampling = Annotated[bool | None, typer.Option(help="Let the upstream extend a short prompt.")]
Safety = Annotated[int | None, typer.Option(help="Lower is stricter.")]
Style = Annotated[str | None, typer.Option(help="A style of dev.")]
Width = Annotated[int | None, typer.Option(help="Pixels.")]
Height = Annotated[int | None, typer.Option(help="Pixels.")]
Steps = Annotated[int | None, typer.Option(help="Steps of dev.")]
Guidance = Annotated[float | None, typer.Option(help="Guidance of dev.")]
Progressive = Annotated[bool | None, typer.Option(help="A progressive JPEG.")]
Fit = Annotated[str | None, typer.Option(help="auto, or strict: refuse a picture that would have to be changed.")]
Format = Annotated[str | None, typer.Option(help="jpeg, png or webp; otherwise by the ending of the file.")]
User = Annotated[str | None, typer.Option(help="Your end user.")]
Tags = Annotated[list[str] | None, typer.Option(help="Kept for reports; may be repeated.")]
Sets = Annotated[list[str] | None, typer.Option("--set", help="NAME=VALUE of any other field; may be repeated.")]
Output = Annotated[str | None, typer.Option("--output", "-o", help="File, directory, template, or - for stdout.")]
Force = Annotated[bool, typer.Option("--force", help="Replace files that are there.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, one object a line.")]
Prompts = Annotated[str | None, typer.Option(help="File with one prompt or JSON object a line; - is stdin.")]
Jobs = Annotated[int, typer.Option(min=1, max=1000, help="How many at once, with --prompts.")]
Url = Annotated[str, typer.Option(envvar="GATEWAY_URL", help="Address of the gateway.")]
KeyFile = Annotated[Path | None, typer.Option(help="File that holds the key, in place of GATEWAY_KEY.")]
Timeout = Annotated[float, typer.Option(help="Seconds for one picture, in all.")]
Retries = Annotated[int, typer.Option(min=0, help="Re-sends of what was refused unpaid and may work later.")]
HERE = "http://127.0.0.1:8080"


def generate(
    prompt: Prompt = None,
    variant: Variant = None,
    seed: Seed = None,
    aspect_ratio: AspectRatio = None,
    prompt_upsampling: Upsampling = None,
    safety_tolerance: Safety = None,
    output_format: Format = None,
    user: User = None,
    tag: Tags = None,
    sets: Sets = None,
    output: Output = None,
    force: Force = False,
    as_json: Json = False,
    prompts: Prompts = None,
    jobs: Jobs = 4,
    url: Url = HERE,
    key_file: KeyFile = None,
    timeout: Timeout = 180.0,
    retries: Retries = 2,
) -> None:
    """Make a picture from a text, or many from a file of texts."""
    given = {
        "variant": variant, "seed": seed, "aspect_ratio": aspect_ratio, "prompt_upsampling": prompt_upsampling,
        "safety_tolerance": safety_tolerance, "output_format": output_format, "user": user, "tags": tag,
    }  # fmt: skip
    order = Order("generate", prompt, prompts, given, sets or (), output, force, as_json, jobs)
    _run(order, None, lambda: Client(url, _key(key_file), timeout=timeout, retries=retries))


def edit(
    source: Source,
    prompt: Prompt = None,
    variant: Variant = None,
    seed: Seed = None,
    aspect_ratio: AspectRatio = None,
    prompt_upsampling: Upsampling = None,
    safety_tolerance: Safety = None,
    style_preset: Style = None,
    width: Width = None,
    height: Height = None,
    steps: Steps = None,
    guidance_scale: Guidance = None,
    progressive: Progressive = None,
    fit: Fit = None,
    output_format: Format = None,
    user: User = None,
    tag: Tags = None,
    sets: Sets = None,
    output: Output = None,
    force: Force = False,
    as_json: Json = False,
    prompts: Prompts = None,
    jobs: Jobs = 4,
    url: Url = HERE,
    key_file: KeyFile = None,
    timeout: Timeout = 180.0,
    retries: Retries = 2,
) -> None:
    """Change a picture as an instruction says, or in many ways as a file of instructions says."""
    given = {
        "variant": variant, "seed": seed, "aspect_ratio": aspect_ratio, "prompt_upsampling": prompt_upsampling,
        "safety_tolerance": safety_tolerance, "style_preset": style_preset, "width": width, "height": height,
        "steps": steps, "guidance_scale": guidance_scale, "progressive": progressive, "fit": fit,
        "output_format": output_format, "user": user, "tags": tag,
    }  # fmt: skip
    order = Order("edit", prompt, prompts, given, sets or (), output, force, as_json, jobs)
    _run(order, source, lambda: Client(url, _key(key_file), timeout=timeout, retries=retries))


@dataclass(frozen=True, slots=True)
class Order:
    """A command line as it was read."""

    operation: str
    prompt: str | None
    prompts: str | None
    given: Mapping[str, Any]
    sets: Sequence[str]
    output: str | None
    force: bool
    as_json: bool
    jobs: int

    def wanted(self) -> list[Wanted]:
        """What is to be made. Raises ValueError and OSError."""
        if (self.prompt is None) == (self.prompts is None):
            raise ValueError("give one prompt, or --prompts FILE")
        parameters = {name: value for name, value in self.given.items() if value not in (None, [])}
        for text in self.sets:
            name, sign, value = text.partition("=")
            if not (name and sign) or name in parameters or name in (*OURS, "prompt"):
                raise ValueError(f"--set {name}: must be NAME=VALUE of a field that no other option sets")
            try:
                parameters[name] = json.loads(value)
            except ValueError:
                parameters[name] = value
        if self.prompts is not None:
            return read(self.prompts, parameters)
        return [Wanted(1, self.prompt or "", parameters)]


def _run(order: Order, source: str | None, connect: Callable[[], Client]) -> NoReturn:
    try:
        files = Files(order.output, force=order.force)
        wanted = files.plan(order.wanted())
        image = None if source is None else source if IMAGE_ID.fullmatch(source) else Path(source).read_bytes()
        client = connect()
    except OSError as error:
        _wrong(f"{error.filename}: {error.strerror}")
    except ValueError as error:
        _wrong(str(error))
    bar = Bar(len(wanted), order.operation)
    report = Report(files, bar, several=order.prompts is not None, as_json=order.as_json)

    async def make(one: Wanted) -> Picture:
        if image is None:
            return await client.generate(one.prompt, **one.parameters)
        return await client.edit(image, one.prompt, **one.parameters)

    async def work(queue: Iterator[Wanted]) -> None:
        for one in queue:
            report.began(one)
            try:
                picture = await make(one)
            except GatewayFailure as error:
                report.failed(one, error)
            else:
                report.made(one, picture)

    async def everything() -> None:
        queue = iter(wanted)
        async with client:
            with bar.open():
                beside = [asyncio.create_task(task) for task in (bar.draw(), _learn(bar, client, order.operation))]
                try:
                    await asyncio.gather(*(work(queue) for _ in range(min(order.jobs, len(wanted)))))
                finally:
                    for task in beside:
                        task.cancel()
                    await asyncio.wait(beside)

    try:
        asyncio.run(everything())
    except KeyboardInterrupt:
        report.interrupted()
        raise typer.Exit(130) from None
    report.end()
    raise typer.Exit(report.exit_code)


async def _learn(bar: Bar, client: Client, operation: str) -> None:
    """Tell the bar how long pictures usually take; without that it counts only those that are finished."""
    if not bar.shown:
        return
    with suppress(GatewayFailure):
        models = await client.models()
        bar.typical = {job["variant"]: job["typical_seconds"] for job in models if job["operation"] == operation}


def _key(file: Path | None) -> str:
    key = os.environ.get("GATEWAY_KEY", "") if file is None else file.read_text("utf-8", "replace").strip()
    if not key:
        raise ValueError("GATEWAY_KEY is not set, and --key-file is not given" if file is None else f"{file}: is empty")
    return key


def _wrong(text: str) -> NoReturn:
    print(text, file=sys.stderr)
    raise typer.Exit(2)
