"""A collector of OpenTelemetry's spans for tests: a real OTLP/HTTP server in the test's process, in a mood."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status


@dataclass(frozen=True)
class Told:
    """A span as the collector got it. Ids are in hex; `parent` is empty for the outermost."""

    service: str
    name: str
    kind: str
    trace: str
    id: str
    parent: str
    began: float
    ended: float
    about: dict[str, Any]
    error: str | None


class Collector:
    """`mood`: `well`; `refuses` answers 500; `hangs` answers nothing for as long as it is so."""

    def __init__(self) -> None:
        self.mood = "well"
        self.requests = 0
        self.spans: list[Told] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def of(self, trace: str) -> list[Told]:
        """The spans of a trace, by when they began."""
        return sorted((span for span in self.spans if span.trace == trace), key=lambda span: span.began)

    def until(self, holds: Callable[[], object], within_s: float = 20.0) -> None:
        """Wait until something holds."""
        until = time.monotonic() + within_s
        while not holds():
            assert time.monotonic() < until, self.spans
            time.sleep(0.02)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.mood = "well"
        self._server.shutdown()
        self._server.server_close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                collector.requests += 1
                body = self.rfile.read(int(self.headers["Content-Length"]))
                mood = collector.mood
                while mood == "hangs" == collector.mood:
                    time.sleep(0.02)
                if mood == "well":
                    assert self.path == "/v1/traces"
                    collector.spans += _told(ExportTraceServiceRequest.FromString(body))
                if mood == "hangs":
                    return
                self.send_response(200 if mood == "well" else 500)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """It is not what the test is about."""

        return Handler


def _told(request: ExportTraceServiceRequest) -> Iterable[Told]:
    for of_resource in request.resource_spans:
        service = _values(of_resource.resource.attributes)["service.name"]
        for span in (span for scope in of_resource.scope_spans for span in scope.spans):
            yield Told(
                service,
                span.name,
                Span.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_"),
                span.trace_id.hex(),
                span.span_id.hex(),
                span.parent_span_id.hex(),
                span.start_time_unix_nano / 1e9,
                span.end_time_unix_nano / 1e9,
                _values(span.attributes),
                span.status.message if span.status.code == Status.STATUS_CODE_ERROR else None,
            )


def _values(attributes: Iterable[Any]) -> dict[str, Any]:
    return {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in attributes}
