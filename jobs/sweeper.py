"""Rings what is due again, ends leases and deadlines, removes what has expired: `python -m jobs.sweeper`.

Any number of sweepers may run: every step is one atomic transition in the store, and a ring too many is harmless.
"""

from __future__ import annotations

import random
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from jobs import log
from jobs.dispatch import Bell, open_bell
from jobs.errors import BrokerUnavailable, FilesFull, FilesUnavailable, StoreUnavailable
from jobs.exposition import expose
from jobs.files import Files, open_files
from jobs.model import Cause, Ring
from jobs.orphans import Orphans
from jobs.pipeline import Pipelines
from jobs.settings import Settings, load_or_exit
from jobs.store import BACK_OFF_MAX_S, JobStore, open_store
from jobs.sweeper_metrics import SweepCounts, looks
from jobs.trace import open_part_spans

if TYPE_CHECKING:
    from jobs.part_spans import PartSpans

SWEEP_S = 1.0
ITEMS = 500  # of one step in one sweep, so that no sweep holds anything up for long
TRICKLE = 10  # rings of the slow fallback, by queue ...
LONG, LONG_TRICKLE_S = 1_000, 60.0  # ... but one in so many seconds, where so many messages wait
COLLECT, COLLECT_EVERY = 200, 10  # files that are looked at for orphans, and sweeps in between
PAUSE_MAX_S = 10.0  # between two sweeps while the store is away
BACK_OFF_S = (2.0, BACK_OFF_MAX_S)
WORKER_LOST = "worker-lost"  # the code of the errors that `end_leases` writes

logger = log.get(__name__)


def back_off(attempt: int) -> float:
    """Seconds before attempt `attempt` + 2: exponential, at most 5 minutes, jittered by a half either way."""
    first, most = BACK_OFF_S
    return min(first * 2.0 ** min(attempt, 30), most) * random.uniform(0.5, 1.5)


class Sweeper:
    """One sweeper: `sweep` is one round of every step; a step that fails leaves the others alone."""

    def __init__(
        self,
        store: JobStore,
        files: Files,
        bell: Bell,
        queues: Iterable[str],
        settings: Settings,
        counts: SweepCounts | None = None,
        spans: PartSpans | None = None,
    ) -> None:
        self._store, self._files, self._bell = store, files, bell
        self.counts, self._spans = counts or SweepCounts(), spans
        self._queues = tuple(queues)
        self._grace_s = 0.0 if "grace" in settings.without else settings.lease_s
        self._without = settings.without
        self._deficits: dict[str, int] = {}
        self._orphans = Orphans(store, files, settings.orphan_ttl_s)
        self._sweeps = 0
        self._trickled: dict[str, float] = {}

    def sweep(self) -> bool:
        """One round. False when the store did not answer."""
        steps: tuple[Callable[[], object], ...] = (
            self._ring_due,
            self._end_leases,
            self._end_deadlines,
            self._release,
            self._ring_unrung,
            self._ring_missing,
            self._expire,
            self._delete,
            self._collect,
        )
        with self.counts.sweeps.time():
            return all(self._done(step, step.__name__.strip("_")) for step in steps)

    def _done(self, step: Callable[[], object], name: str) -> bool:
        """False when the store did not answer: the other steps would wait for it too."""
        try:
            step()
            return True
        except StoreUnavailable as error:
            logger.warning("store_unavailable", step=name, error=str(error))
            self.counts.failed.labels(name).inc()
            return False
        except (BrokerUnavailable, FilesUnavailable, FilesFull) as error:
            logger.warning("step_put_off", step=name, error=str(error))
        except Exception:  # what breaks one step must not stop the others, nor the sweeper
            logger.exception("step_broke", step=name)
        self.counts.failed.labels(name).inc()
        return True

    def _ring_due(self) -> None:
        self._ring("due", self._store.due(ITEMS))

    def _end_leases(self) -> None:
        if "leases" in self._without:
            return
        ended = self._store.end_leases(ITEMS, self._grace_s, back_off(0))
        for lost in (one.lost for one in ended if one.lost):
            logger.warning("lease_ended", **log.about(lost))
            self.counts.leases.inc()
            if self._spans:
                self._spans.ended(lost, (lost.began, lost.ended), Cause.LOSS.value, WORKER_LOST)
        self._ring("lease_over", [ring for one in ended for ring in one.rings])

    def _end_deadlines(self) -> None:
        for job_id in self._store.end_deadlines(ITEMS):
            logger.info("deadline_passed", job_id=job_id)
            self.counts.deadlines.inc()

    def _release(self) -> None:
        """A rate allows more with time alone; the rest is what a job's end could not let in."""
        self._ring("room", self._store.release())

    def _ring_unrung(self) -> None:
        # While the broker is away these would only be put off, each by its 2 s.
        if not self._bell.is_silent and "rings" not in self._without:
            self._ring("unrung", self._store.unrung(ITEMS))

    def _ring_missing(self) -> None:
        """By deficit: a part that is rung and ready has a message on its queue, or its message was lost.

        A message on its way to a worker that has not claimed yet looks lost too, so only what two sweeps in a row
        miss is rung again.
        """
        if "rings" in self._without:
            return
        rung = self._store.rung_counts()
        for queue in {*self._queues, *rung}:
            messages = self._bell.depth(queue) if rung.get(queue) else 0
            deficit = max(0, rung.get(queue, 0) - messages)
            seen_twice = min(deficit, self._deficits.get(queue, 0))
            self._deficits[queue] = deficit
            if seen_twice and "deficit" not in self._without:
                self._ring("missing", self._store.missing(queue, messages, min(ITEMS, seen_twice)))
            self._ring("overdue", self._store.overdue(queue, self._trickle(queue, messages)))

    def _trickle(self, queue: str, messages: int) -> int:
        """How many fallback rings a queue may get now: on a long one every part is overdue, and hardly any is lost."""
        now = time.monotonic()
        if messages < LONG:
            return TRICKLE
        if now - self._trickled.get(queue, -LONG_TRICKLE_S) < LONG_TRICKLE_S:
            return 0
        self._trickled[queue] = now
        return 1

    def _expire(self) -> None:
        if count := self._store.expire(ITEMS):
            logger.info("expired", count=count)
            self.counts.expired.inc(count)

    def _delete(self) -> None:
        """The record let go of these files before, so a crash in between deletes them next time."""
        names = self._store.trash(ITEMS)
        deleted = []
        try:
            for name in names:
                self._files.delete(name)
                deleted.append(name)
        finally:
            if deleted:
                self._store.trashed(deleted)
                self.counts.deleted.inc(len(deleted))

    def _collect(self) -> None:
        """What no record ever named, or names no more: not in the trash, so somebody has to look for it."""
        if self._sweeps % COLLECT_EVERY == 0:
            if count := self._orphans.step(COLLECT):
                logger.info("orphans_deleted", count=count)
                self.counts.deleted.inc(count)
            self.counts.walked(self._orphans.walked)
        self._sweeps += 1

    def _ring(self, why: str, rings: Sequence[Ring]) -> None:
        if rings:
            confirmed = self._bell.ring(rings)
            logger.info("rung_again", why=why, count=len(rings), confirmed=confirmed)
            self.counts.repeated.labels(why).inc(confirmed)


def run(settings: Settings, stop: threading.Event) -> None:
    """Sweep every second until told to stop."""
    store = open_store(settings.store_url, result_ttl_s=settings.result_ttl_s, without=settings.without)
    bell, looking = open_bell(settings, store.rung), open_bell(settings, store.rung)
    files, queues = open_files(settings.files_url), Pipelines(settings.pipeline_dirs).queues
    spans = open_part_spans(settings, "gristmill-sweeper")
    sweeper = Sweeper(store, files, bell, queues, settings, spans=spans)
    for asked in looks(store, looking, files, queues):
        sweeper.counts.registry.register(asked)
    with expose(sweeper.counts.registry, settings):
        _sweep(sweeper, stop)
    if spans:
        spans.close()
    looking.close()
    bell.close()
    store.close()


def _sweep(sweeper: Sweeper, stop: threading.Event) -> None:
    pause_s = SWEEP_S
    alive = Path(tempfile.gettempdir()) / "gristmill-sweeper-alive"  # for a container's health check
    while not stop.is_set():
        started = time.monotonic()
        answered = sweeper.sweep()
        alive.touch()  # also when the store is away: starting anew would not bring it back
        pause_s = SWEEP_S if answered else min(pause_s * 2, PAUSE_MAX_S)
        # A little jitter, so that several sweepers do not step on each other's toes each second.
        stop.wait(max(0.0, pause_s * random.uniform(0.9, 1.1) - (time.monotonic() - started)))


def main() -> None:
    """The entry point; SIGTERM and SIGINT end it after the round it is in."""
    settings = load_or_exit()
    log.setup(settings.log_level)
    stop = threading.Event()

    def end(number: int, _: FrameType | None) -> Any:
        logger.info("sweeper_stopping", signal=signal.Signals(number).name)
        stop.set()

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, end)
    logger.info("sweeper_started")
    run(settings, stop)


if __name__ == "__main__":
    main()
