"""Every refusal and failure the gateway can answer with: one table drives every surface.

    GatewayError                       code, status, retryable; what the caller may be told
    ├── InvalidRequest                 a field is wrong; nothing was spent           (422, 400 unreadable, 408, 411,
    413, 415)
    ├── InvalidImage                   the input gate refused an upload              (422, 413, 415)
    ├── Refused                        identity, policy or quota said no             (401, 402, 403, 404, 409, 410, 429)
    ├── LedgerUnavailable              Redis is away or cannot be trusted            (503; nothing is dispatched)
    └── UpstreamError                  Prodia said no, or said nothing              (422, 502, 503, 504)

Raised everywhere below the surfaces and translated to a wire form only there. No text here or in ``extra`` may hold a
prompt, a key, a token or image bytes: `detail` is public and is logged by code only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

Charged = Literal["no", "yes", "unknown"]


@dataclass(frozen=True, slots=True)
class Kind:
    """One row of the error table: HTTP status, short title, and whether repeating the same request can help."""

    status: int
    title: str
    retryable: bool = False


CODES: dict[str, Kind] = {
    "invalid_request": Kind(422, "The request is not valid"),
    "length_required": Kind(411, "A Content-Length is required"),
    "invalid_image": Kind(422, "The image cannot be used"),
    "request_timeout": Kind(408, "The request did not arrive in time", True),
    "too_large": Kind(413, "The body or image is too large"),
    "unsupported_type": Kind(415, "This media type is not supported"),
    "unauthenticated": Kind(401, "A valid key is required"),
    "forbidden": Kind(403, "This key may not do that"),
    "safety_ceiling": Kind(403, "The safety ceiling forbids this request"),
    "not_found": Kind(404, "There is no such resource"),
    "method_not_allowed": Kind(405, "This method is not allowed here"),
    "rate_limited": Kind(429, "Too many requests", True),
    "concurrency_limited": Kind(429, "Too many jobs at once", True),
    "image_quota_exhausted": Kind(429, "The image quota is used up", True),
    "budget_reserved": Kind(429, "The rest of the budget is reserved by jobs in flight", True),
    "budget_exhausted": Kind(402, "The budget is spent"),
    "content_moderated": Kind(422, "The content was refused by moderation"),
    "idempotency_mismatch": Kind(422, "This name belongs to another request"),
    "idempotency_in_flight": Kind(409, "The first call under this name is still running", True),
    "idempotency_gone": Kind(410, "The picture of this name is not stored any more"),
    "queue_full": Kind(429, "The queue is full", True),
    "not_cancellable": Kind(409, "The job can no longer be cancelled"),
    "job_cancelled": Kind(409, "The job was cancelled"),
    "job_expired": Kind(504, "The job's turn did not come in time"),
    "job_abandoned": Kind(500, "The job was given up"),
    "not_cached": Kind(504, "No cached result"),
    "price_unknown": Kind(409, "This job type has no price"),
    "upstream_busy": Kind(503, "No upstream capacity in time", True),
    "upstream_unavailable": Kind(503, "The upstream is unavailable", True),
    "upstream_failed": Kind(502, "The upstream could not do this job"),
    "upstream_invalid": Kind(502, "The upstream gave an answer that cannot be used"),
    "upstream_timeout": Kind(504, "The upstream did not answer in time"),
    "upstream_misconfigured": Kind(502, "The gateway's own upstream access is misconfigured"),
    "ledger_unavailable": Kind(503, "The ledger is unavailable", True),
    "ledger_frozen": Kind(503, "The ledger was lost or rolled back; an operator must release it", True),
    "unknown_host": Kind(421, "This host is not served here"),
    "headers_too_large": Kind(431, "The request headers are too large"),
    "overloaded": Kind(503, "The gateway is overloaded", True),
    "draining": Kind(503, "This replica is shutting down", True),
    "internal": Kind(500, "The gateway failed"),
}


# Where OpenAI's clients know an error under another status or code.
OPENAI: dict[str, tuple[int, str]] = {
    "unauthenticated": (401, "invalid_api_key"),
    "rate_limited": (429, "rate_limit_exceeded"),
    "budget_exhausted": (429, "insufficient_quota"),
    "content_moderated": (400, "content_policy_violation"),
}


class GatewayError(Exception):
    """A refusal or failure with a public face.

    Args:
        code: a key of `CODES`.
        detail: one public sentence; never user text.
        field: the request field at fault, where there is one.
        retry_after: whole seconds after which a repeat may help; sent as `Retry-After`.
        charged: whether money may have moved for this request.
        status: overrides the table's status (an unreadable body is an `invalid_request` with 400).
        extra: further public members (ranges, limits, what is left), JSON-serialisable.
    """

    def __init__(
        self,
        code: str,
        detail: str,
        *,
        field: str | None = None,
        retry_after: int | None = None,
        charged: Charged = "no",
        status: int | None = None,
        **extra: Any,
    ) -> None:
        super().__init__(detail)
        self.code = code
        self.kind = CODES[code]
        self.status = status or self.kind.status
        self.detail = detail
        self.field = field
        self.retry_after = retry_after
        self.charged: Charged = charged
        self.extra = extra
        self.replay_of: str | None = None  # id of the request whose kept answer this is
        self.lasting = False  # a limit whose reset is over a minute away: no client should sleep until then

    @property
    def repeatable(self) -> bool:
        """Whether a client does well to repeat the same request by itself."""
        return self.kind.retryable and not self.lasting


class InvalidRequest(GatewayError):
    """The request itself is wrong, whoever sends it."""

    def __init__(self, detail: str, *, field: str | None = None, code: str = "invalid_request", **extra: Any) -> None:
        super().__init__(code, detail, field=field, **extra)


class InvalidImage(GatewayError):
    """An upload that the input gate refuses; `code` is invalid_image, too_large or unsupported_type."""

    def __init__(self, detail: str, *, field: str = "image", code: str = "invalid_image", **extra: Any) -> None:
        super().__init__(code, detail, field=field, **extra)


class Refused(GatewayError):
    """A refusal that belongs to this caller: identity, policy, rate or quota. Another caller may be allowed."""


class LedgerUnavailable(GatewayError):
    """Redis is away, frozen, lost or rolled back. Nothing is dispatched while this is raised."""

    def __init__(
        self,
        detail: str = "The ledger did not answer in time; nothing was dispatched.",
        *,
        code: str = "ledger_unavailable",
        retry_after: int = 1,
    ) -> None:
        super().__init__(code, detail, retry_after=retry_after)


class UpstreamError(GatewayError):
    """Prodia refused, failed, or left the outcome unknown; `charged` says what became of the money."""
