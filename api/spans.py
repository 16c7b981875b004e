"""The spans of requests that may make a job: its record names its request's, so that every stage is inside of it."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Any

from opentelemetry.trace import SpanKind

from jobs.spans import Spans
from jobs.trace import inside, new, read

JOB = "/jobs/"  # where a Location leads that a new job has


class RequestSpans:
    """Imported only where the settings name a collector. `spec` has the operations."""

    def __init__(self, spans: Spans, spec: Mapping[str, Any]) -> None:
        self._spans = spans
        self._routes = {
            told["operationId"]: (method.upper(), path)
            for path, item in spec["paths"].items()
            for method, told in item.items()
            if isinstance(told, dict) and "operationId" in told
        }

    def begin(self, header: str) -> RequestSpan:
        """A request comes in; `header` is its traceparent."""
        return RequestSpan(read(header))

    def end(self, span: RequestSpan, operation: str, status: int, headers: Iterable[tuple[bytes, bytes]]) -> None:
        """It is answered."""
        method, route = self._routes.get(operation, ("POST", ""))
        about: dict[str, str | int] = {"http.request.method": method, "http.response.status_code": status}
        if route:
            about["http.route"] = route
        where = dict(headers).get(b"location", b"").decode("latin-1")
        if where.startswith(JOB):
            about["job_id"] = where.removeprefix(JOB)
        self._spans.add(
            f"{method} {route}".rstrip(),
            SpanKind.SERVER,
            span.trace,
            span.within,
            (span.began, time.time()),
            about,
            str(status) if status >= 500 else None,
        )


class RequestSpan:
    """One request under way. `within` is the span that it was asked from, if any; `trace` names its own."""

    def __init__(self, within: str) -> None:
        self.began = time.time()
        self.within = within
        self.trace = inside(within) if within else new()
