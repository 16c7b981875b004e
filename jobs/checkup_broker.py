"""What `doctor` asks the broker: whether somebody takes from each queue, and for how long a message may be held."""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Iterator

from jobs.brokers import DEAD_QUEUE, open_broker
from jobs.checkup import Finding
from jobs.pipeline import Pipelines
from jobs.settings import Settings
from jobs.store import JobStore

ASK = "application:get_env(rabbit, consumer_timeout)."
ASK_S = 20.0
SPARE_S = 60.0  # a stage that is stopped at its limit needs a moment more


def queues(settings: Settings, store: JobStore, pipelines: Pipelines) -> Iterator[Finding]:
    """Whether every queue that a pipeline names, or on which something waits, has a worker."""
    broker = open_broker(settings.broker_url, settings.queue_type)
    try:
        for queue in sorted({*pipelines.queues, *store.rung_counts()}):
            consumers = broker.consumers(queue)
            if consumers is None:
                yield Finding("queues", "unknown", f"The broker does not tell who takes from {queue}.")
            elif consumers:
                yield Finding("queues", "ok", f"{queue} has a worker.")
            else:
                yield Finding("queues", "unsafe", f"No worker takes from the queue {queue}.")
        if letters := broker.depth(DEAD_QUEUE):
            yield Finding("queues", "unsafe", f"{letters} dead letters: no worker could take them (`gristmill dead`).")
    finally:
        broker.close()


def consumer_timeout(settings: Settings, pipelines: Pipelines, rabbitmqctl: str) -> Iterator[Finding]:
    """RabbitMQ ends a worker's connection that holds a message for longer; only its own tool tells for how long."""
    if settings.broker_url.startswith("redis"):
        return
    longest = max((stage.time_limit for p in pipelines.values() for stage in p.stages), default=0.0)
    try:
        command = [*shlex.split(rabbitmqctl), "eval", ASK]
        done = subprocess.run(command, capture_output=True, text=True, timeout=ASK_S, check=True)
    except (OSError, subprocess.SubprocessError):
        text = f"It must be above {longest + SPARE_S:.0f} s; rabbitmqctl does not answer here: --rabbitmqctl says how."
        yield Finding("consumer timeout", "unknown", text)
        return
    found = re.search(r"\{ok,\s*(\d+)\}", done.stdout)
    if found is None:
        yield Finding("consumer timeout", "ok", "RabbitMQ has none.")
    elif int(found[1]) / 1000 < longest + SPARE_S:
        text = f"{int(found[1]) / 1000:.0f} s, and a stage may run for {longest:.0f} s: set consumer_timeout higher."
        yield Finding("consumer timeout", "unsafe", text)
    else:
        yield Finding("consumer timeout", "ok", f"{int(found[1]) / 1000:.0f} s; the longest stage: {longest:.0f} s.")
