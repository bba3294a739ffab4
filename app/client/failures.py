"""The two ways a call fails, each of which says what became of the money.

    GatewayFailure            code, detail, charged
    ├── GatewayRefused        the gateway answered, and not with what was asked for
    └── GatewayUnreachable    no connection, or no answer

Raised by `client.py` only. No text here holds a key, a prompt or image bytes.
"""

from __future__ import annotations

import json
from typing import Any, Literal

import httpx2

Charged = Literal["no", "yes", "unknown"]


class GatewayFailure(Exception):
    """A call that gave no result.

    Attributes:
        code: what went wrong, for programs.
        detail: the same for people, one sentence.
        charged: `no`, `yes`, or `unknown`: it may have been paid for, and a repeat may be paid for again.
        idempotency_key: what a paid call was sent with; None for other calls.
    """

    def __init__(self, code: str, detail: str, charged: Charged, idempotency_key: str | None = None) -> None:
        super().__init__(f"{code}: {detail}")
        self.code = code
        self.detail = detail
        self.charged: Charged = charged
        self.idempotency_key = idempotency_key


class GatewayUnreachable(GatewayFailure):
    """`unreachable`: no connection could be made, and nothing was sent. `no_answer`: the connection ended, or the time
    was up, before there was an answer; a paid call may then have been charged."""


class GatewayRefused(GatewayFailure):
    """An answer other than success.

    Attributes:
        status: the HTTP status.
        problem: the whole RFC 9457 document; empty where the answer had none (code `unreadable_answer`), which is
            what a proxy or another server answers.
        field: the request field at fault, or None.
        retry_after: seconds after which a repeat may help, or None.
        request_id: what the gateway's log calls this request, or None.
    """

    def __init__(
        self,
        code: str,
        detail: str,
        charged: Charged,
        idempotency_key: str | None = None,
        *,
        status: int,
        problem: dict[str, Any] | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(code, detail, charged, idempotency_key)
        self.status = status
        self.problem = problem or {}
        self.field: str | None = self.problem.get("field")
        self.retry_after = retry_after
        self.request_id: str | None = self.problem.get("request_id")

    @property
    def resendable(self) -> bool:
        """Whether the answer proves that nothing was charged, and says when a repeat may help."""
        return self.status in (429, 503) and self.retry_after is not None and self.charged == "no"


def refusal(answer: httpx2.Response, idempotency_key: str | None) -> GatewayRefused:
    """What an answer without success means."""
    problem = _problem(answer)
    if problem is None:
        return unreadable(answer, idempotency_key)
    after = answer.headers.get("retry-after", "")
    charged = problem.get("charged")
    return GatewayRefused(
        str(problem["code"]),
        str(problem.get("detail") or problem.get("title") or "no detail was given"),
        charged if charged in ("no", "yes") else "unknown",
        idempotency_key,
        status=answer.status_code,
        problem=problem,
        retry_after=int(after) if after.isascii() and after.isdecimal() else None,
    )


def unreadable(answer: httpx2.Response, idempotency_key: str | None) -> GatewayRefused:
    """An answer that no Kontext Gateway gives: whether a paid call was charged is not known."""
    charged: Charged = "no" if idempotency_key is None else "unknown"
    detail = f"the answer, HTTP {answer.status_code}, is not one of a Kontext Gateway; is the address right?"
    return GatewayRefused("unreadable_answer", detail, charged, idempotency_key, status=answer.status_code)


def _problem(answer: httpx2.Response) -> dict[str, Any] | None:
    if not answer.headers.get("content-type", "").startswith("application/problem+json"):
        return None
    try:
        found = json.loads(answer.content)
    except ValueError:
        return None
    return found if isinstance(found, dict) and isinstance(found.get("code"), str) else None
