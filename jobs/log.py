"""How every process logs: an event with fields, as JSON, or in colours on a terminal."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import structlog

from jobs.model import Claim
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
    structlog.stdlib.ExtraAdder(),
    structlog.processors.TimeStamper(fmt="iso", utc=True),
]


def setup(level: str = "info", *, as_json: bool | None = None) -> None:
    """Send the standard library's loggers and structlog's to stderr, one line an event.

    JSON unless stderr is a terminal. May be called again: the last call stands.
    """
    plain = not sys.stderr.isatty() if as_json is None else as_json
    last: list[Any] = (
        [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(default=str)]
        if plain
        else [structlog.dev.ConsoleRenderer()]
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=_SHARED,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for name in QUIET:
        logging.getLogger(name).setLevel(max(logging.WARNING, root.level))
    logging.captureWarnings(True)
    # A line names its logger. Nobody is shown who called it from where, and to find that out costs a fifth of a line:
    # https://docs.python.org/3/howto/logging.html#optimization
    logging._srcfile = None
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *_SHARED[:3],
            *_SHARED[4:],
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )


def get(name: str) -> Any:
    """A logger: `log.info("stage_finished", stage=name)`. The first argument is constant."""
    return structlog.stdlib.get_logger(name)


def bind(**fields: Any) -> None:
    """Bind fields to everything that is logged in this task, and in the threads that it asks."""
    structlog.contextvars.bind_contextvars(**fields)


def about(claim: Claim) -> dict[str, Any]:
    """What every line about a claim tells: which part, which attempt at it, which trace."""
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
