"""Counters for Prometheus, summed over the gateway's processes, and gauges asked from the store."""

from __future__ import annotations

import os
from functools import cache
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import REGISTRY, GaugeMetricFamily, Metric
from prometheus_client.multiprocess import MultiProcessCollector

from jobs.asked import Asked
from jobs.errors import StoreUnavailable
from jobs.model import Accepted
from jobs.store import JobStore

REQUESTS = Counter("gristmill_requests", "Answers by operation and status.", ["operation", "status"])
SECONDS = Histogram("gristmill_request_seconds", "Seconds to an answer's end; waiting and streams too.", ["operation"])
ACCEPTED = Counter("gristmill_jobs_accepted", "Jobs accepted by this gateway.", ["pipeline"])
REPLAYED = Counter("gristmill_jobs_replayed", "Submissions whose Idempotency-Key was known.", ["pipeline"])
RECEIVED = Counter("gristmill_files_received_bytes", "Bytes of files that clients sent and that were stored.")
SENT = Counter("gristmill_files_sent_bytes", "Bytes of artifacts sent to clients.")

WAITING = Gauge("gristmill_waiting", "Streams and waiting requests.", multiprocess_mode="livesum")


def answered(operation: str, status: int, seconds: float) -> None:
    """Count one answer."""
    _child(REQUESTS, operation, status).inc()
    _child(SECONDS, operation).observe(seconds)


def accepted(answer: Accepted) -> None:
    """Count one submission."""
    _child(REPLAYED if answer.replayed else ACCEPTED, answer.job.pipeline).inc()


@cache
def _child(metric: Any, *labels: str | int) -> Any:
    """Looking a metric up by its labels costs more than counting."""
    return metric.labels(*labels)


def text(asked: CollectorRegistry) -> bytes:
    """Everything, in Prometheus' text format; `asked` is what `of_store` made."""
    registry = REGISTRY
    if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
        registry = CollectorRegistry()
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    return generate_latest(registry) + generate_latest(asked)


def of_store(store: JobStore) -> CollectorRegistry:
    """How many jobs there are, for all gateways the same; without them when the store does not answer in time."""

    def ask() -> list[Metric]:
        store.ping()
        try:
            counted = store.counts()
        except StoreUnavailable:  # it has just answered: there are more jobs than Postgres counts in time
            return []
        jobs = GaugeMetricFamily("gristmill_jobs", "Jobs by pipeline and status.", labels=["pipeline", "status"])
        for (pipeline, status), count in counted.items():
            jobs.add_metric([pipeline, status.value], count)
        return [jobs]

    registry = CollectorRegistry()
    registry.register(Asked("gristmill_store_up", "Whether the store answers.", ask, fresh_s=0.0))
    return registry
