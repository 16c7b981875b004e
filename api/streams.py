"""Answers that are sent piece by piece: a job's events as they happen, and files by range."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from api import metrics
from api.problems import RangeNotSatisfiable
from api.views import moment
from api.waiting import FIRST_LOOK_S, SLOWEST_LOOK_S, Threads, Waiting, unless_gone, wait_for
from jobs.errors import JobNotFound, JobsError
from jobs.files import Files
from jobs.model import Artifact, Event, Status
from jobs.store import JobStore

HEARTBEAT_S = 15.0  # a comment now and then keeps proxies from closing a quiet stream
PAGE = 500
FINAL = frozenset(status.value for status in Status if status.is_final)
RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")
SHOWN = re.compile(r"(image/(?!svg)|video/|audio/|text/plain|application/(json|pdf)$)")  # a browser may show these


class Stream(Response):
    """An answer whose pieces come from an async iterator, which is closed as soon as the client leaves."""

    def __init__(self, content: AsyncIterator[bytes], status: int, headers: dict[str, str], media_type: str) -> None:
        self._content = content
        self.status_code = status
        self.media_type = media_type
        self.background = None
        self.body = b""
        self.init_headers(headers)
        if "content-length" not in headers:
            self.raw_headers = [(name, value) for name, value in self.raw_headers if name != b"content-length"]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await unless_gone(receive, self._send(send))

    async def _send(self, send: Send) -> None:
        async with contextlib.aclosing(self._content) as content:  # type: ignore[type-var]
            piece = await anext(content, b"")  # what cannot be read at all is still answered by a problem
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            while piece:
                await send({"type": "http.response.body", "body": piece, "more_body": True})
                piece = await anext(content, b"")
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def event_stream(
    store: JobStore,
    waiting: Waiting,
    job_id: str,
    after: int,
    known: list[Event],
    heartbeat_s: float = HEARTBEAT_S,
) -> Response:
    """Server-sent events from behind `after` to the final status; `known` were read already."""
    headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
    lines = _lines(store, waiting, job_id, after, known, heartbeat_s)
    return Stream(lines, 200, headers, "text/event-stream")


async def _lines(
    store: JobStore, waiting: Waiting, job_id: str, last: int, events: list[Event], heartbeat_s: float
) -> AsyncIterator[bytes]:
    spoke, look_s = time.monotonic(), FIRST_LOOK_S
    yield b"retry: 2000\n\n"
    with waiting.on(job_id) as changed:
        while True:
            if events:
                yield b"".join(map(_line, events))
                spoke, look_s, last = time.monotonic(), FIRST_LOOK_S, events[-1].id
                if events[-1].type in FINAL:
                    return
            elif time.monotonic() - spoke >= heartbeat_s:
                yield b": heartbeat\n\n"
                spoke = time.monotonic()
            if len(events) < PAGE and not await wait_for(changed, min(look_s, heartbeat_s)):
                look_s = min(look_s * 2, SLOWEST_LOOK_S)
            if waiting.closing:
                return
            changed.clear()
            try:
                events = await waiting.threads(store.events, job_id, last, PAGE)
            except JobNotFound:
                return
            except JobsError:
                events = []  # the store will be back; the stream goes on


def _line(event: Event) -> bytes:
    data = json.dumps({**event.data, "time": moment(event.time)}, separators=(",", ":"))
    return f"id: {event.id}\nevent: {event.type}\ndata: {data}\n\n".encode()


def artifact_response(files: Files, disk: Threads, artifact: Artifact, headers: Any) -> Response:
    """The whole file, a range of it, or 304. Raises RangeNotSatisfiable."""
    etag = f'"{artifact.sha256}"'
    told = {"etag": etag, "accept-ranges": "bytes", "cache-control": "private, no-cache"}
    if is_known(headers.get("if-none-match"), etag):
        return Response(status_code=304, headers=told)
    part = _range(headers, etag, artifact.bytes)
    start, length = part or (0, artifact.bytes)
    if part:
        told["content-range"] = f"bytes {start}-{start + length - 1}/{artifact.bytes}"
    how = "inline" if SHOWN.match(artifact.type) else "attachment"
    told |= {
        "content-length": str(length),
        "content-disposition": f'{how}; filename="{artifact.name}"',
        "x-content-type-options": "nosniff",
    }
    pieces = _pieces(files, disk, artifact.file, start, length)
    return Stream(pieces, 206 if part else 200, told, artifact.type)


def is_known(if_none_match: str | None, etag: str) -> bool:
    """Whether the client has this version already."""
    return if_none_match is not None and any(
        tag.strip().removeprefix("W/") in (etag, "*") for tag in if_none_match.split(",")
    )


def _range(headers: Any, etag: str, size: int) -> tuple[int, int] | None:
    """First byte and length. None for the whole: no range, several, a malformed one, or one of another version."""
    found = RANGE.fullmatch(headers.get("range", ""))
    if not found or found.groups() == ("", "") or headers.get("if-range", etag) != etag:
        return None
    first, last = found.groups()
    if first and last and int(last) < int(first):
        return None
    start = int(first) if first else max(0, size - int(last))
    end = min(int(last), size - 1) if first and last else size - 1
    if start > end:
        raise RangeNotSatisfiable(size=size, content_range=f"bytes */{size}")
    return start, end - start + 1


async def _pieces(files: Files, disk: Threads, name: str, start: int, length: int) -> AsyncIterator[bytes]:
    if not length:
        return
    reading: Iterator[bytes] = await disk(files.read, name, start, length)
    try:
        while piece := await disk(next, reading, b""):
            yield piece
            metrics.SENT.inc(len(piece))
    finally:
        close = getattr(reading, "close", None)
        if close:
            # A piece may still be on its way in a thread when the client leaves; its generator cannot be closed yet.
            with contextlib.suppress(ValueError):
                await asyncio.shield(disk(close))
