"""Celery's parent process keeps the leases of its children, and knows why one died.

A thread in the child would starve: a library may hold the interpreter's lock for longer than a lease. The parent
renews every claim its children hold, learns that a job has ended and stops its part, ends what runs for too long or
takes too much memory, and ends the lease of a child that died, with its cause, so that nobody waits for it to run out.
"""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import signal
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
from celery.worker import state

from celery_worker.children import Child, Hold
from celery_worker.device_watch import DeviceWatch
from celery_worker.line import (
    DeviceLost,
    Exchange,
    Hello,
    Holds,
    Loaded,
    Progress,
    Ready,
    Released,
    Rung,
    Stop,
    Waits,
    words,
)
from celery_worker.metrics import WorkerCounts
from celery_worker.watchdog import Signs, Watchdog
from celery_worker.workbench import Device
from jobs import forks, log
from jobs.dispatch import Bell, open_bell
from jobs.errors import ClaimLost, StoreUnavailable
from jobs.model import Cause, Claim, JobError, PartKey, Presence, Ring, Standing
from jobs.settings import Settings
from jobs.store import JobStore, open_store
from jobs.sweeper import back_off

if TYPE_CHECKING:
    from jobs.part_spans import PartSpans

ANNOUNCE_S, PRESENT_S = 5.0, 15.0  # how often a worker says that it is there, and how long each word holds
TICK_S = 0.2  # between two looks at the children
LOOK_S = 1.0  # a dismissed job is noticed after this, whatever the lease: its worker must be free within 5 s
STOP_S = 2.5  # a stage has this long to stop at a checkpoint; with a new child its worker is free within 5 s
YOUNG_S = 180.0  # a child may load models for so long before it takes its first part
STRANDED = 1_000  # parts that are remembered until the store is told; the others come again
STOOD_STILL = 70  # the exit code of a worker that ends itself
DEVICE_GONE = 71  # ... and of one whose device vanished, or became useless
NO_CHILD = 72  # ... and of one on a GPU whose child cannot start: it would look well, and do nothing
STILLBORN = 3  # children in a row that died before they were ready
MIB = 1_048_576

BROKE = JobError("stage-broke", "The stage broke.")
WORKER_LOST = JobError("worker-lost", "The worker's process died while it ran the part.")
TIME_LIMIT = JobError("time-limit", "The stage ran out of its time.")
DEVICE_LOST = JobError("worker-lost", "The worker's device vanished.")
DEVICE_BROKE = JobError("worker-lost", "The worker's device became useless over the part.")
OUT_OF_MEMORY = JobError("out-of-memory", "The stage took more memory than it may.")
GIVEN_BACK = JobError("worker-lost", "The worker was shut down before the part was finished.")

logger = log.get(__name__)


class Heart:
    """The thread that does all this, with a connection to the store of its own."""

    def __init__(
        self,
        settings: Settings,
        workplace: Path,
        device: Device,
        counts: WorkerCounts,
        spans: PartSpans | None = None,
        *,
        grace_s: float = 60.0,
    ) -> None:
        self._spans = spans
        self._device, self._name = device, f"{socket.gethostname()}:{os.getpid()}"
        self._announced = -math.inf
        self._watched = DeviceWatch(device)
        self._stillborn = 0
        self._settings, self._workplace, self._counts, self._grace_s = settings, workplace, counts, grace_s
        self._exchange = Exchange(workplace / "line")
        self._children: list[Child] = []
        self._store: JobStore = open_store(
            settings.store_url, result_ttl_s=settings.result_ttl_s, without=settings.without
        )
        self._bell: Bell = open_bell(settings, self._store.rung)
        self._beat_s = min(settings.beat_s, LOOK_S)
        self._rung: list[Ring] = []
        self._stranded: deque[PartKey] = deque(maxlen=STRANDED)
        self._patient_at = 0.0  # the store did not answer: not before then again
        self._give_back_at: float | None = None
        self._looped: float | None = None
        queue = settings.queues[0]
        signs = Signs(_reserved, lambda: self._bell.depth(queue), self._store.ping)
        self._dog = Watchdog(signs, settings.watchdog_s)
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heart", daemon=True)
        self._beating = threading.RLock()

    def start(self) -> None:
        """Beat from now on. Before the first child is made, so that each finds its line."""
        forks.wait_for(self._beating)
        self._thread.start()

    def shut_down(self) -> None:
        """The worker takes no more work: what is not finished in time is given back. A second call: at once."""
        self._give_back_at = time.monotonic() + (0.0 if self._give_back_at else self._grace_s)

    def close(self) -> None:
        """The children have ended, or must: give back whatever one of them still holds."""
        self._give_back_at = 0.0
        self._closing.set()
        if self._thread.is_alive():
            self._thread.join(10.0)
        shutil.rmtree(self._workplace, ignore_errors=True)

    def looped(self, now: float | None) -> None:
        """Celery's main loop turned; None: it is waiting for its broker, and cannot turn."""
        self._looped = now

    def strand(self, at: PartKey) -> None:
        """A part's signature came that no child can take: let the store know."""
        self._stranded.append(at)

    # -- the thread ---------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._closing.wait(TICK_S):
            self._guarded(self._tick)
        self._guarded(self._last_tick)
        self._exchange.close()
        self._bell.close()
        self._store.close()

    def _guarded(self, step: Callable[[], None]) -> None:
        try:
            with self._beating:
                step()
        except StoreUnavailable as error:
            # The children work on; each call to an absent store may take seconds, and the children must be watched.
            self._patient_at = time.monotonic() + LOOK_S
            logger.warning("store_unavailable", error=str(error))
        except Exception:  # a heart that stops loses every lease of the worker
            logger.exception("heartbeat_broke")

    def _tick(self) -> None:
        now = time.monotonic()
        self._touch(now)
        for connection in self._exchange.accept():
            self._children.append(Child(connection, young_until=now + YOUNG_S))
        for child in list(self._children):
            if not self._listen(child, now):
                self._bury(child)
        self._counts.children.set(len(self._children))
        for child in self._children:
            self._watch(child, now)
        if now >= self._patient_at:
            self._tell()
            self._announce(now)
            if "heartbeat" not in self._settings.without:
                self._renew(now)
        if self._watched.is_gone:
            self._end_worker("device vanished", DEVICE_GONE)
        if self._stillborn >= STILLBORN and self._device.kind != "cpu":
            self._end_worker("its children cannot start", NO_CHILD)
        if self._give_back_at is None:
            holds = sum(len(child.holds) for child in self._children)
            young = sum(now < child.young_until for child in self._children)
            if why := self._dog.verdict(now, self._looped, holds, young):
                self._end_worker(why)

    def _end_worker(self, why: str, code: int = STOOD_STILL) -> None:
        """Whoever supervises the worker starts it anew; what its children hold is given back before."""
        logger.error("worker_ends_itself", why=why, device=self._device.name)
        for child in list(self._children):
            child.verdict = ("", Cause.GIVEN_BACK, GIVEN_BACK)  # whatever it holds
            self._listen(child, time.monotonic())
            if child.pid:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child.pid, signal.SIGKILL)
            self._listen(child, time.monotonic())  # its last words may be of claims
            with contextlib.suppress(StoreUnavailable):
                self._bury(child)
        with contextlib.suppress(StoreUnavailable):
            self._leave()
        if self._spans:
            self._spans.close()
        os._exit(code)

    def _last_tick(self) -> None:
        self._tick()
        for child in list(self._children):
            if child.holds:
                self._kill(child, next(iter(child.holds)), Cause.GIVEN_BACK, GIVEN_BACK)
                child.connection.close()
                self._bury(child)
        self._leave()

    def _leave(self) -> None:
        """It does not wait to be missed."""
        self._store.announce(Presence(self._name, self._device.name, self._settings.queues), 0.0)

    def _touch(self, now: float) -> None:
        """The sign of life that a health check looks at. A broker's outage is none of its business."""
        if self._looped is None or now - self._looped < self._settings.watchdog_s:
            (self._workplace / "alive").touch()

    def _listen(self, child: Child, now: float) -> bool:
        """Take in what a child said; False when it has died."""
        try:
            for word in words(child.connection):
                match word:
                    case Holds(claim, began):
                        child.holds[claim.token] = Hold(claim, began, since=now, renewed=now)
                        child.young_until = now
                        self._counts.held(claim)
                    case Progress(token, fraction) if token in child.holds:
                        child.holds[token].progress = fraction
                    case Waits(token, waiting) if token in child.holds:
                        child.holds[token].wait(now if waiting else None, now)
                    case Released(token) if hold := child.holds.pop(token, None):
                        self._counts.released(hold.claim, word)
                        if self._spans:
                            self._spans.ended(hold.claim, (hold.began, word.over), word.outcome, word.code)
                    case Loaded():
                        self._counts.loaded(word)
                    case Rung(rings):
                        self._rung += rings
                    case DeviceLost():
                        self._watched.is_gone = True
                    case Hello(pid, scratch):
                        child.pid, child.scratch = pid, scratch
                    case Ready():
                        child.ready, self._announced = word, -math.inf
        except (EOFError, OSError):
            return False
        return True

    def _watch(self, child: Child, now: float) -> None:
        """Stop and kill what must not go on."""
        for hold in child.holds.values():
            claim = hold.claim
            if hold.stop_at is None and self._give_back_at is not None and now >= self._give_back_at:
                self._stop(child, hold, now)
            if hold.stop_at is not None and now >= hold.stop_at:
                ended = self._give_back_at is None
                self._kill(child, claim.token, Cause.GIVEN_BACK, WORKER_LOST if ended else GIVEN_BACK)
            elif hold.is_over(now):
                self._kill(child, claim.token, Cause.FAILURE, TIME_LIMIT)
            elif "watchdog" not in self._settings.without and self._is_too_large(child):
                self._kill(child, claim.token, Cause.FAILURE, OUT_OF_MEMORY)

    def _is_too_large(self, child: Child) -> bool:
        try:
            return bool(psutil.Process(child.pid).memory_info().rss > self._settings.max_memory_mb * MIB)
        except psutil.Error:
            return False

    def _tell(self) -> None:
        """Most of these are claimed by now: the store passes over them, where an earlier word would cost it a write."""
        rung, self._rung = self._rung, []
        if rung:
            self._store.rung(rung)
        if stranded := list(self._stranded):
            self._store.strand(stranded)
            for _ in stranded:
                self._stranded.popleft()

    def _announce(self, now: float) -> None:
        """This worker is there, with as many children as are ready."""
        if now - self._announced < ANNOUNCE_S:
            return
        ready = [child.ready for child in self._children if child.ready]
        self._store.announce(
            Presence(
                name=self._name,
                device=self._device.name,
                queues=self._settings.queues,
                children=len(ready),
                batches=dict(ready[-1].batches) if ready else {},
                models=dict(ready[-1].models) if ready else {},
                memory_bytes=self._device.memory_bytes,
            ),
            PRESENT_S,
        )
        self._announced = now

    def _renew(self, now: float) -> None:
        """One round trip for all claims that are a beat old."""
        holds = [
            (child, hold)
            for child in self._children
            for hold in child.holds.values()
            if now - hold.renewed >= self._beat_s
        ]
        if not holds:
            return
        moved = {hold.claim.token: hold.progress for _, hold in holds if hold.progress != hold.told}
        standings = self._store.renew([hold.claim for _, hold in holds], self._settings.lease_s, moved)
        for (child, hold), standing in zip(holds, standings, strict=True):
            hold.renewed, hold.told = now, hold.progress
            if standing is not Standing.HELD and hold.stop_at is None:
                logger.info("part_stopped", pid=child.pid, standing=str(standing), **log.about(hold.claim))
                self._stop(child, hold, now)

    def _stop(self, child: Child, hold: Hold, now: float) -> None:
        hold.stop_at = now + STOP_S
        with contextlib.suppress(OSError):
            child.connection.send(Stop(hold.claim.token))

    def _kill(self, child: Child, token: str, cause: Cause, error: JobError) -> None:
        if child.verdict is None and child.pid:
            child.verdict = (token, cause, error)
            logger.warning("child_killed", pid=child.pid, why=error.code, **log.about(child.holds[token].claim))
            with contextlib.suppress(ProcessLookupError):
                os.kill(child.pid, signal.SIGKILL)

    def _bury(self, child: Child) -> None:
        """A child has died: end its leases, with the cause, and clear its place."""
        self._children.remove(child)
        self._stillborn = 0 if child.ready else self._stillborn + 1
        with contextlib.suppress(OSError):
            child.connection.close()
        if child.scratch:
            shutil.rmtree(child.scratch, ignore_errors=True)
        if self._give_back_at is None:
            self._counts.died(child.verdict[2].code if child.verdict else WORKER_LOST.code)
        for hold in child.holds.values():
            claim = hold.claim
            cause, error, delay_s = Cause.LOSS, WORKER_LOST, back_off(claim.losses)
            if child.verdict is not None:
                token, cause, error = child.verdict
                delay_s = back_off(claim.failures)
                if token != claim.token:  # killed for another part, which it had just let go of
                    cause = Cause.GIVEN_BACK
            elif self._give_back_at is not None:
                cause, error = Cause.GIVEN_BACK, GIVEN_BACK
            self._counts.died_with(claim, cause, time.monotonic() - hold.since)
            if self._spans:
                self._spans.ended(claim, (hold.began, time.time()), cause.value, error.code)
            if "burial" not in self._settings.without:
                self._end(claim, cause, error, 0.0 if cause is Cause.GIVEN_BACK else delay_s)

    def _end(self, claim: Claim, cause: Cause, error: JobError, delay_s: float) -> None:
        """While the store is away nobody renews either: the sweeper ends the lease once it runs out."""
        logger.warning("child_died", cause=str(cause), why=error.code, **log.about(claim))
        error = replace(error, stage=claim.stage.name, index=claim.at.index)
        with contextlib.suppress(ClaimLost):
            self._bell.ring(self._store.fail(claim, cause, error, delay_s).rings)


def _reserved() -> set[str]:
    """The signatures that Celery has taken from the queue and not settled."""
    while True:
        with contextlib.suppress(RuntimeError):  # the main loop changed the set meanwhile
            return {request.id for request in list(state.reserved_requests)}
