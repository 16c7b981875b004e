"""Spans for a collector that speaks OpenTelemetry's OTLP over HTTP: sent in the background, and never waited for.

Imported only where OTLP_URL names a collector (`jobs.trace.open_spans`). A span is made once what it tells of is over,
so nothing is kept for what is still under way, and it has the ids that the record and the logs have.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Mapping, Sequence

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags

from jobs import forks, log
from jobs.trace import is_sampled, span_id, trace_id

PATH = "/v1/traces"  # where OTLP over HTTP takes them
QUEUE, BATCH = 4_096, 512  # spans that wait at most, the newest of them kept, and that go in one request
EVERY_S = 1.0  # between two requests
TRY_S = 3.0  # for one request, with its repetition
AGAIN_S = 5.0  # until a request that failed is tried again
KEEP_S = 60.0  # until its spans are given up; meanwhile the others wait
CLOSE_S = 4.0  # for the last ones, at the end of a process
FORK_S = 0.5  # for so long a fork waits until a request is over: longer ones wait for the network, and hold no lock

SCOPE = InstrumentationScope("gristmill")
WELL, BROKE = Status(StatusCode.UNSET), StatusCode.ERROR

logger = log.get(__name__)


class Spans:
    """One process's way to the collector. `service` is what it is called there."""

    def __init__(self, url: str, service: str) -> None:
        instance = f"{socket.gethostname()}:{os.getpid()}"
        self._resource = _Resource(Resource.create({"service.name": service, "service.instance.id": instance}))
        self._sender = _Sender(url.rstrip("/").removesuffix(PATH) + PATH)
        self._batches = BatchSpanProcessor(
            self._sender, max_queue_size=QUEUE, schedule_delay_millis=1e3 * EVERY_S, max_export_batch_size=BATCH
        )

    def add(
        self,
        name: str,
        kind: SpanKind,
        trace: str,
        within: str,
        times: tuple[float, float],
        about: Mapping[str, str | int],
        error: str | None = None,
    ) -> None:
        """Tell of something that is over. It does not wait.

        `trace` names the span itself and `within` the one around it, each as a traceparent; none: it is the outermost.
        `times` are its begin and end in seconds since 1970. `error` is what broke it.
        """
        if not is_sampled(trace):
            return
        # Not by a Tracer, which would choose the ids itself and take six times as long, on a path that is counted.
        span = ReadableSpan(
            name,
            _context(trace),
            _context(within) if within else None,
            self._resource,
            about,
            kind=kind,
            status=WELL if error is None else Status(BROKE, error),
            start_time=int(1e9 * times[0]),
            end_time=int(1e9 * times[1]),
            instrumentation_scope=SCOPE,
        )
        self._batches.on_end(span)

    def close(self) -> None:
        """Send what is left, in bounded time."""
        self._sender.closing.set()
        last = threading.Thread(target=self._batches.shutdown, daemon=True)  # by itself it may take half a minute
        last.start()
        last.join(CLOSE_S)

    def forget(self) -> None:
        """In a forked child: the library has begun a thread there too, and the connection is the parent's."""
        self._batches.shutdown()


class _Resource(Resource):
    """Hashed once for each span that is sent: the library's own would write it as JSON each time."""

    def __init__(self, told: Resource) -> None:
        super().__init__(told.attributes, told.schema_url)

    def __hash__(self) -> int:
        return id(self)


class _Sender(SpanExporter):
    """Sends a batch until it is taken, or too old. Says once that the collector is away, and once that it is back."""

    def __init__(self, endpoint: str) -> None:
        self.closing = threading.Event()
        self._inner = OTLPSpanExporter(endpoint, timeout=TRY_S)
        self._why = _Why()
        self._is_away = False
        self._sending = threading.Lock()
        forks.wait_for(self._sending, FORK_S)

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        until = time.monotonic() + KEEP_S
        while not self._sent(spans):
            if time.monotonic() > until or self.closing.wait(AGAIN_S):
                logger.warning("spans_lost", count=len(spans))
                return SpanExportResult.FAILURE
        return SpanExportResult.SUCCESS

    def _sent(self, spans: Sequence[ReadableSpan]) -> bool:
        if self.closing.is_set() and self._is_away:
            return False  # those that come after the one that failed would only fail as slowly
        self._why.first = ""
        with self._sending:
            is_away = self._inner.export(spans) is not SpanExportResult.SUCCESS
        if is_away and not self._is_away:
            logger.warning("collector_away", error=self._why.first)
        elif self._is_away and not is_away:
            logger.info("collector_back")
        self._is_away = is_away
        return not is_away

    def shutdown(self) -> None:
        self.closing.set()
        self._inner.shutdown()


class _Why(logging.Handler):
    """Takes what the library's exporter logs, once or twice a try, in place of the log."""

    def __init__(self) -> None:
        super().__init__()
        self.first = ""
        told = logging.getLogger("opentelemetry.exporter")
        told.handlers[:], told.propagate = [self], False

    def emit(self, record: logging.LogRecord) -> None:
        self.first = self.first or record.getMessage()


def _context(trace: str) -> SpanContext:
    return SpanContext(int(trace_id(trace), 16), int(span_id(trace), 16), is_remote=True, trace_flags=TraceFlags(1))
