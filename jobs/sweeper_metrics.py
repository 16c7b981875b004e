"""What a sweeper counts, and what it sees of store, broker and files: the gauges that are nobody else's."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from jobs.brokers import DEAD_QUEUE
from jobs.dispatch import Bell
from jobs.errors import JobsError
from jobs.files import Files
from jobs.store import JobStore

FRESH_S = 1.0  # answers are kept for so long, so that many who scrape cost no more than one
MOST_DEAD = 1_000  # dead parts are counted up to here


class SweepCounts:
    """What one sweeper did, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        counter = partial(Counter, registry=self.registry)
        self.sweeps = Histogram("gristmill_sweep_seconds", "Seconds that a sweep took.", registry=self.registry)
        self.repeated = counter("gristmill_rings_repeated", "Rings rung again, by why.", ["why"])
        self.leases = counter("gristmill_leases_ended", "Leases that ran out, each a lost attempt.")
        self.deadlines = counter("gristmill_deadlines_passed", "Jobs failed because their deadline passed.")
        self.expired = counter("gristmill_expired", "Families of jobs and uploads forgotten after their time.")
        self.deleted = counter("gristmill_files_deleted", "Files and folders deleted that no record needs.")
        self.failed = counter("gristmill_sweep_steps_failed", "Steps that could not be done.", ["step"])


class Looks(Collector):
    """Asked when somebody scrapes, and the same from every sweeper: what waits, what is dead, how full the files are.

    It has a bell and a store of its own, or the scraping thread would share the sweep's connection to the broker.
    """

    def __init__(self, store: JobStore, bell: Bell, files: Files, queues: Sequence[str]) -> None:
        self._store, self._bell, self._files, self._queues = store, bell, files, tuple(queues)
        self._lock = threading.Lock()
        self._found: list[Metric] = []
        self._found_at = -FRESH_S

    def describe(self) -> Iterable[Metric]:
        """Nothing is asked when it is registered."""
        return ()

    def collect(self) -> Iterable[Metric]:
        """What can be known now; what does not answer is left out, and is not up."""
        with self._lock:
            if time.monotonic() - self._found_at >= FRESH_S:
                self._found = [*self._of_store(), *self._of_broker(), *self._of_files()]
                self._found_at = time.monotonic()
            return self._found

    def _of_store(self) -> Iterator[Metric]:
        def ask() -> list[Metric]:
            pressure = self._store.pressure()
            waits = _by_stage("gristmill_oldest_part_seconds", "Seconds that the part ready for longest has waited.")
            for task, seconds in self._store.longest_waits().items():
                waits.add_metric(task.rpartition(".")[::2], max(0.0, seconds))
            rung = GaugeMetricFamily("gristmill_parts_rung", "Ready parts whose ring was confirmed.", labels=["queue"])
            for queue, count in {**dict.fromkeys(self._queues, 0), **self._store.rung_counts()}.items():
                rung.add_metric([queue], count)
            return [
                waits,
                rung,
                _one("gristmill_jobs_waiting", "Jobs accepted and not begun.", pressure.waiting),
                _one("gristmill_jobs_started_per_second", "Jobs that start a second, all lines.", pressure.per_s),
                _one(
                    "gristmill_dead_parts",
                    f"Parts that used up their attempts; {MOST_DEAD} at most are counted.",
                    len(self._store.dead(MOST_DEAD)),
                ),
            ]

        return _answered("gristmill_store_up", "Whether the store answers.", ask)

    def _of_broker(self) -> Iterator[Metric]:
        def ask() -> list[Metric]:
            depth = GaugeMetricFamily("gristmill_queue_messages", "Messages that wait on a queue.", labels=["queue"])
            for queue in self._queues:
                depth.add_metric([queue], self._bell.depth(queue))
            letters = self._bell.depth(DEAD_QUEUE)
            return [depth, _one("gristmill_dead_letters", "Signatures that no worker could take.", letters)]

        return _answered("gristmill_broker_up", "Whether the broker answers.", ask)

    def _of_files(self) -> Iterator[Metric]:
        def ask() -> list[Metric]:
            space = self._files.space()
            if space is None:
                return []
            return [
                _one("gristmill_files_free_bytes", "Bytes that may still be written.", space.free),
                _one("gristmill_files_size_bytes", "Bytes that the place for files has in all.", space.size),
            ]

        return _answered("gristmill_files_up", "Whether the place for files answers.", ask)


def _answered(name: str, help: str, ask: Callable[[], list[Metric]]) -> Iterator[Metric]:
    up = 1
    try:
        yield from ask()
    except JobsError:
        up = 0
    yield _one(name, help, up)


def _one(name: str, help: str, value: float) -> Metric:
    return GaugeMetricFamily(name, help, value=value)


def _by_stage(name: str, help: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, help, labels=["pipeline", "stage"])
