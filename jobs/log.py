"""How every process logs: an event with fields, as JSON, or in colours on a terminal."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import sys
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, TextIO

import structlog

from jobs.model import Claim, Lost
from jobs.trace import trace_id

QUIET = (
    "amqp",
    "multiprocessing",
    "celery.worker.strategy",
    "celery.app.trace",
    "kombu",
    "httpx",
    "httpx2",
    "botocore",
)

_SHARED: list[Any] = [
    structlog.contextvars.merge_contextvars,
    structlog.stdlib.add_logger_name,
    structlog.stdlib.add_log_level,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
]


def setup(level: str = "info", *, as_json: bool | None = None) -> None:
    """Send the standard library's loggers and ours to stderr, one line an event.

    JSON unless stderr is a terminal. To be called before the first line: a logger that has been used stays as it is.
    """
    plain = not sys.stderr.isatty() if as_json is None else as_json
    last: list[Any] = (
        [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(_json)]
        if plain
        else [structlog.dev.ConsoleRenderer()]
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*_SHARED, structlog.stdlib.ExtraAdder()],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for name in QUIET:
        logging.getLogger(name).setLevel(max(logging.WARNING, root.level))
    logging.captureWarnings(True)
    # Ours do not pass through the standard library's: every accepted job has a line, and would pay twice for it.
    structlog.configure(
        processors=[*_SHARED, *last],
        logger_factory=partial(_Logger, _Lines(sys.stderr)),
        wrapper_class=structlog.make_filtering_bound_logger(root.level),
        cache_logger_on_first_use=True,
    )


class _Lines:
    """Where our lines go. Those of one turn of an event loop go together, and all others at once.

    To write lets go of the interpreter, and a gateway under load gets it back late: each accepted job has a line.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._turn: deque[str] = deque()
        self._loop: asyncio.AbstractEventLoop | None = None

    def take(self, line: str) -> None:
        """Write a line, soon if the caller is in an event loop. A log that cannot be written stops no work."""
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            self._write(f"{line}\n")
            return
        if not self._turn or loop is not self._loop:
            self._loop = loop
            loop.call_soon(self._end_turn)
        self._turn.append(f"{line}\n")

    def _end_turn(self) -> None:
        lines = []
        while self._turn:  # other threads may have loops, and lines, of their own
            lines.append(self._turn.popleft())
        self._write("".join(lines))

    def _write(self, text: str) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._stream.write(text)
            self._stream.flush()


class _Logger:
    """What structlog puts its processors before."""

    def __init__(self, lines: _Lines, name: str = "") -> None:
        self.name = name
        self.debug = self.info = self.warning = self.error = self.critical = lines.take


def _json(event: Mapping[str, Any], **_: Any) -> str:
    return _ENCODER.encode(event)


_ENCODER = json.JSONEncoder(default=str)  # json.dumps would make one for each line


def get(name: str) -> Any:
    """A logger: `log.info("stage_finished", stage=name)`. The first argument is constant."""
    return structlog.get_logger(name)


def bind(**fields: Any) -> None:
    """Bind fields to everything that is logged in this task, and in the threads that it asks."""
    structlog.contextvars.bind_contextvars(**fields)


def about(claim: Claim | Lost) -> dict[str, Any]:
    """What every line about an attempt tells: which part, which try at it, in which trace."""
    at = claim.at
    return {
        "job_id": at.job_id,
        "stage": claim.stage.name,
        "index": at.index,
        "fence": claim.fence,
        "trace_id": trace_id(claim.trace),
    }


@contextmanager
def bound(**fields: Any) -> Iterator[None]:
    """Bind fields to everything that is logged inside, by this thread."""
    with structlog.contextvars.bound_contextvars(**fields):
        yield
