"""Every metric, declared in one place; labels are closed sets, anything else folds to `_other`.

One `Metrics` per process with a registry of its own; fed by `Outcome` records, ledger moves and the Redis observer.
Gauges about money are read from Redis at scrape time and say the same on every replica: aggregate them with `max by`.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import TypeVar

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.process_collector import ProcessCollector

from app.telemetry.outcome import Outcome

OTHER = "_other"
_FAST = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
_JOB = (0.05, 0.25, 1.0, 2.5, 5.0, 6.0, 7.0, 8.0, 10.0, 15.0, 30.0, 60.0, 120.0)
_MICRO = 1_000_000
M = TypeVar("M", Counter, Gauge, Histogram)
disable_created_metrics()  # type: ignore[no-untyped-call]  # a gauge beside every counter and histogram that no dashboard reads


def _children(metric: M) -> M:
    metric.labels = cache(metric.labels)  # type: ignore[method-assign]
    return metric


class Metrics:
    """All series of one process. `tenants` and `variants` close the label sets."""

    def __init__(self, *, version: str, variants: Iterable[str]) -> None:
        registry = self.registry = CollectorRegistry()
        # Label sets are closed, so each child is looked up once: `labels` itself costs as much as several observations.
        ProcessCollector(registry=registry)
        self.tenants: frozenset[str] = frozenset()
        self._variants = frozenset(variants)

        def counter(name: str, text: str, *labels: str) -> Counter:
            return _children(Counter(f"kontext_gateway_{name}", text, labels, registry=registry))

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return _children(Gauge(f"kontext_gateway_{name}", text, labels, registry=registry))

        def histogram(name: str, text: str, labels: tuple[str, ...], buckets: tuple[float, ...]) -> Histogram:
            return _children(Histogram(f"kontext_gateway_{name}", text, labels, buckets=buckets, registry=registry))

        sale = ("tenant", "operation", "variant")
        self.http = histogram("http_request_duration_seconds", "Time from the first header to the last byte.",
                              ("method", "route", "status_class", "surface"), _JOB)  # fmt: skip
        self.overhead = histogram("gateway_overhead_seconds", "Own time: neither upstream nor waiting for a slot.",
                                  ("operation",), _FAST)  # fmt: skip
        self.requests = counter("requests_total", "Requests by outcome: ok or an error code.",
                                "tenant", "operation", "surface", "outcome")  # fmt: skip
        self.rejections = counter(
            "rejections_total", "Requests refused before they were sent, by error code.", "tenant", "reason"
        )
        self.images = counter("images_total", "Pictures delivered, by where they came from.", *sale, "source")
        self.cost = counter("cost_dollars_total", "Dollars charged: settled or ambiguous.", *sale)
        self.refunded = counter(
            "refunded_dollars_total", "Dollars given back after they had been charged as ambiguous.", *sale
        )
        self.saved = counter(
            "cost_saved_dollars_total", "Price of pictures that came from the cache or a shared job.", *sale
        )
        self.upstream_cost = counter("upstream_cost_dollars_total", "Dollars as the upstream reported them.", "variant")
        self.drift = counter(
            "price_drift_dollars_total", "Reported dollars above the price book, borne by the operator.", "variant"
        )
        self.ambiguous = counter(
            "ambiguous_dollars_total", "Dollars charged because the outcome is unknown.", "variant"
        )
        self.upstream_requests = counter(
            "upstream_requests_total", "Calls to the upstream by outcome.", "variant", "status"
        )
        self.upstream_time = histogram("upstream_request_duration_seconds", "Duration of a call to the upstream.",
                                       ("variant", "operation", "status_class"), _JOB)  # fmt: skip
        self.retries = counter("upstream_retries_total", "Calls sent again, by reason.", "reason")
        self.in_progress = gauge("upstream_requests_in_progress", "Calls to the upstream under way in this process.")
        self.breaker = gauge(
            "upstream_breaker_state", "1 for the state that a job type's breaker is in.", "job_type", "state"
        )
        self.cache = counter(
            "cache_requests_total", "Cache look-ups: hit, miss, coalesced or bypass; and replays.", "tenant", "result"
        )
        self.budget_limit = gauge("budget_limit_dollars", "Budget of a tenant's open window.", "tenant", "window")
        self.budget_spent = gauge("budget_spent_dollars", "Spent in a tenant's open window.", "tenant", "window")
        self.budget_reserved = gauge(
            "budget_reserved_dollars", "Reserved in a tenant's open window.", "tenant", "window"
        )
        self.quota_remaining = gauge("quota_remaining", "Images left in a tenant's open window.", "tenant", "policy")
        self.safety = counter(
            "safety_decisions_total", "What became of the asked safety tolerance.", "tenant", "operation", "action"
        )
        self.queued = gauge("jobs_queued", "Jobs of this process that wait for an upstream slot.")
        self.queue_age = gauge("job_queue_oldest_age_seconds", "How long the oldest of them has waited.")
        self.async_queued = gauge("async_jobs_queued", "Asynchronous jobs of the whole fleet that wait for their turn.")
        self.async_age = gauge("async_queue_oldest_age_seconds", "How long the oldest of them has waited.")
        self.async_bytes = gauge("async_queue_bytes", "Bytes of uploads that asynchronous jobs hold.")
        self.async_ended = counter("async_jobs_total", "Asynchronous jobs that ended, by state.", "tenant", "state")
        self.hooks = counter("webhook_deliveries_total", "Attempts to deliver a webhook: delivered, retried, dead.",
                             "outcome")  # fmt: skip
        self.wait = histogram("job_wait_seconds", "Time a job waited for its upstream slot.", (), _JOB)
        self.redis_errors = counter("redis_errors_total", "Failed round trips.", "operation", "kind")
        self.redis_time = histogram("redis_operation_duration_seconds", "Duration of a round trip, by first command.",
                                    ("operation",), _FAST)  # fmt: skip
        self.reaped = counter("reservations_reaped_total", "Reservations ended in the place of a dead owner.")
        self.unwritten = gauge("settlements_unwritten", "Ends of reservations that wait for Redis to come back.")
        self.frozen = gauge("ledger_frozen", "1 while the ledger is lost or rolled back and nothing is admitted.")
        self.reload_ok = gauge(
            "config_last_reload_successful", "0 while the tenants file on disk is not the one in force."
        )
        self.reload_ok.set(1)
        gauge("build_info", "The running version.", "version").labels(version).set(1)

    def tenant(self, name: str | None) -> str:
        """A tenant label."""
        return name if name in self.tenants else OTHER

    def variant(self, name: str | None) -> str:
        """A variant label."""
        return name if name in self._variants else OTHER

    def redis(self, operation: str, seconds: float, error: str | None) -> None:
        """Observer of one Redis round trip."""
        self.redis_time.labels(operation).observe(seconds)
        if error is not None:
            self.redis_errors.labels(operation, error).inc()

    def moved(self, *, end: str, came_from: str, delta: int, tenant: str, operation: str, variant: str) -> None:
        """One transition of the ledger that this process won; `delta` in micro-dollars."""
        labels = (self.tenant(tenant), operation, self.variant(variant))
        if delta > 0:
            self.cost.labels(*labels).inc(delta / _MICRO)
        elif delta < 0:
            self.refunded.labels(*labels).inc(-delta / _MICRO)
        if end == "AMBIGUOUS":
            self.ambiguous.labels(self.variant(variant)).inc(delta / _MICRO)

    def attempt(self, variant: str, operation: str, status: str, seconds: float) -> None:
        """One call to the upstream; `status` is ok or an outcome of `prodia.faults`."""
        self.upstream_requests.labels(self.variant(variant), status).inc()
        status_class = {
            "ok": "2xx",
            "malformed": "2xx",
            "error": "5xx",
            "unavailable": "5xx",
            "unsent": "none",
            "lost": "none",
        }
        self.upstream_time.labels(self.variant(variant), operation, status_class.get(status, "4xx")).observe(seconds)

    def finished(self, outcome: Outcome, method: str, status: int, seconds: float) -> None:
        """The end of one request."""
        self.http.labels(method, outcome.route, f"{status // 100}xx", outcome.surface).observe(seconds)
        if outcome.operation is None:
            if outcome.code != "ok" and outcome.tenant is not None:
                self.rejections.labels(self.tenant(outcome.tenant), outcome.code).inc()
            return
        tenant = self.tenant(outcome.tenant)
        self.requests.labels(tenant, outcome.operation, outcome.surface, outcome.code).inc()
        self.overhead.labels(outcome.operation).observe(max(0.0, seconds - outcome.upstream - outcome.waited))
        if outcome.safety_action:
            self.safety.labels(tenant, outcome.operation, outcome.safety_action).inc()
        variant = self.variant(outcome.variant)
        for one in outcome.each:
            if one.cache:
                self.cache.labels(tenant, one.cache).inc()
            if one.source:
                self.images.labels(tenant, outcome.operation, variant, one.source).inc()
            if one.saved:
                self.saved.labels(tenant, outcome.operation, variant).inc(one.saved / _MICRO)
        if outcome.code != "ok" and not outcome.attempts:
            self.rejections.labels(tenant, outcome.code).inc()

    def job_ended(self, outcome: Outcome, state: str) -> None:
        """The end of an asynchronous job; what its request came to was counted when it was queued."""
        tenant, variant = self.tenant(outcome.tenant), self.variant(outcome.variant)
        self.async_ended.labels(tenant, state).inc()
        if outcome.cache:
            self.cache.labels(tenant, outcome.cache).inc()
        if outcome.source and outcome.operation:
            self.images.labels(tenant, outcome.operation, variant, outcome.source).inc()
        if outcome.saved and outcome.operation:
            self.saved.labels(tenant, outcome.operation, variant).inc(outcome.saved / _MICRO)

    def render(self) -> bytes:
        """The exposition text."""
        return generate_latest(self.registry)
