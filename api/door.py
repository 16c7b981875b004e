"""The outermost layer: what Connexion and Flask trip over is put right or refused before they see it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from connexion.middleware.abstract import ROUTING_CONTEXT
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api import metrics, problems
from api.problems import BodyUnreadable, ParametersInvalid
from jobs import log
from jobs.trace import taken_over, trace_id

if TYPE_CHECKING:
    from api.spans import RequestSpans

TRACE = "gristmill.trace"  # where the scope holds the request's trace


class Door:
    """One spelling of the media type, HEAD without trouble, only what can be decoded, and a count of every answer.

    With `spans` a POST has one: any of them may make a job.
    """

    def __init__(self, app: ASGIApp, spans: RequestSpans | None = None) -> None:
        self._app, self._spans = app, spans

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.perf_counter()
        status, answered = 500, []

        async def counted(message: Message) -> None:
            nonlocal status, answered
            if message["type"] == "http.response.start":
                status, answered = message["status"], message["headers"]
            await send(message)

        header = dict(scope["headers"]).get(b"traceparent", b"").decode("latin-1")
        span = self._spans.begin(header) if self._spans and scope["method"] == "POST" else None
        trace = span.trace if span else taken_over(header)
        log.bind(trace_id=trace_id(trace))
        scope = {**scope, "extensions": dict(scope.get("extensions") or {}), TRACE: trace}
        try:
            await self._let_in(scope, receive, counted)
        finally:
            operation = scope["extensions"].get(ROUTING_CONTEXT, {}).get("operation_id") or "none"
            operation = operation.rpartition(".")[2]
            metrics.answered(operation, status, time.perf_counter() - began)
            if self._spans and span:
                self._spans.end(span, operation, status, answered)

    async def _let_in(self, scope: Scope, receive: Receive, send: Send) -> None:
        if refused := _refusal(scope):
            await problems.response(refused)(scope, receive, send)
            return
        scope["headers"] = [_spelled(name, value) for name, value in scope["headers"]]
        if scope["method"] == "HEAD":
            head = _Head(receive, send)
            await self._app({**scope, "method": "GET"}, head.receive, head.send)
        else:
            await self._app(scope, receive, send)


class _Head:
    """A HEAD is a GET whose body nobody sees; a stream is told that the client has left after its headers."""

    def __init__(self, receive: Receive, send: Send) -> None:
        self._receive, self._send = receive, send
        self._done = False

    async def receive(self) -> Message:
        return {"type": "http.disconnect"} if self._done else await self._receive()

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            await self._send(message)
        elif not self._done:
            self._done = True
            await self._send({"type": "http.response.body", "body": b"", "more_body": False})


def _refusal(scope: Scope) -> Exception | None:
    if not scope["query_string"].isascii():
        return ParametersInvalid("The query is not ASCII.")
    if "\x00" in scope["path"]:
        return ParametersInvalid("The path has a NUL.")
    for name, value in scope["headers"]:
        if name == b"content-length" and not value.isdigit():
            return BodyUnreadable("The Content-Length is not a number.")
    return None


def _spelled(name: bytes, value: bytes) -> tuple[bytes, bytes]:
    """`Application/JSON ; charset=x` is `application/json; charset=x`; parameters keep their case."""
    if name != b"content-type":
        return name, value
    kind, semicolon, parameters = value.partition(b";")
    return name, kind.strip().lower() + (b"; " + parameters.strip() if semicolon and parameters.strip() else b"")
