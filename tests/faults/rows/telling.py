"""O-01: no secret, prompt, upload or end user's name in anything that a run leaves behind, whatever goes wrong."""

from __future__ import annotations

import base64
import json
import time
import urllib.request
from collections import Counter
from typing import Any

from tests.e2e.exchange import FILE, FORM, Answer, form, send
from tests.faults.canaries import files, hits
from tests.faults.checker import Broken, Violation, settle_down
from tests.faults.row import Run, row
from tests.faults.rows.outcomes import WAYS
from tests.faults.storm import tenants
from tests.fleet import PEPPER, TOKEN, Fleet, fleet
from tests.images.pictures import after_header, chunk, encoded, noise

FAST = ("--time-scale", "0.01", "--picture", "small")
JSON = ("Content-Type", "application/json")


@row(
    "O-01",
    "0 hits for secrets, keys, prompts, uploads and users in logs at DEBUG, metrics, errors, Redis, AOF, RDB and "
    "files, in any encoding",
    ci={"rounds": 1, "ways": len(WAYS)},
    nightly={"rounds": 5, "ways": len(WAYS)},
)
def canaries(run: Run, rounds: int, ways: int) -> None:
    (temporary := run.folder / "tmp").mkdir()
    environment = {"GATEWAY_LOG_LEVEL": "DEBUG", "TMPDIR": str(temporary), "GATEWAY_UPSTREAM_DEADLINE": "2s"}
    with fleet(run.folder, tenants(None), replicas=2, sandbox=FAST, **environment) as running:
        bird = Bird(run, running)
        for number in range(rounds):
            bird.sings(number)
            for kind, options, *_ in WAYS[:ways]:
                running.faults([{"kind": kind, "options": dict(options)}])
                bird.generates()
                running.faults([])
                bird.generates()  # ten failures in a row would open the breaker
            bird.while_redis_is_frozen()
            running.replicas[-2].kill()
            running.start()
        settle_down(running, "acme", seconds=25 if run.depth == "nightly" else 1)
        running.command("keys", "list", "--tenant", "acme")
        printed = running.command("usage", "--tenant", "acme") + running.command("ledger", "ambiguous")
        metrics = [(f"metrics {number}", _metrics(one.ops)) for number, one in enumerate(running.alive)]
        running.alive[0].stop()
        with running.redis as client:
            client.save()
            names = b"\n".join(client.scan_iter(count=1000))
        told = Counter(answer.status for _, answer in bird.answers)
        errors = [
            (f"an answer {answer.status} to {what}", answer.body + json.dumps(dict(answer.headers)).encode())
            for what, answer in bird.answers
            if answer.status != 200
        ]
        logs = [(one.log.name, one.log.read_bytes()) for one in running.replicas]
        outside = [*logs, *metrics, *errors, ("the names of Redis keys", names), *files(temporary)]
        # The ledger and the stand-in may know who an end user is, and the stand-in knows our token.
        inside = [*files(running.server.folder), *files(run.folder / "data")]
        found = hits([*outside, ("what commands print", printed.encode())], bird.secrets)
        found += hits(inside, {name: text for name, text in bird.secrets.items() if name != "user"})
        size = sum(len(text) for _, text in (*outside, *inside))
        run.reached = (
            f"{len(found)} hits in {size / 1e6:.1f} MB after {told.total()} answers {dict(sorted(told.items()))}"
        )
        if found:
            raise Broken([Violation("I10", text) for text in found[:20]])
        assert {200, 400, 401, 404, 422, 502, 503, 504} <= set(told)
        assert all(b'"event":"request"' in text for _, text in logs[:2])


class Bird:
    """Sends everything that must not be told, on every surface, and keeps the answers."""

    def __init__(self, run: Run, running: Fleet) -> None:
        tag = f"{run.seed:x}"
        self._running, self._run, self._seed = running, run, 0
        self._key = running.token("acme", "1000.00/day")
        self._prompt, self._user = f"the canary {tag} sings & flies", f"user-{tag}@canary"
        pixels = noise(300, 300)
        hidden = f"metadata {tag} canary".encode()
        plain = encoded(pixels, "png", compress_level=0)
        self._photo = after_header(plain, chunk(b"tEXt", b"Comment\0" + hidden))
        at = len(plain) // 2
        self.answers: list[tuple[str, Answer]] = []
        self.secrets = {
            "token": TOKEN.encode(), "pepper": PEPPER.encode(), "key": self._key.encode(),
            "prompt": self._prompt.encode(), "user": self._user.encode(), "metadata": hidden,
            "upload": plain[at : at + 24],
        }  # fmt: skip

    def sings(self, number: int) -> None:
        """Every route once, rightly and wrongly."""
        photo, seed = ("image", self._photo, FILE.replace("photo", "canary")), number
        words = {"prompt": self._prompt, "user": self._user, "seed": seed}
        made = self._ask("POST", "/v1/generate", words, more=[("Accept", "application/json")])
        self._ask("POST", "/v1/generate", words, more=[("Idempotency-Key", self._user)])
        self._ask("POST", "/v1/generate", words | {"variant": "max"}, more=[("Idempotency-Key", self._user)])
        inline = "data:image/png;base64," + base64.b64encode(self._photo).decode()
        self._ask("POST", "/v1/edit", words | {"image": inline})
        self._ask("POST", "/v1/edit", words | {"image": {"b64": inline}})
        self._raw("POST", "/v1/edit", form(("prompt", self._prompt.encode()), photo), [("Content-Type", FORM)])
        self._raw("POST", "/v1/edit", form(("prompt", self._prompt.encode()), photo)[:-9], [("Content-Type", FORM)])
        for path in ("/v1/quote", "/v2/job?price=true", "/v1/images/generations"):
            config = {"type": "inference.flux-kontext.pro.txt2img.v2", "config": {"prompt": self._prompt}}
            self._ask("POST", path, config if "v2" in path else words | {"operation": "generate"})
        self._ask("POST", "/v2/job/async", config)
        self._ask("POST", "/v1/edit", words | {"image": inline}, more=[("Prefer", "respond-async")])
        self._ask("POST", "/v2/job/async", {"type": self._prompt, "config": {"prompt": self._prompt}})
        for path in ("job.state.current", "job.json", "output", f"output/{self._user}"):
            self._raw("GET", f"/v2/job/async/{self._key}/{path}")
        for wrong in (
            {"prompt": [self._prompt]}, {"prompt_": self._prompt}, {"prompt": self._prompt * 900},
            {**words, "variant": self._prompt}, {**words, "user": self._prompt * 99},
            {**words, "aspect_ratio": self._prompt}, {**words, "tags": [self._prompt, self._key]},
        ):  # fmt: skip
            self._ask("POST", "/v1/generate", wrong)
        twice = f'{{"prompt": "{self._prompt}", "prompt": "{self._prompt}"}}'.encode()
        for body in (twice, twice[:-4], f"[{self._prompt}]".encode(), self._photo):
            self._raw("POST", "/v1/generate", body, [JSON])
        image = made.document["image"]
        for path in (image["url"], "/v1/images/" + image["id"], "/v1/jobs", "/v1/me", "/v1/usage", "/v1/models"):
            self._raw("GET", path)
            self._raw("GET", f"{path}{'&' if '?' in path else '?'}key={self._key}&prompt=canary")
        spoiled = self._key[:-1] + ("a" if self._key[-1] != "a" else "b")
        for carrier in (
            ("X-Api-Key", self._key), ("Authorization", f"Basic {self._key}"), ("Cookie", f"key={self._key}"),
            ("Authorization", f"Bearer {spoiled}"), ("Authorization", f"Bearer {self._key} {self._key}"),
        ):  # fmt: skip
            self._keep("a wrong carrier", send(self._url, "GET", "/v1/me", [carrier]))
        self._raw("GET", f"/{self._key}/{self._user}")
        self._raw("BREW", f"/v1/{self._user}")
        self._ask("POST", "/v1/generate", words, more=[("User-Agent", self._prompt), ("X-Request-Id", self._key)])

    def generates(self) -> None:
        """One job that may go wrong."""
        self._seed += 1
        self._ask("POST", "/v1/generate", {"prompt": self._prompt, "user": self._user, "seed": 10_000 + self._seed})

    def while_redis_is_frozen(self) -> None:
        """Everything again, to no avail."""
        self._running.server.freeze()
        try:
            self.generates()
            self._raw(
                "POST", "/v1/edit", form(("prompt", b"abc"), ("image", self._photo, FILE)), [("Content-Type", FORM)]
            )
        finally:
            self._running.server.thaw()
        time.sleep(1.5)

    @property
    def _url(self) -> str:
        return self._running.urls[len(self.answers) % len(self._running.urls)]

    def _ask(self, method: str, path: str, body: dict[str, Any], more: list[tuple[str, str]] | None = None) -> Answer:
        return self._raw(method, path, json.dumps(body).encode(), [JSON, *(more or [])])

    def _raw(self, method: str, path: str, body: bytes = b"", more: list[tuple[str, str]] | None = None) -> Answer:
        headers = [("Authorization", f"Bearer {self._key}"), *(more or [])]
        return self._keep(f"{method} {path[:12]}", send(self._url, method, path, headers, body, timeout=30))

    def _keep(self, what: str, answer: Answer) -> Answer:
        self.answers.append((what, answer))
        return answer


def _metrics(ops: str) -> bytes:
    with urllib.request.urlopen(ops + "/metrics", timeout=10) as answer:
        return bytes(answer.read())
