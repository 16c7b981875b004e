"""Signatures that no worker can take: an unknown stage, a broken body. They end in the dead-letter queue.

Celery would drop some of these, and let others end its main loop. The part behind one, if it names one, stays ready
in its record; the store rings it again later and later, and shows that it found no worker.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from celery import bootsteps

from jobs import log
from jobs.brokers import DEAD_QUEUE, dead_arguments, wire_name
from jobs.model import PartKey

UNKNOWN_TASK, BROKEN_BODY, NO_TASK = "unknown stage", "broken body", "no stage named"

logger = log.get(__name__)


def dead_letters(queue_type: str, strand: Callable[[PartKey], None]) -> type:
    """A bootstep that looks at each message before Celery does. `strand` hears of parts that found no worker."""

    class DeadLetters(bootsteps.StartStopStep):
        """Makes the dead-letter queue, and rejects to it what Celery could not take."""

        requires = ("celery.worker.consumer.tasks:Tasks",)

        def start(self, consumer: Any) -> None:
            _declare(consumer, queue_type)
            if not hasattr(consumer, "takes_all"):  # a consumer that connects anew starts its steps again
                consumer.takes_all = consumer.create_task_handler
                consumer.create_task_handler = lambda *args, **options: _guarded(
                    consumer, consumer.takes_all(*args, **options), strand
                )

    return DeadLetters


def _declare(consumer: Any, queue_type: str) -> None:
    """Rejected messages would be dropped where there is no such queue. On Redis there is none: the record is enough."""
    if consumer.connection.transport.driver_type == "amqp":
        name, arguments = wire_name(DEAD_QUEUE, queue_type), dead_arguments(queue_type)
        with consumer.connection.channel() as channel:
            channel.queue_declare(name, durable=True, auto_delete=False, arguments=arguments)


def _guarded(consumer: Any, take: Callable[[Any], None], strand: Callable[[PartKey], None]) -> Callable[[Any], None]:
    def taken(message: Any) -> None:
        at, why = _read(message, consumer.strategies)
        if why is None:
            take(message)
            return
        logger.error("dead_letter", why=why, task=_task(message), job_id=at.job_id if at else None)
        message.reject_log_error(logger, consumer.connection_errors)
        if at is not None:
            strand(at)

    return taken


def _read(message: Any, known: Any) -> tuple[PartKey | None, str | None]:
    """The part that a message names, and why nobody can take it; None for one that can be taken."""
    try:
        (job_id, stage, generation, index), kwargs, embed = json.loads(message.body)
        numbers = all(type(number) is int and number >= 0 for number in (stage, generation, index))
        fits = isinstance(job_id, str) and numbers and kwargs == {} and isinstance(embed, dict)
    except (ValueError, TypeError, RecursionError):
        fits = False
    headers = message.headers if isinstance(message.headers, dict) else {}
    plain = (message.content_type, headers.get("lang"), type(headers.get("id"))) == ("application/json", "py", str)
    if not fits or not plain:
        return None, BROKEN_BODY
    at = PartKey(job_id, stage, generation, index)
    task = headers.get("task")
    if not isinstance(task, str):
        return None, NO_TASK
    return (at, None) if task in known else (at, UNKNOWN_TASK)


def _task(message: Any) -> str:
    return str((message.headers or {}).get("task"))[:100] if isinstance(message.headers, dict) else ""
