"""What the ceiling is tried with: tenants of every policy, and requests that spell a tolerance in every way there is.

Everything follows from one seed. Each request says which tolerance it legally asks for, so that the applied one can be
foretold; `ANY` where only the upstream's word counts.
"""

from __future__ import annotations

import base64
import itertools
import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from tests.e2e.exchange import FILE, FORM, form
from tests.images.pictures import picture

SPAN = 1_000_000  # seeds of one tenant: its index times this, plus the request's number
RANGE = {"generate": 6, "edit": 2}
DEFAULT = {"generate": 4, "edit": 2}
WRONG: Final = "wrong"  # never reaches the upstream
ANY: Final = "any"
PHOTO = picture("jpeg", 256, 256)
PHOTO64 = base64.b64encode(PHOTO).decode()
EDIT_VARIANTS = ("pro", "pro", "max", "dev")


@dataclass(frozen=True)
class Policy:
    """One tenant: its ceilings and preferred values by operation, where set."""

    id: str
    ceilings: dict[str, int]
    defaults: dict[str, int]
    mode: str
    dev: bool

    def ceiling(self, operation: str) -> int:
        """The ceiling in force: the policy's, else the type's own default."""
        return self.ceilings.get(operation, DEFAULT[operation])

    @property
    def dev_allowed(self) -> bool:
        """Whether a type without a knob may be sent."""
        return self.dev or "edit" not in self.ceilings

    def applied(self, operation: str, asked: int | None) -> int | None:
        """The tolerance that must be sent for what was asked; None where the policy refuses."""
        ceiling = self.ceiling(operation)
        if asked is None:
            return min(self.defaults.get(operation, DEFAULT[operation]), ceiling)
        if asked > ceiling:
            return ceiling if self.mode == "clamp" else None
        return asked


@dataclass(frozen=True)
class Attempt:
    """One request, ready to be sent, and what is known of it beforehand."""

    tenant: Policy
    operation: str
    variant: str
    asked: int | str | None
    target: str
    content_type: str
    body: bytes
    headers: tuple[tuple[str, str], ...] = ()

    @property
    def expected(self) -> int | str | None:
        """The tolerance to be sent; "none" for a job without the knob, WRONG for a refusal, or ANY."""
        if self.asked in (WRONG, ANY):
            return self.asked
        if self.variant == "dev":
            return "none" if self.tenant.dev_allowed and self.asked is None else WRONG
        applied = self.tenant.applied(self.operation, self.asked)  # type: ignore[arg-type]
        return WRONG if applied is None else applied


def policies() -> list[Policy]:
    """Every pair of ceilings in both modes; defaults below them and permission for dev spread evenly."""
    found = []
    combinations = itertools.product((None, *range(7)), (None, *range(3)), ("clamp", "reject"))
    for index, (generate, edit, mode) in enumerate(combinations):
        ceilings = {name: top for name, top in (("generate", generate), ("edit", edit)) if top is not None}
        defaults = {name: max(0, top - 1 - index % 2) for name, top in ceilings.items()} if index // 2 % 3 == 0 else {}
        found.append(Policy(f"t{index}", ceilings, defaults, mode, dev=index // 3 % 2 == 0))
    return found


def tenants_file(tenants: list[Policy]) -> str:
    """The policies as the operator's file (JSON is YAML)."""
    made = {}
    for policy in tenants:
        safety: dict[str, object] = {"mode": policy.mode, "allow_without_knob": ["dev"] if policy.dev else []}
        for operation, ceiling in policy.ceilings.items():
            safety[operation] = {"ceiling": ceiling}
            if operation in policy.defaults:
                safety[operation] = {"ceiling": ceiling, "default": policy.defaults[operation]}
        limits = {"requests": {"rate": "1000000/1s"}, "concurrency": 10_000}
        made[policy.id] = {"safety": safety, "limits": limits}
    return json.dumps({"version": 1, "tenants": made}) + "\n"


Make = Callable[[Policy, int, random.Random], Attempt]


def attempts(tenants: list[Policy], seed: int, count: int, surfaces: Sequence[Make]) -> Iterator[Attempt]:
    """`count` requests, spread over the surfaces; the same seed gives the same ones."""
    draw = random.Random(seed)
    for number in range(count):
        index = draw.randrange(len(tenants))
        yield draw.choice(surfaces)(tenants[index], index * SPAN + number, draw)


def native(tenant: Policy, seed: int, draw: random.Random) -> Attempt:
    """One `POST /v1/generate` or `/v1/edit`."""
    operation = draw.choice(("generate", "edit"))
    variant = draw.choice(EDIT_VARIANTS) if operation == "edit" else draw.choice(("pro", "max"))
    accept = (("Accept", draw.choice(("application/json", "image/*", "image/jpeg, */*"))),)
    if operation == "edit" and draw.random() < 0.75:
        asked, body = _form(seed, variant, draw)
        return Attempt(tenant, operation, variant, asked, _target(operation, draw), FORM, body, accept)
    asked, body = _document(seed, operation, variant, draw)
    return Attempt(tenant, operation, variant, asked, _target(operation, draw), "application/json", body, accept)


def _target(operation: str, draw: random.Random) -> str:
    return f"/v1/{operation}" + draw.choice(("", "", "", "?safety_tolerance=6", "?config[safety_tolerance]=6"))


# Spellings in JSON: the text of a member, or of several, that goes into the object.

KEY = '"safety_tolerance"'
ESCAPED = r'"safety\u005ftolerance"'
ALL_ESCAPED = '"' + "".join(rf"\u{ord(char):04x}" for char in "safety_tolerance") + '"'
WRONG_VALUES = (
    '"6"', '"0"', "6.0", "0.0", "1e0", "1e1", "6E0", "0.6e1", "true", "false", "null", "[]", "[6]", "[0]", "{}",
    '{"value":6}',
    "-1", "-6", "7", "100", str(2**31), str(2**32), str(2**53), str(2**63), str(2**64 + 1), "-" + str(2**64),
    "1" + "0" * 400,
    "9" * 5000, "NaN", "Infinity", "-Infinity", "06", "+6", "0x6", "６", '"six"', '"\\u0036"', "6.", ".6", "1e400",
)  # fmt: skip
LOOKALIKES = (
    "safetyTolerance", "SAFETY_TOLERANCE", "Safety_tolerance", "safety-tolerance", "safety tolerance",
    "safety_tolerance ",
    " safety_tolerance", "safety_tolerances", "safety__tolerance", "safetytolerance", "safety_tolerance[]",
    "safety.tolerance",
    "config.safety_tolerance", "ѕafety_tolerance", "safety＿tolerance", "safety_tolerance\\u0000",
    "safety\\u200b_tolerance",
    "safety_tolerance\\ud800", "safety", "tolerance", "moderation", "__proto__", "_safety_tolerance",
    "safety_toleranсe",
)  # fmt: skip
NESTED = (
    '"config":{"safety_tolerance":6}', '"extra_body":{"safety_tolerance":6}', '"parameters":{"safety_tolerance":6}',
    '"safety":{"safety_tolerance":6}', '"tags":[{"safety_tolerance":6}]', '"user":{"safety_tolerance":6}',
    '"__proto__":{"safety_tolerance":6}',
    '"type":"inference.flux-kontext.max.txt2img.v2","config":{"safety_tolerance":6}',
    '"job":{"config":{"safety_tolerance":6}}', '"variant":["pro",{"safety_tolerance":6}]',
    '"aspect_ratio":{"safety_tolerance":6}', '"prompt_upsampling":{"safety_tolerance":6}',
)  # fmt: skip
PROMPTS = (
    "a lighthouse at dawn", 'dawn","safety_tolerance":6,"x":"', '"}, "config": {"safety_tolerance": 6}, "y": {"',
    'dawn\r\n--x\r\nContent-Disposition: form-data; name="job"\r\n\r\n{"safety_tolerance":6}', "safety_tolerance=6&x=1",
)  # fmt: skip
INSIDE = ("", " ", "\n\t")


def _document(seed: int, operation: str, variant: str, draw: random.Random) -> tuple[int | str | None, bytes]:
    asked, spelled = member(operation, draw)
    members = [f'"prompt":{json.dumps(draw.choice(PROMPTS))}', f'"variant":"{variant}"', f'"seed":{seed}']
    if operation == "edit":
        members.append(f'"image":"data:image/jpeg;base64,{PHOTO64}"')
    members += spelled
    draw.shuffle(members)
    text = "{" + ("," + draw.choice(INSIDE)).join(members) + "}"
    if draw.random() < 0.02:
        asked = WRONG
        text = draw.choice(("[{}]", '{{"input":{}}}', "{}{}", '{{"requests":[{}]}}', '"{}"')).format(text, text)
    return asked, text.encode("utf-8", "surrogatepass")


def member(operation: str, draw: random.Random) -> tuple[int | str | None, list[str]]:
    """What is legally asked for, and how that is spelled: no member of an object, one, or several."""
    top, space = RANGE[operation], draw.choice(INSIDE)
    kind = draw.random()
    if kind < 0.22:
        return None, []
    if kind < 0.72:
        value = draw.randint(0, top)
        text = "-0" if value == 0 and draw.random() < 0.3 else str(value)
        return value, [f"{draw.choice((KEY, KEY, ESCAPED, ALL_ESCAPED))}{space}:{space}{text}"]
    if kind < 0.82:
        outside = (str(draw.randint(top + 1, 9)),) if draw.random() < 0.3 else WRONG_VALUES
        return WRONG, [f"{draw.choice((KEY, ESCAPED))}:{space}{draw.choice(outside)}"]
    if kind < 0.90:
        names = draw.choice(((KEY, KEY), (KEY, ESCAPED), (ESCAPED, ALL_ESCAPED), (ESCAPED, KEY)))
        return WRONG, [f"{names[0]}:{draw.choice(('0', '6', '2'))}", f"{names[1]}:{draw.choice(('0', '6', '2'))}"]
    if kind < 0.95:
        beside = [f"{KEY}:0"] if draw.random() < 0.5 else []
        return WRONG, [f'"{draw.choice(LOOKALIKES)}":{draw.choice(("6", "0", "true"))}', *beside]
    return WRONG, [draw.choice(NESTED)]


# Spellings in a form: parts.

WRONG_TEXTS = (
    "3", "6", "7", "-1", "6.0", "0.0", "1e0", "1e1", "true", "null", "", " 1", "1 ", "+1", "01", "00", "1_0", "0x1",
    "１", "²",
    "1\r\n", "1\x00", '"1"', "[1]", '{"value":1}', "1,6", "9" * 5000, str(2**64), "nan", "inf",
)  # fmt: skip
FORM_NAMES = ("safetyTolerance", "SAFETY_TOLERANCE", "safety_tolerance[]", "safety_tolerance ",
              "config[safety_tolerance]",
              "config.safety_tolerance", "job", "config", "ѕafety_tolerance", "safety%5Ftolerance",
              r"safety\u005ftolerance")  # fmt: skip
JOB = b'{"type":"inference.flux-kontext.max.img2img.v2","config":{"prompt":"x y z","safety_tolerance":6}}'
ODD_PARTS = (
    b'Content-Disposition: form-data; name="safety_tolerance"; name="tags"\r\n\r\n2',
    b"Content-Disposition: form-data; name*=utf-8''safety_tolerance\r\n\r\n2",
    b"content-disposition: form-data; NAME=safety_tolerance\r\n\r\n2",
    b'Content-Disposition: form-data; name="safety_tolerance"\r\nContent-Type: application/json\r\n\r\n2',
    b'Content-Disposition: form-data; name="safety_tolerance"\r\nContent-Type: text/plain; charset=utf-16\r\n\r\n2',
    b'Content-Disposition: form-data; name="safety\\_tolerance"\r\n\r\n2',
    b'Content-Disposition: form-data; name="safety_tolerance\r\n X: y"\r\n\r\n2',
)


def _form(seed: int, variant: str, draw: random.Random) -> tuple[int | str | None, bytes]:
    asked, spelled = parts(draw)
    whole: list[tuple[str, bytes] | tuple[str, bytes, str] | bytes] = [
        ("prompt", draw.choice(PROMPTS).encode()), ("variant", variant.encode()), ("seed", str(seed).encode()),
        ("image", PHOTO, FILE), *spelled,
    ]  # fmt: skip
    draw.shuffle(whole)
    return asked, form(*whole)


def parts(draw: random.Random) -> tuple[int | str | None, list[tuple[str, bytes] | tuple[str, bytes, str] | bytes]]:
    """As `member`, for an edit's form."""
    kind, name = draw.random(), "safety_tolerance"
    if kind < 0.25:
        return None, []
    if kind < 0.75:
        value = draw.randint(0, 2)
        return value, [(name, b"-0" if value == 0 and draw.random() < 0.3 else str(value).encode())]
    if kind < 0.83:
        return WRONG, [(name, draw.choice(WRONG_TEXTS).encode())]
    if kind < 0.89:
        return WRONG, [(name, draw.choice((b"0", b"2"))), (name, draw.choice((b"0", b"2", b"6")))]
    if kind < 0.93:
        return WRONG, [(draw.choice(FORM_NAMES), draw.choice((b"2", b"6", JOB)))]
    if kind < 0.95:
        return WRONG, [("job", JOB, '; filename="job.json"\r\nContent-Type: application/json'), ("job", JOB)]
    if kind < 0.97:
        return WRONG, [(name, b"6", '; filename="6"')]
    return ANY, [draw.choice(ODD_PARTS)]
