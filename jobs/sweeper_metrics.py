"""What a sweeper counts, and what it sees of store, broker and files: the gauges that are nobody else's."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.core import GaugeMetricFamily, Metric

from jobs.asked import Asked, one
from jobs.brokers import DEAD_QUEUE
from jobs.dispatch import Bell
from jobs.files import Files
from jobs.orphans import Walked
from jobs.store import JobStore

MOST_DEAD = 1_000  # dead parts are counted up to here


class SweepCounts:
    """What one sweeper did, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        counter, gauge = partial(Counter, registry=self.registry), partial(Gauge, registry=self.registry)
        self.sweeps = Histogram("gristmill_sweep_seconds", "Seconds that a sweep took.", registry=self.registry)
        self.repeated = counter("gristmill_rings_repeated", "Rings rung again, by why.", ["why"])
        self.leases = counter("gristmill_leases_ended", "Leases that ran out, each a lost attempt.")
        self.deadlines = counter("gristmill_deadlines_passed", "Jobs failed because their deadline passed.")
        self.expired = counter("gristmill_expired", "Families of jobs and uploads forgotten after their time.")
        self.deleted = counter("gristmill_files_deleted", "Files and folders deleted that no record needs.")
        self.failed = counter("gristmill_sweep_steps_failed", "Steps that could not be done.", ["step"])
        self._stored = gauge("gristmill_files_stored", "Files, as the last whole walk found them.", ["folder"])
        self._stored_bytes = gauge("gristmill_files_stored_bytes", "Bytes of the files that it found.", ["folder"])
        self._walked_at = gauge("gristmill_files_walked_timestamp_seconds", "When it ended; 0: none has yet.")

    def walked(self, last: Walked | None) -> None:
        """How much is stored, as of the last whole walk over the files."""
        if last is None:
            return
        for folder, files in last.files.items():
            self._stored.labels(folder).set(files)
            self._stored_bytes.labels(folder).set(last.bytes[folder])
        self._walked_at.set(last.at)


def looks(store: JobStore, bell: Bell, files: Files, queues: Sequence[str]) -> tuple[Asked, ...]:
    """Asked when somebody scrapes, and the same from every sweeper: what waits, what is dead, how full the files are.

    The bell is one of its own, or the scraping thread would share the sweep's connection to the broker.
    """
    return (
        Asked("gristmill_store_up", "Whether the store answers.", lambda: _of_store(store, queues)),
        Asked("gristmill_broker_up", "Whether the broker answers.", lambda: _of_broker(bell, queues)),
        Asked("gristmill_files_up", "Whether the place for files answers.", lambda: _of_files(files)),
    )


def _of_store(store: JobStore, queues: Sequence[str]) -> list[Metric]:
    pressure = store.pressure()
    waits = _by("gristmill_oldest_part_seconds", "Seconds that the part ready for longest waits.", "pipeline", "stage")
    for task, seconds in store.longest_waits().items():
        waits.add_metric(task.rpartition(".")[::2], max(0.0, seconds))
    rung = _by("gristmill_parts_rung", "Ready parts whose ring was confirmed.", "queue")
    for queue, count in {**dict.fromkeys(queues, 0), **store.rung_counts()}.items():
        rung.add_metric([queue], count)
    return [
        waits,
        rung,
        one("gristmill_jobs_waiting", "Jobs accepted and not begun.", pressure.waiting),
        one("gristmill_jobs_started_per_second", "Jobs that start a second, all lines.", pressure.per_s),
        one(
            "gristmill_dead_parts",
            f"Parts that used up their attempts; {MOST_DEAD} at most are counted.",
            len(store.dead(MOST_DEAD)),
        ),
    ]


def _of_broker(bell: Bell, queues: Sequence[str]) -> list[Metric]:
    depth = _by("gristmill_queue_messages", "Messages that wait on a queue.", "queue")
    for queue in queues:
        depth.add_metric([queue], bell.depth(queue))
    letters = bell.depth(DEAD_QUEUE)
    return [depth, one("gristmill_dead_letters", "Signatures that no worker could take.", letters)]


def _of_files(files: Files) -> list[Metric]:
    space = files.space()
    if space is None:
        files.ping()
        return []
    return [
        one("gristmill_files_free_bytes", "Bytes that may still be written.", space.free),
        one("gristmill_files_size_bytes", "Bytes that the place for files has in all.", space.size),
    ]


def _by(name: str, help: str, *labels: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, help, labels=labels)
