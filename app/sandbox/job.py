"""`POST /v2/job`: the walk of one job from its first byte to its last.

Read, authorise, validate, meet a fault or not, run for the type's typical time, bill, answer. A caller that leaves does
not stop its job. Nothing a caller can send, and nothing that breaks in here, shows a stack trace.
"""

import asyncio
import logging
import random
import secrets
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.types import Receive, Scope, Send

from .accept import Wanted, parse_accept
from .bill import Bill, Charge
from .config import SandboxConfig
from .delivery import Answer, deliver, text
from .document import Birth, Part, completed, echo, envelope, failed, job_part, output_part, stamp, to_json
from .faults import Accepting, FailedJson, Failing, Fault, Options, Overcharge
from .jobtypes import JOB_TYPES, JobType
from .log import Entry, Log, digested
from .picture import Commission, UnusableInputError, draw, size_of
from .request import JobRequest, Upload, read_request
from .schema import type_name, violations
from .script import Script
from .spoil import refusal, spoiled, wordless
from .uploads import chosen_input, input_violations

LARGE = 65_536
"""Bodies above this many bytes are parsed in a worker thread."""
JITTER = 0.05

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Accepted:
    """One job that is running. `micro_usd` is what it costs if it completes."""

    job: JobType
    request: JobRequest
    wanted: Wanted
    entry: Entry
    born: Birth
    source: Upload | None
    settings: Options | None
    seconds: float
    micro_usd: int
    config: Mapping[str, Any]


class JobEndpoint:
    """The ASGI endpoint, with the state that its jobs share."""

    def __init__(self, switches: SandboxConfig, bill: Bill, log: Log) -> None:
        self.bill = bill
        self.log = log
        self._threads = ThreadPoolExecutor(thread_name_prefix="sandbox-job")
        self.play(switches)

    def play(self, switches: SandboxConfig) -> None:
        """From now on by these switches and faults; every fault's counts and all draws begin anew."""
        self.switches = switches
        self.script = Script(switches.faults, switches.seed)
        self._random = random.Random(f"{switches.seed}:jobs")

    def close(self) -> None:
        self._threads.shutdown(cancel_futures=True)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        try:
            body = await self._read(Request(scope, receive), headers)
        except ClientDisconnect:
            return
        asked = await self._parse(headers, scope.get("query_string", b""), body)
        expected = f"Bearer {self.switches.token}".encode()
        authorised = secrets.compare_digest(headers.get("authorization", "").encode(), expected)
        entry = self.log.open(asked, authorised=authorised)
        try:
            answer = await self._answer(asked, entry)
            entry.status = answer.status
            await deliver(answer, scope, receive, send)
        finally:
            self.log.close(entry)

    async def _read(self, request: Request, headers: Mapping[str, str]) -> bytes | None:
        """The body; None when it is larger than allowed, without having kept it."""
        length = headers.get("content-length", "0")
        if length.isdecimal() and int(length) > self.switches.body_limit:
            return None
        chunks: list[bytes] = []
        left = self.switches.body_limit
        async for chunk in request.stream():
            left -= len(chunk)
            if left < 0:
                return None
            chunks.append(chunk)
        return b"".join(chunks)

    async def _parse(self, headers: Mapping[str, str], query: bytes, body: bytes | None) -> JobRequest:
        if body is None:
            return JobRequest({}, [], headers.get("accept", ""), False, too_large=True)
        if len(body) <= LARGE:
            return read_request(headers, query, body)
        return await asyncio.get_running_loop().run_in_executor(self._threads, read_request, headers, query, body)

    async def _answer(self, asked: JobRequest, entry: Entry) -> Answer:
        try:
            accepted = self._admit(asked, entry)
            return accepted if isinstance(accepted, Answer) else await self._run(accepted)
        except Exception as error:
            # The kind alone: the text of a foreign error may quote what the caller sent.
            logger.error("a job ended in an internal error: %s", type(error).__name__)
            entry.outcome = "internal"
            return text(500, "internal server error\n")

    def _admit(self, asked: JobRequest, entry: Entry) -> Answer | Accepted:
        """Everything before acceptance: a refusal, or the job that now runs."""
        wanted = parse_accept(asked.accept)
        if asked.too_large:
            entry.outcome = "too_large"
            return text(413, "request body too large\n")
        if not entry.authorised:
            entry.outcome = "unauthorised"
            return text(401, "token is invalid\n")
        if asked.unreadable is not None:
            return self._failure(asked, wanted, entry, "invalid", asked.unreadable)
        job = JOB_TYPES.get(asked.type) if isinstance(asked.type, str) else None
        if job is None:
            return self._unknown_type(asked, wanted, entry)
        reasons = self._reasons(job, asked, wanted)
        if reasons:
            return self._failure(asked, wanted, entry, "invalid", "\n".join(reasons))
        if self.switches.capacity is not None and self.log.counts.in_progress >= self.switches.capacity:
            entry.outcome = "busy"
            return text(429, "no capacity: the job cannot be scheduled\n", [("retry-after", "1")])
        fault = self.script.choose(job)
        if fault is not None:
            entry.fault = fault.kind
            refused = refusal(fault.settings)
            if refused is not None:
                entry.outcome = fault.kind
                return refused
        return self._accept(job, asked, wanted, entry, fault)

    def _unknown_type(self, asked: JobRequest, wanted: Wanted, entry: Entry) -> Answer:
        if self.switches.unknown_type_status == 429:
            entry.outcome = "unknown_type"
            return text(429, "the job cannot be scheduled\n", [("retry-after", "1")])
        reason = "at '/type': unknown job type"
        if "type" not in asked.document:
            reason = "at '': missing property 'type'"
        elif not isinstance(asked.type, str):
            reason = f"at '/type': got {type_name(asked.type)}, want string"
        return self._failure(asked, wanted, entry, "unknown_type", reason)

    def _reasons(self, job: JobType, asked: JobRequest, wanted: Wanted) -> list[str]:
        ignore = self.switches.unknown_keys == "ignore"
        reasons = violations(job, asked.document, unknown_keys_allowed=ignore)
        if not reasons:
            reasons = input_violations(job, asked, strict_filenames=self.switches.strict_filenames)
        if not reasons and wanted.refused is not None:
            reasons = [f"output type '{wanted.refused}' is not available for this job type"]
        return reasons

    def _accept(self, job: JobType, asked: JobRequest, wanted: Wanted, entry: Entry, fault: Fault | None) -> Accepted:
        born = Birth()
        entry.id = born.id
        self.log.accept(entry)
        settings = None if fault is None else fault.settings
        jitter = 1 + JITTER * (2 * self._random.random() - 1)
        seed = self._random.getrandbits(32)
        seconds = job.seconds * jitter * self.switches.time_scale
        if isinstance(settings, Accepting | Failing) and settings.after_seconds is not None:
            seconds = settings.after_seconds
        micro_usd = job.micro_usd
        if isinstance(settings, Overcharge):
            micro_usd = 2 * micro_usd if settings.dollars is None else round(settings.dollars * 1_000_000)
        defaults = {name: rule.default for name, rule in job.parameters.items() if rule.default is not None}
        config = defaults | dict(asked.document["config"])
        config.setdefault("seed", seed)
        source = chosen_input(asked) if job.takes_input else None
        return Accepted(job, asked, wanted, entry, born, source, settings, seconds, micro_usd, config)

    async def _run(self, run: Accepted) -> Answer:
        """The time the job takes, its picture meanwhile, its row on the bill, its answer."""
        started = time.monotonic()
        lost = wordless(run.settings)
        drawing: asyncio.Future[bytes] | None = None
        if lost is None and run.wanted.format is not None and not isinstance(run.settings, Failing):
            drawing = asyncio.get_running_loop().run_in_executor(self._threads, draw, self._commission(run))
        await asyncio.sleep(run.seconds)
        if isinstance(run.settings, Failing):
            return await self._failed(run, run.settings.outcome, run.settings.text)
        try:
            picture = None if drawing is None else await drawing
        except UnusableInputError:
            return await self._failed(run, "failed", "at '/inputs/0': the picture cannot be decoded")
        elapsed = round(time.monotonic() - started, 5)
        if not isinstance(run.settings, Accepting) or run.settings.billed:
            await self._charge(run, "completed")
        run.entry.outcome = "completed"
        return lost if lost is not None else self._completed(run, picture, elapsed)

    def _commission(self, run: Accepted) -> Commission:
        assert run.wanted.format is not None  # noqa: S101
        facts = None if run.source is None else run.source.inspection
        sides = None if facts is None else (facts.width or 1, facts.height or 1)
        return Commission(
            job=run.job,
            config=run.config,
            format=run.wanted.format,
            size=size_of(run.config, sides),
            source=None if run.source is None else run.source.data,
            source_sha256=None if facts is None else facts.sha256,
            small=self.switches.picture == "small",
            pad_to=self.switches.picture_bytes,
        )

    def _completed(self, run: Accepted, picture: bytes | None, elapsed: float) -> Answer:
        client = run.request.document["config"]
        added = {key: run.config[key] for key in run.config if key != "seed" or self.switches.disclose_seed}
        price = {"product": run.job.product, "dollars": run.micro_usd / 1_000_000}
        shown = price if run.request.wants_price else None
        document = completed(self.switches, run.job.name, run.born, echo(client, added), elapsed, shown)
        parts: list[Part] = [job_part(document)]
        if picture is not None and run.wanted.format is not None:
            parts.append(output_part(self.switches, run.wanted.format, picture))
        if run.wanted.container == "multipart":
            answer = Answer(200, *envelope(parts))
        else:
            answer = Answer(200, parts[-1].content_type, parts[-1].data)
        return spoiled(run.settings, answer, parts)

    async def _failed(self, run: Accepted, outcome: str, reason: str) -> Answer:
        if self.switches.bill_failures:
            await self._charge(run, outcome)
        wanted = Wanted("json") if isinstance(run.settings, FailedJson) else run.wanted
        return self._failure(run.request, wanted, run.entry, outcome, reason, run.born)

    def _failure(
        self, asked: JobRequest, wanted: Wanted, entry: Entry, outcome: str, reason: str, born: Birth | None = None
    ) -> Answer:
        """A failed job: 400, in a multipart envelope for those who accept one, else its document alone."""
        entry.outcome = outcome
        born = born or Birth()
        entry.id = born.id
        document = failed(asked.document, born, reason)
        bare = wanted.container == "json" or (wanted.container == "image" and self.switches.image_failures == "json")
        if bare:
            return Answer(400, "application/json", to_json(document))
        return Answer(400, *envelope([job_part(document)]))

    async def _charge(self, run: Accepted, outcome: str) -> None:
        config = run.request.document["config"]
        prompt = digested("prompt", config["prompt"])
        await self.bill.append(
            Charge(
                id=run.born.id,
                at=stamp(datetime.now(UTC)),
                type=run.job.name,
                micro_usd=run.micro_usd,
                outcome=outcome,
                seed=config.get("seed"),
                prompt_sha256=prompt["sha256"],
                safety_tolerance=config.get("safety_tolerance"),
            )
        )
        self.log.bill(run.entry, run.micro_usd)
