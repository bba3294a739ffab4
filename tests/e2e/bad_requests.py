"""The table of bad requests: what is sent, and the status, code, field and phrase that must come back.

`CANARY` stands in every prompt, key, file name and user that is wrong: it must come out nowhere.
"""

from __future__ import annotations

import base64
import itertools
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from app.domain.catalog import JobType, Parameter, load
from tests.e2e.exchange import FILE, FORM, Headers, form
from tests.images.pictures import picture

CANARY = "kanarienvogel"
PROMPT = f"a {CANARY} at dawn"
CATALOG = load()
PHOTO = picture("jpeg", 256, 256)
DATA_URL = "data:image/jpeg;base64," + base64.b64encode(PHOTO).decode()
JSON = (("Content-Type", "application/json"),)
MULTIPART = (("Content-Type", FORM),)


@dataclass(frozen=True)
class Bad:
    """One bad request. Without `carriers` the valid key goes along as it should."""

    name: str
    target: str
    body: bytes | Iterable[bytes]
    status: int
    code: str = "invalid_request"
    field: str | None = None
    phrase: str = ""
    headers: Headers = JSON
    method: str = "POST"
    carriers: Headers | None = None


def document(operation: str = "generate", /, **fields: Any) -> bytes:
    """The JSON of a legal request with other fields; ... leaves one out."""
    legal = {"prompt": PROMPT} | ({"image": DATA_URL} if operation == "edit" else {})
    return json.dumps({name: value for name, value in (legal | fields).items() if value is not ...}).encode()


def spelled(member: str, operation: str = "generate") -> bytes:
    """The same with one member as it is written."""
    return document(operation)[:-1] + b"," + member.encode() + b"}"


Part = tuple[str, bytes] | tuple[str, bytes, str] | bytes


def filled(*parts: Part, prompt: bool = True, image: bool = True) -> bytes:
    """The form of a legal edit with more parts."""
    legal: list[Part] = [("prompt", PROMPT.encode())] if prompt else []
    legal += [("image", PHOTO, FILE)] if image else []
    return form(*legal, *parts)


def generate(name: str, body: bytes | Iterable[bytes], status: int = 422, *rest: Any, **more: Any) -> Bad:
    return Bad(f"generate: {name}", "/v1/generate", body, status, *rest, **more)


def edit(name: str, body: bytes | Iterable[bytes], status: int = 422, *rest: Any, **more: Any) -> Bad:
    return Bad(f"edit: {name}", "/v1/edit", body, status, *rest, **more)


def edit_form(name: str, body: bytes, status: int = 422, *rest: Any, **more: Any) -> Bad:
    return Bad(f"form: {name}", "/v1/edit", body, status, *rest, **{"headers": MULTIPART, **more})


# Every parameter of every variant, by its kind: members as they are written in JSON, and texts of a form.

NOT_INTEGERS = ("1.5", "1.0", "1e0", '"1"', "true", "null", "[1]", '{"value":1}', str(10**400), "-" + str(2**64))
KINDS: dict[str, tuple[str, ...]] = {
    "integer": NOT_INTEGERS,
    "number": ("0", "-1", "-0.0", '"2"', "true", "null", "[2]", "1e999", "-1e999"),
    "boolean": ('"true"', "1", "0", "null", "[]", '"yes"'),
    "choice": ('"nothing"', '""', "3", "null", '["anime"]', '"Anime"', '"anime "', "true"),
    "ratio": ('"0:1"', '"1:0"', '"1:"', '":1"', '"1x1"', '"100000:1"', '"01:1"', '"16:9 "', '"1６:9"', '"1:1\\n"',
    '"1.5:1"', "1",
              '"-1:1"', "null", '"auto"', '[16,9]', '"16:9:1"'),
    "string": ('"ab"', f'"{"é" * 4097}"', '"\\ud83d\\ude00\\ud83d\\ude00"', f'"{"😀" * 4097}"', "null", "5", "[]",
    "true",
               f'"{CANARY} \\ud800"', f'"\\udc00 {CANARY}"'),
}  # fmt: skip
TEXTS: dict[str, tuple[bytes, ...]] = {
    "integer": (
        b"1.5",
        b"1.0",
        b"1e0",
        b"true",
        b"",
        b" 1",
        b"1 ",
        b"+1",
        b"01",
        b"1_0",
        "１".encode(),
        b"0x1",
        b"9" * 30,
        b"[1]",
    ),
    "number": (b"0", b"-1", b"1e400", b"inf", b"NaN", b"", b" 2", b"+2", b"02", b"2.", b".5", b"2,5"),
    "boolean": (b"True", b"1", b"0", b"", b"yes", b"on", b" true"),
    "choice": (b"nothing", b"", b"Anime", b" anime"),
    "ratio": (b"0:1", b"1:0", b"1:", b"1x1", b"100000:1", b"01:1", b"", "1６:9".encode(), b"1:1\n"),
    "string": (b"ab", b"", "é".encode() * 4097),
}


def parameters() -> Iterator[Bad]:
    """Every parameter of every variant: out of range, of the wrong type, wrongly spelled."""
    every = [(job, name, parameter) for job in CATALOG.enabled.values() for name, parameter in job.parameters.items()]
    for job, name, parameter in every:
        for value in (*KINDS[parameter.kind], *(str(number) for number in _outside(parameter))):
            about = f"{job.variant} {name} {value[:40]}"
            yield Bad(
                f"{job.operation}: {about}",
                f"/v1/{job.operation}",
                _written(job, name, value),
                422,
                field=name,
                phrase=f"`{name}` must",
            )
        if job.operation == "edit":
            texts = (*TEXTS[parameter.kind], *(str(number).encode() for number in _outside(parameter)))
            for text in texts:
                parts = ((name, text), ("variant", job.variant.encode()))
                yield edit_form(
                    f"{job.variant} {name} {text[:40]!r}",
                    filled(*parts, prompt=name != "prompt"),
                    field=name,
                    phrase=f"`{name}` must",
                )


def _written(job: JobType, name: str, value: str) -> bytes:
    whole = document(job.operation, variant=job.variant, prompt=... if name == "prompt" else PROMPT)
    return whole[:-1] + f',"{name}":{value}}}'.encode("utf-8", "surrogatepass")


def _outside(parameter: Parameter) -> list[int]:
    low, high = parameter.minimum, parameter.maximum
    found = [] if low is None else [int(low) - 1]
    found += [] if high is None else [int(high) + 1]
    return found + ([int(low or 0) + 1] if parameter.multiple_of else [])


def others_fields() -> Iterator[Bad]:
    """A field of another variant or operation: the answer names those that have it."""
    values = {"prompt_upsampling": True, "aspect_ratio": "1:1", "safety_tolerance": 0, "width": 512, "height": 512,
    "steps": 3,
              "guidance_scale": 2, "style_preset": "anime", "progressive": True}  # fmt: skip
    for name in ("aspect_ratio", "prompt_upsampling", "safety_tolerance"):
        yield edit(
            f"{name} of dev",
            document("edit", variant="dev", **{name: values[name]}),
            422,
            field=name,
            phrase="these variants have it: pro, max",
        )
    for name, variant in itertools.product(
        ("width", "height", "steps", "guidance_scale", "style_preset", "progressive"), ("pro", "max")
    ):
        mine = {"variant": variant, name: values[name]}
        yield edit(
            f"{name} of {variant}", document("edit", **mine), 422, field=name, phrase="these variants have it: dev"
        )
        yield generate(f"{name} of {variant}", document(**mine), 422, field=name, phrase="edit has it with dev")


def fields() -> Iterator[Bad]:
    """Fields of the gateway's own, unknown ones, and missing ones."""
    wrong: dict[str, tuple[object, ...]] = {
        "variant": ("ultra", "", "PRO", None, 1, ["pro"], "pro ", "pro-v1", "inference.flux-kontext.pro.txt2img.v2"),
        "output_format": ("gif", "JPEG", "jpg", "image/jpeg", "", None, 1),
        "response_format": ("b64", "URL", "", None, 0),
        "fit": ("none", "AUTO", "", None, True),
        "user": ("", CANARY * 10, f"{CANARY}\n", f"{CANARY}\x00", 5, ["a"], "\u200b", None),
        "tags": ("one", ["t"] * 9, ["t" * 33], [""], [1], [["a"]], {"a": 1}, ["a\x00"], [None], None),
    }
    for name, value in ((name, value) for name, values in wrong.items() for value in values):
        about, phrase = f"{name} {str(value)[:20]!r}", f"`{name}` must"
        yield edit(about, document("edit", **{name: value}), 422, field=name, phrase=phrase)
        if name != "fit":
            yield generate(about, document(**{name: value}), 422, field=name, phrase=phrase)
    yield generate("dev", document(variant="dev"), 422, field="variant", phrase="must be one of pro, max")
    for name in (
        "n",
        "model",
        "Prompt",
        "promt",
        "image",
        "negative_prompt",
        "size",
        "images",
        "fit",
        "",
        "__proto__",
    ):
        yield generate(f"unknown {name!r}", document(**{name: 1}), 422, field=name, phrase="is not a field of generate")
    yield generate("a long unknown name", document(**{"n" * 10_000: 1}), 422, field="n" * 64)
    yield generate("no prompt", document(prompt=...), 422, field="prompt", phrase="is required")
    yield generate("nothing", b"{}", 422, field="prompt", phrase="is required")
    yield edit("no prompt", document("edit", prompt=...), 422, field="prompt", phrase="is required")
    yield edit("no image", document("edit", image=...), 422, field="image", phrase="is required")
    yield edit(
        "progressive png",
        document("edit", variant="dev", progressive=True, output_format="png"),
        422,
        field="progressive",
        phrase="jpeg output only",
    )
    yield edit(
        "progressive by Accept",
        document("edit", variant="dev", progressive=True),
        422,
        field="progressive",
        headers=(*JSON, ("Accept", "image/webp")),
    )


def bodies() -> Iterator[Bad]:
    """What is not the JSON that it should be."""
    deep = b'{"prompt":' + b"[" * 30_000 + b"]" * 30_000 + b"}"
    unreadable: dict[str, bytes] = {
        "empty": b"", "not JSON": CANARY.encode(), "cut short": document()[:-1], "two documents": document() * 2,
        "single quotes": b"{'prompt': 'abc'}",
        "a comment": b'{"prompt": "abc" /* */}', "a final comma": b'{"prompt":"abc",}', "NaN": spelled('"seed":NaN'),
        "Infinity": spelled('"seed":-Infinity'),
        "deep": deep, "a huge integer": spelled(f'"seed":{"9" * 5000}'),
        "UTF-16": document().decode().encode("utf-16"), "UTF-32": document().decode().encode("utf-32-le"),
        "a BOM": b"\xef\xbb\xbf" + document(), "not UTF-8": b'{"prompt":"\xff\xfe abc"}',
        "overlong UTF-8": b'{"prompt":"\xc0\xaf abc"}',
        "surrogates in UTF-8": b'{"prompt":"\xed\xa0\x80 abc"}', "a NUL": b"{\x00}",
        "a bare control character": b'{"prompt":"a\nb c"}',
        "form encoding": b"prompt=abc", "leading zeros": spelled('"seed":01'), "a plus": spelled('"seed":+1'),
    }  # fmt: skip
    for name, data in unreadable.items():
        yield generate(name, data, 400, phrase="JSON")
        if len(data) < 60_000:
            yield edit(name, data, 400, phrase="JSON")
    yield edit("deeper", b"[" * 100_000, 400, phrase="JSON")
    yield edit("deep objects", b'{"a":' * 100_000, 400, phrase="JSON")
    yield generate("a key twice", spelled('"prompt":"abc"'), 400, field="prompt", phrase="more than once")
    yield generate(
        "a key twice, escaped", spelled(r'"pr\u006fmpt":"abc"'), 400, field="prompt", phrase="more than once"
    )
    yield generate("a key twice inside", spelled('"user":{"a":1,"a":1}'), 400, field="a", phrase="more than once")
    yield generate("a lone surrogate in a key", spelled(r'"\ud800":1'), 400, phrase="cannot be printed")
    for data in (b"[]", b"[{}]", b'"text"', b"1", b"true", b"null"):
        yield generate(f"{data.decode()} instead of an object", data, 422, phrase="JSON object")
    for kind in (
        "text/plain",
        "application/x-www-form-urlencoded",
        "application/jsonp",
        "image/jpeg",
        "*/*",
        "json",
        ";",
        "application/json/x",
    ):
        yield generate(
            f"content type {kind}",
            document(),
            415,
            "unsupported_type",
            phrase="application/json",
            headers=(("Content-Type", kind),),
        )
    yield generate("no content type", document(), 415, "unsupported_type", headers=())
    yield generate("a form", filled(), 415, "unsupported_type", headers=MULTIPART)
    yield edit("no content type", document("edit"), 415, "unsupported_type", headers=())
    yield edit(
        "multipart/mixed",
        filled(),
        415,
        "unsupported_type",
        headers=(("Content-Type", FORM.replace("form-data", "mixed")),),
    )
    large = spelled(f'"tags":["{CANARY * 6000}"]')
    yield generate("64 KB and more", large, 413, "too_large", phrase="at most")
    yield generate("64 KB and more in chunks", [large[:50_000], large[50_000:]], 413, "too_large")
    yield generate(
        "only-if-cached", document(seed=1), 504, "not_cached", headers=(*JSON, ("Cache-Control", "only-if-cached"))
    )
    yield generate(
        "only-if-cached without a seed",
        document(),
        504,
        "not_cached",
        headers=(*JSON, ("Cache-Control", "max-age=0, ONLY-IF-CACHED")),
    )


def routes() -> Iterator[Bad]:
    """Methods and paths that are not there."""
    for target, allowed in (
        ("/v1/generate", ("POST",)),
        ("/v1/edit", ("POST",)),
        ("/v1/models", ("GET",)),
        ("/v1/me", ("GET",)),
        ("/v1/images/img_1", ("DELETE", "GET")),
    ):
        for method in ("GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "PROPFIND"):
            if method not in allowed:
                yield Bad(f"{method} {target}", target, b"", 405, "method_not_allowed", method=method)
    for target in (
        "/", "/v1", "/v1/", "/v2", "/v2/jobs", "/v1/generate/", "//v1/generate", "/v1//generate", "/v1/./generate",
        "/v1/x/../generate", "/V1/generate",
        "/v1/Generate", "/v1/generate;a=b", "/v1/generate%00", "/v1/generate%20", "/v1%252fgenerate", "/v1/images",
        "/v1/images/", "/v1/images/a/b", "/metrics",
        "/healthz", "/readyz", "/openapi.json", "/docs", "/redoc", "/admin/v1", "/console", "/.env", "/%ff%fe",
    ):  # fmt: skip
        yield Bad(f"POST {target}", target, document(), 404, "not_found")
    for wanted in (
        "x",
        "img_" + "0" * 48,
        "img_" + "F" * 48,
        "img_" + "0" * 47,
        "%2e%2e%2fetc",
        "img_" + "0" * 9000,
        "img_%00",
    ):
        yield Bad(f"image {wanted[:60]}", f"/v1/images/{wanted}", b"", 404, "not_found", method="GET")
    for query in (
        "s=",
        "s=x",
        "t=acme&k=key_1&e=99999999999&s=" + "0" * 64,
        "t=acme&k=key_1&e=-1&s=" + "0" * 64,
        "e=" + "9" * 400 + "&t=a&k=b&s=" + "0" * 64,
        "s=%ff&t=%00&k=%0a&e=%EF%BC%91",
    ):
        yield Bad(
            f"link {query[:60]}", f"/v1/images/img_{'0' * 48}?{query}", b"", 404, "not_found", method="GET", carriers=()
        )


def heads() -> Iterator[Bad]:
    """Request heads that are too large."""
    yield generate(
        "101 headers", document(), 431, "headers_too_large", headers=(*JSON, *[(f"X-{n}", "y") for n in range(101)])
    )
    yield generate(
        "one header of 17 KB", document(), 431, "headers_too_large", headers=(*JSON, ("X-Long", CANARY * 1400))
    )
    yield generate(
        "17 KB in all",
        document(),
        431,
        "headers_too_large",
        headers=(*JSON, *[(f"X-{n}", CANARY * 30) for n in range(50)]),
    )
    yield Bad("a target of 17 KB", "/v1/me?" + CANARY * 1400, b"", 431, "headers_too_large", method="GET")
