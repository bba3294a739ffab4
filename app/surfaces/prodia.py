"""The Prodia surface: `POST /v2/job` as Prodia's own clients call it, over the same walk as every other call, and
`/v2/job/async` with its reads, over the same queue.

Thin: the type of the job names an entry of the catalogue, its config becomes the fields of an `Ask`, its `input` parts
the uploads. Answers and errors are in Prodia's wire form, with what the gateway has to say in one member, `gateway`.
How a queued job is told of is in `prodia_queued`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from time import perf_counter
from typing import Any, ClassVar, TypeVar

import orjson
from fastapi import APIRouter, Request
from starlette.responses import Response

from app.domain.catalog import Catalog, JobType
from app.domain.job import Ask
from app.domain.job import Job as Taken
from app.domain.upload import Upload
from app.domain.validate import unknown
from app.errors import GatewayError, InvalidRequest, Refused
from app.pipeline import Delivery
from app.surfaces import prodia_queued as queued
from app.surfaces import prodia_schema
from app.surfaces import prodia_wire as wire
from app.surfaces.body import FORM_BYTES, IMAGE_BYTES, JSON_SLACK, media_type, parse_json, read_json, read_parts
from app.surfaces.deps import AnyCaller, gateway_of, record_of
from app.surfaces.dialect import Dialect, problem
from app.surfaces.documents import result_document
from app.surfaces.prodia_wire import Wanted
from app.surfaces.queued import enqueue
from app.surfaces.walk import GONE, Told, walk
from app.telemetry.outcome import Outcome

JOB_BYTES = FORM_BYTES + IMAGE_BYTES  # the official client sends each `File` twice
LEFT_OUT = "Gateway-Left-Out"
Endpoint = TypeVar("Endpoint", bound=Callable[..., Any])
HEADERS = {"user": "Gateway-User", "tags": "Gateway-Tags"}  # what has no place in a job


@dataclass(slots=True)
class Asked:
    """One job as it was sent: its document, its inputs without repeats, and which of them each file name stands for."""

    wanted: Wanted
    document: dict[str, Any] = field(default_factory=dict)
    inputs: list[Upload] = field(default_factory=list)
    filenames: dict[str, set[int]] = field(default_factory=dict)
    job_type: JobType | None = None

    def add(self, filename: str | None, data: bytes) -> None:
        """One `input` part; the same bytes once more are the same input under another name."""
        same = (i for i, known in enumerate(self.inputs) if known.size == len(data) and known.data == data)
        place = next(same, len(self.inputs))
        if place == len(self.inputs):
            self.inputs.append(Upload(data))
        if filename is not None:
            self.filenames.setdefault(filename, set()).add(place)


class Job(Dialect):
    """A route that answers in Prodia's wire form."""

    surface: ClassVar[str] = "prodia"

    @staticmethod
    def refuse(request: Request, error: GatewayError) -> Response:
        """An error as Prodia writes it."""
        return _refusal(request, error)


class Queue(Job):
    """A route that answers with a document alone, whatever Accept says."""

    @staticmethod
    def refuse(request: Request, error: GatewayError) -> Response:
        """An error as Prodia writes it."""
        return _refusal(request, error, bare=True)


class Read(Job):
    """A read of a queued job."""

    @staticmethod
    def refuse(request: Request, error: GatewayError) -> Response:
        """An error, not a job's document: a client would take its state for the job's."""
        status, record = 404 if error.code == "not_found" else wire.status_of(error), record_of(request)
        if status == 401:
            return _bad_token()
        told = problem(error, record.request_id) | {"status": status}
        raw = wire.to_json({"error": wire.words(error, {}, None), "gateway": told})
        return Response(raw, status, _wait(error, status), "application/json")


router = APIRouter(route_class=Job)


def _route(method: str, path: str, kind: type[Job], **described: Any) -> Callable[[Endpoint], Endpoint]:
    """As the router's own decorators, for a route that refuses in a way of its own."""

    def add(endpoint: Endpoint) -> Endpoint:
        router.add_api_route(path, endpoint, methods=[method], route_class_override=kind, **described)
        return endpoint

    return add


@router.post("/v2/job", **prodia_schema.job())
async def job(request: Request, caller: AnyCaller) -> Response:
    """Run one job, as Prodia does."""
    gateway, record = gateway_of(request), record_of(request)
    asked = request.scope["state"]["asked"] = Asked(_wanted(request))
    await _read(request, asked)
    ask, left_out = _ask(request, asked, gateway.catalog, record)

    def tell(delivery: Delivery) -> dict[str, Any]:
        return {
            "job": _document(asked, delivery, record),
            "price": wire.price(delivery.job.type.type, delivery.cost),
            "gateway": result_document(delivery, gateway, record.request_id),
        }

    told = await walk(request, caller, ask, route="job", tell=tell)
    if told is None:
        return GONE
    response = _answer(asked.wanted, told, priced=_priced(request))
    if left_out:
        response.headers[LEFT_OUT] = ", ".join(left_out)
    return response


@_route("POST", "/v2/job/async", Queue, **prodia_schema.queue())
async def queue_job(request: Request, caller: AnyCaller) -> Response:
    """Queue one job, as Prodia does: 201, and its document as it is now."""
    gateway, record = gateway_of(request), record_of(request)
    asked = request.scope["state"]["asked"] = Asked(_wanted(request))
    await _read(request, asked)
    ask, left_out = _ask(request, asked, gateway.catalog, record)

    def echo(taken: Taken) -> bytes:
        return queued.pack(wire.shown(_given(asked, taken), taken.config), priced=_priced(request))

    put = await enqueue(request, caller, ask, route="job/async", echo=echo)
    if put is None:
        text = "The job of this name is not stored any more; nothing was queued."
        raise Refused("idempotency_gone", text, charged="unknown", field="Idempotency-Key")
    response = await queued.accepted(request, caller, put, str(asked.document["type"]))
    if left_out:
        response.headers[LEFT_OUT] = ", ".join(left_out)
    return response


@_route("GET", "/v2/job/async/{job_id}/job.state.current", Read, **prodia_schema.state())
async def queued_state(request: Request, job_id: str, caller: AnyCaller) -> Response:
    """Whether a queued job is at work, done or failed."""
    found = await queued.find(request, caller, job_id)
    return Response(queued.current_of(found), 200, queued.NO_STORE, "text/plain; charset=utf-8")


@_route("GET", "/v2/job/async/{job_id}/job.json", Read, **prodia_schema.document())
async def queued_document(request: Request, job_id: str, caller: AnyCaller) -> Response:
    """The document of a queued job."""
    found = await queued.find(request, caller, job_id)
    document = await queued.document(request, caller, found, priced=_priced(request))
    return Response(wire.to_json(document), 200, queued.NO_STORE, "application/json")


@_route("GET", "/v2/job/async/{job_id}/output", Read, **prodia_schema.outputs())
async def queued_outputs(request: Request, job_id: str, caller: AnyCaller) -> Response:
    """The file names of what a queued job made."""
    names = await queued.outputs(request, caller, await queued.find(request, caller, job_id))
    return Response(orjson.dumps(names), 200, queued.NO_STORE, "application/json")


@_route("GET", "/v2/job/async/{job_id}/output/{filename}", Read, **prodia_schema.output())
async def queued_output(request: Request, job_id: str, filename: str, caller: AnyCaller) -> Response:
    """One of them."""
    return await queued.output(request, caller, await queued.find(request, caller, job_id), filename)


def _given(asked: Asked, job: Taken) -> dict[str, Any]:
    """The config as the client wrote it, without what was left out."""
    return {name: value for name, value in asked.document.get("config", {}).items() if name not in job.type.left_out}


def _priced(request: Request) -> bool:
    return ("price", "true") in request.query_params.multi_items()


def _wanted(request: Request) -> Wanted:
    return wire.accepted(",".join(request.headers.getlist("accept")))


async def _read(request: Request, asked: Asked) -> None:
    """The job and its inputs, the parts in any order. Raises InvalidRequest."""
    kind, options = media_type(request)
    if kind == "application/json":
        asked.document = await read_json(request, JSON_SLACK)
        return
    if kind != wire.ENVELOPE:
        accepted = ["application/json", wire.ENVELOPE]
        raise InvalidRequest(f"Send {' or '.join(accepted)}.", code="unsupported_type", accepted=accepted)
    found: bytes | None = None
    async for part in read_parts(request, options, JOB_BYTES, texts=("job",)):
        if part.name == "input":
            asked.add(part.filename, part.data)
        elif part.name != "job":
            shown = part.name[:64]
            raise InvalidRequest(f"`{shown}` is not a part of a job: send `job` and `input`.", field=shown, status=400)
        elif found is not None:
            raise InvalidRequest("`job` is given more than once.", field="job", status=400)
        else:
            found = part.data
    if found is None:
        raise InvalidRequest("`job` is required: the part with the job's JSON.", field="job", status=400)
    asked.document = parse_json(found)


def _ask(request: Request, asked: Asked, catalog: Catalog, record: Outcome) -> tuple[Ask, list[str]]:
    """What the job asks for, and the keys that were left out of it. Raises InvalidRequest."""
    document = asked.document
    for name in document:
        if name not in ("type", "config"):
            raise InvalidRequest(f"at '': additional properties {wire.quoted(name)} not allowed", field=name[:64])
    if "type" not in document:
        raise InvalidRequest("at '': missing property 'type'", field="type")
    if not isinstance(document["type"], str):
        raise InvalidRequest(f"at '/type': got {wire.type_name(document['type'])}, want string", field="type")
    job_type = asked.job_type = catalog.named(document["type"])
    if job_type is None:
        types = [job.type for job in catalog.enabled.values()]
        raise InvalidRequest("at '/type': unknown job type", field="type", choices=types)
    record.operation = job_type.operation
    config = document.get("config", {})
    if not isinstance(config, dict):
        raise InvalidRequest(f"at '/config': got {wire.type_name(config)}, want object", field="config")
    if asked.wanted.refused is not None:
        raise InvalidRequest("The output type in Accept is not available for this job type.", field="Accept")
    left_out = [name for name, value in config.items() if name in job_type.left_out and _plain(value)]
    fields = {name: value for name, value in config.items() if name not in left_out}
    places: Iterable[int] = range(len(asked.inputs))
    if "images" in fields and job_type.inputs and "images" not in job_type.parameters:
        places = _places(asked, fields.pop("images"))
    ask = Ask(job_type.operation, fields | {"variant": job_type.variant}, accepted_format=asked.wanted.format)
    for name in fields:  # the gateway's own fields have no place in a job, least of all another variant
        if name not in job_type.parameters:
            raise unknown(name, ask, job_type, catalog)
    uploads = _uploads(asked, job_type, places)
    extra = _from_headers(request)
    return Ask(ask.operation, {**ask.fields, **extra}, uploads, accepted_format=ask.accepted_format), left_out


def _plain(value: Any) -> bool:
    """Whether a value has no members of its own, such as a safety tolerance that somebody expects to be heard."""
    return not isinstance(value, dict) and not (
        isinstance(value, list) and any(isinstance(v, dict | list) for v in value)
    )


def _uploads(asked: Asked, job_type: JobType, places: Iterable[int]) -> dict[str, Upload]:
    """The inputs that are meant, in their order, by their names in the catalogue. Raises InvalidRequest."""
    chosen = [asked.inputs[place] for place in places]
    asked.inputs = []  # what is not meant need not wait in memory for the job to end
    want, got = len(job_type.inputs), len(chosen)
    if got != want:
        rule = "minItems" if got < want else "maxItems"
        raise InvalidRequest(f"at '/inputs': {rule}: got {got}, want {want}", field="input", inputs=want)
    return {rule.name: upload for rule, upload in zip(job_type.inputs, chosen, strict=True)}


def _places(asked: Asked, named: Any) -> dict[int, None]:
    """Which inputs `images` names, in its order. Raises InvalidRequest."""
    if not isinstance(named, list) or not named:
        wrong = "minItems: got 0, want 1" if named == [] else f"got {wire.type_name(named)}, want array"
        raise InvalidRequest(f"at '/config/images': {wrong}", field="images")
    places: dict[int, None] = {}
    for at, name in enumerate(named):
        found = asked.filenames.get(name, set()) if isinstance(name, str) else set()
        if len(found) != 1:
            wrong = "several inputs have this file name" if found else "no such input"
            wrong = wrong if isinstance(name, str) else f"got {wire.type_name(name)}, want string"
            raise InvalidRequest(f"at '/config/images/{at}': {wrong}", field="images")
        places |= dict.fromkeys(found)
    return places


def _from_headers(request: Request) -> dict[str, Any]:
    """End user and tags. Raises InvalidRequest."""
    found: dict[str, Any] = {}
    for name, header in HEADERS.items():
        given = request.headers.getlist(header)
        if len(given) > 1:
            raise InvalidRequest(f"Send one `{header}` header.", field=header, status=400)
        if given:
            try:
                found[name] = given[0].encode("latin-1").decode("utf-8")
            except UnicodeDecodeError:
                raise InvalidRequest(f"`{header}` is not UTF-8 text.", field=header) from None
    if "tags" in found:
        found["tags"] = [tag.strip() for tag in found["tags"].split(",")]
    return found


def _document(asked: Asked, delivery: Delivery, record: Outcome) -> dict[str, Any]:
    """The job document, but for its price."""
    job = delivery.job
    took = perf_counter() - record.began
    made = wire.head(job.type.type, delivery.result.job_id, datetime.now(UTC) - timedelta(seconds=took))
    return made | wire.completed(wire.shown(_given(asked, job), job.config), record.upstream or took)


def _answer(wanted: Wanted, told: Told, *, priced: bool) -> Response:
    result, headers = told.result, told.headers
    document = told.said["job"] | ({"price": told.said["price"]} if priced else {}) | {"gateway": told.said["gateway"]}
    if wanted.container == "image":
        return Response(result.image, 200, headers, result.content_type)
    headers = {name: value for name, value in headers.items() if name not in ("ETag", "Repr-Digest")}  # of the picture
    if wanted.container == "json":
        return Response(wire.to_json(document), 200, headers, "application/json")
    parts = [("job", "job.json", "application/json", wire.to_json(document))]
    if wanted.format is not None:
        parts.append(("output", wire.filename(result.content_type), result.content_type, result.image))
    kind, body = wire.envelope(parts)
    return Response(body, 200, headers, kind)


def _refusal(request: Request, error: GatewayError, *, bare: bool = False) -> Response:
    status, record = wire.status_of(error), record_of(request)
    if status == 401:
        return _bad_token()
    asked: Asked = request.scope["state"].get("asked") or Asked(_wanted(request))
    text, name = wire.words(error, asked.document, asked.job_type), error.replay_of or record.request_id
    if isinstance(made := error.extra.get("job"), str):
        name = made  # it may be in the queue: ask for it by this id
    told = problem(error, name) | {"status": status}
    config = asked.document.get("config")
    if (header := HEADERS.get(error.field or "")) and not (isinstance(config, dict) and error.field in config):
        text = text.replace(f"`{error.field}`", f"`{header}`")
        told |= {"detail": text, "field": header}
    kind, took = asked.document.get("type"), perf_counter() - record.began
    born = datetime.now(UTC) - timedelta(seconds=took)
    document = wire.head(kind if isinstance(kind, str) else None, name, born)
    document |= wire.failed(config, text)
    raw = wire.to_json(document | {"gateway": told})
    headers = _wait(error, status)
    # The official client takes an envelope without a picture for a success unless its status is from 400 to 499.
    if not bare and asked.wanted.container == "multipart" and status in (400, 403):
        kind, body = wire.envelope([("job", "job.json", "application/json", raw)])
        return Response(body, status, headers, kind)
    return Response(raw, status, headers, "application/json")


def _bad_token() -> Response:
    return Response(wire.BAD_TOKEN, 401, {"WWW-Authenticate": "Bearer"}, "text/plain; charset=utf-8")


def _wait(error: GatewayError, status: int) -> dict[str, str]:
    """The official client sleeps for Retry-After before it throws, also where it does not try again."""
    return {} if error.retry_after is None or status in (400, 403) else {"Retry-After": str(error.retry_after)}
