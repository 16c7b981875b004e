"""Between Celery and a stage, in the child: claim, tell the parent, run, finish, ring; only then acknowledge.

Whatever a stage does, it comes out of here as a finish or a fail of its claim. Nothing of it reaches Celery: a
MemoryError would end the worker's main process, and an exception that cannot be pickled its child.
"""

from __future__ import annotations

import logging
import math
import os
import random
import socket
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from uuid import uuid4

from celery.exceptions import Reject

from celery_worker.attempt import Attempt, Broken, Done, Outcome
from celery_worker.batch import Batch, Form, measured
from celery_worker.device_errors import is_device_gone, is_device_lost, is_out_of_memory
from celery_worker.devices import is_there
from celery_worker.fetch import Terms
from celery_worker.hands import JobLog, WorkerHands, clean, insist
from celery_worker.heartbeat import BROKE, DEVICE_BROKE, DEVICE_LOST, GIVEN_BACK, OUT_OF_MEMORY
from celery_worker.inputs import Inputs, Names
from celery_worker.line import ChildLine
from celery_worker.models import Models
from celery_worker.stages import Stage
from celery_worker.turn import Turn
from celery_worker.workbench import Device, Dismissed, Limits, Workbench
from jobs import log
from jobs.addresses import allowed
from jobs.dispatch import Bell, open_bell
from jobs.errors import (
    BadInput,
    ClaimLost,
    FileMissing,
    FilesFull,
    FilesUnavailable,
    StoreUnavailable,
    TooManyParts,
    TryAgain,
)
from jobs.files import Files, open_files
from jobs.model import MAX_PARTS, Cause, Claim, Ended, JobError, PartKey
from jobs.pipeline import Pipelines
from jobs.settings import Settings
from jobs.store import JobStore, open_store
from jobs.sweeper import back_off
from jobs.values import ValueTooLarge

SHUN_S = 10.0  # so long a part that ran out of this device's memory is left to others
REMEMBERED = 1_000  # of them
CLAIM_S = 10.0  # without a store for so long, the signature goes back to its queue
DETAIL_CHARS = 1_000
FILES_AWAY_S = 5.0  # a full disk is no fault of the part, and costs it no attempt: it is tried again and again
FILES_AWAY = JobError("stage-broke", "The place for files is full or away.")

logger = log.get(__name__)


@dataclass(frozen=True)
class Verdict:
    """How an attempt that did not finish is counted."""

    cause: Cause
    error: JobError
    delay_s: float | None = None  # before the next attempt; none said: by how many there were


class Runtime:
    """One child's connections and models. Made after the fork: nothing of it survives one."""

    def __init__(self, settings: Settings, device: Device, workplace: Path) -> None:
        self._settings, self._device = settings, device
        self._worker = f"{socket.gethostname()}:{os.getpid()}"
        self._scratch = workplace / str(os.getpid())
        self._scratch.mkdir(parents=True, exist_ok=True)  # each attempt has a folder in it
        self._line = ChildLine(self._scratch)
        self._store: JobStore = open_store(
            settings.store_url, result_ttl_s=settings.result_ttl_s, without=settings.without
        )
        self._files: Files = open_files(settings.files_url)
        self._bell: Bell = open_bell(settings, self._line.rung)
        self._limits = Limits(settings.max_pixels, settings.max_memory_mb)
        self._terms = Terms(allowed(settings.allowed_hosts), settings.max_upload_bytes, settings.max_fetch_s)
        self._beside = ThreadPoolExecutor(1, "beside")
        self.models = Models(settings.models_dir, device, self._line.loaded)
        self._device_lost = False
        self._too_large = OrderedDict[PartKey, float]()  # parts that ran out of this device's memory, and when
        self.batches: dict[str, Batch] = {}  # by task; what is not in it takes one input at a time

    def measure(self, forms: Iterable[Form]) -> None:
        """Find out what batch each stage takes on this device. After its models are warm."""
        for form in forms:
            self.batches[form.task] = measured(form, self.models.load, self._settings.max_batch, self._device.kind)

    def tell(self) -> None:
        """Let the parent say what this child can do."""
        self._line.ready({task: batch.size for task, batch in self.batches.items()}, self.models.taken)

    @cached_property
    def _pipelines(self) -> Pipelines:
        return Pipelines(self._settings.pipeline_dirs)

    def work(self, at: PartKey, task: str, stage: Stage) -> None:
        """Run one part, if it is there to be claimed, and others with it where that pays.

        Returns when Celery may acknowledge.
        """
        if self._device_lost:
            raise Reject("the device vanished, and its worker ends", requeue=True)
        if self._shuns(at):
            self._store.strand([at])
            return
        try:
            self._work(at, self._claim(at), task, stage)
        finally:
            if self._device_lost:
                self._line.device_lost()  # now that every part of it is settled: the parent ends this child

    def _work(self, at: PartKey, claim: Claim | None, task: str, stage: Stage) -> None:
        batch = self.batches.get(task)
        if batch is not None and batch.takes_several:
            Turn(self, stage, batch).run(claim)
        elif claim is None:
            logger.debug("nothing_to_claim", job_id=at.job_id, number=at.stage, index=at.index)
        else:
            self._alone(claim, stage, batch)

    def _shuns(self, at: PartKey) -> bool:
        """Whether a part ran out of this device's memory a moment ago: another device may take it meanwhile."""
        return time.monotonic() - self._too_large.get(at, -math.inf) < SHUN_S

    def _claim(self, at: PartKey) -> Claim | None:
        token = uuid4().hex
        try:
            return insist(
                lambda: self._store.claim(at, self._worker, token, self._settings.lease_s, self._device.name),
                nullcontext(),
                within_s=CLAIM_S,
            )
        except StoreUnavailable:
            raise Reject("the store does not answer", requeue=True) from None

    def _alone(self, claim: Claim, stage: Stage, batch: Batch | None) -> None:
        """One part by itself; less at a time when memory ends, for as long as there is anything to lessen."""
        attempt = self.hold(claim)
        size = batch.size if batch else 1
        with _bound(claim):
            while True:
                outcome: Outcome
                try:
                    outcome = Done(stage(*attempt.begin()))
                except BaseException as error:  # noqa: BLE001 - also SystemExit: nothing of a stage may reach Celery
                    if batch is not None and is_out_of_memory(error) and batch.halve():
                        continue
                    if batch is not None and is_out_of_memory(error):
                        batch.size = size  # the part is too large, not the batch
                    outcome = Broken(error)
                break
        self.end(attempt, outcome)

    # -- what a turn needs ----------------------------------------------------------------------------------------

    def claim_more(self, like: Claim, count: int) -> list[Claim]:
        """Further ready parts like that one. Raises StoreUnavailable."""
        tokens = [uuid4().hex for _ in range(count)]
        found = insist(
            lambda: self._store.claim_more(like, self._worker, tokens, self._settings.lease_s, self._device.name),
            nullcontext(),
            within_s=CLAIM_S,
        )
        wanted: list[Claim] = []
        for claim in found:
            if not self._shuns(claim.at):
                wanted.append(claim)
                continue
            self._line.hold(claim)
            with suppress(ClaimLost):
                self._fail(claim, Verdict(Cause.GIVEN_BACK, OUT_OF_MEMORY, delay_s=1.0))
            self._line.release(claim)
        return wanted

    def hold(self, claim: Claim, scratch: Path | None = None) -> Attempt:
        """Let the parent renew it, and make its place of work."""
        self._line.hold(claim)
        return Attempt(
            claim, scratch or self._scratch / claim.token, JobLog(claim, self._store), self._hands, self._bench
        )

    def wait(self, claim: Claim, waiting: bool) -> None:
        """A part that waits for the one before it does not use up its time."""
        self._line.wait(claim, waiting)

    def must_stop(self, claim: Claim) -> bool:
        """Whether the parent has said so."""
        return self._line.must_stop(claim)

    def aside(self, work: Callable[[], None]) -> Future[None]:
        """Do it in the thread beside, in order."""
        return self._beside.submit(work)

    def end(self, attempt: Attempt, outcome: Outcome) -> None:
        """See an attempt through to an accepted finish or fail, ring what that made ready, and let go of it."""
        claim = attempt.claim
        try:
            with _bound(claim):
                ended = self._ended(attempt, outcome)
                self._bell.ring(ended.rings)
        except ClaimLost:
            logger.info("claim_lost", **log.about(claim))  # no outcome is noted: the gauges count it as lost
        finally:
            self._line.release(claim)

    def _ended(self, attempt: Attempt, outcome: Outcome) -> Ended:
        claim, hands = attempt.claim, attempt.hands
        error = outcome.error if isinstance(outcome, Broken) else None
        if isinstance(outcome, Done):
            try:
                output = hands.pack_output(outcome.value)
            except BaseException as broken:  # noqa: BLE001 - what the stage returned is no JSON, or has no end
                error = broken
        attempt.clear(for_good=True)
        attempt.job_log.flush()
        if error is not None:
            return self._fail(claim, self._judge(claim, error))
        ended = insist(
            lambda: self._store.finish(claim, output, hands.artifacts, hands.emitted), self._line.waiting(claim)
        )
        self._line.ended(claim, "finished", sum(one.bytes for one in hands.artifacts))
        logger.info("part_finished")
        return ended

    def _hands(self, claim: Claim, scratch: Path) -> WorkerHands:
        return WorkerHands(claim, self._store, self._files, self._bell, self._line, self.models, scratch, self._terms)

    def _bench(self, hands: WorkerHands, scratch: Path, own_log: logging.LoggerAdapter[Any]) -> Workbench:
        claim, at = hands.claim, hands.claim.at
        batch = self.batches.get(f"{claim.pipeline}.{claim.stage.name}")
        return Workbench(
            # The generation is not in it: an emitter that runs again emits the same part again.
            # Nor is the job, but the first of its retries: what happened outside before it failed has happened.
            key=f"{claim.family or at.job_id}.{at.stage}.{at.index}",
            params=claim.params,
            input=claim.input,
            inputs=Inputs(
                claim, self._files, scratch, self._terms, lambda: self._pipelines[claim.pipeline], hands.checkpoint
            ),
            names=Names(claim.input, self._store),
            scratch=scratch,
            device=self._device,
            limits=self._limits,
            log=own_log,
            hands=hands,
            batch=batch.size if batch else 1,
        )

    def _judge(self, claim: Claim, error: BaseException) -> Verdict:
        """What an exception of a stage means for its part."""
        match error:
            case ClaimLost():
                raise error
            case BadInput():
                return Verdict(Cause.BAD_INPUT, JobError("bad-input", _text(error)))
            case TooManyParts():
                return Verdict(Cause.BAD_INPUT, JobError("bad-input", f"It makes more than {MAX_PARTS} parts."))
            case ValueTooLarge():
                logger.warning("output_too_large", error=_text(error))
                return Verdict(Cause.BAD_INPUT, JobError("output-too-large", _text(error)))
            case TryAgain():
                return Verdict(Cause.FAILURE, JobError("stage-broke", _text(error)))
            case Dismissed() if self._line.must_stop(claim):
                return Verdict(Cause.GIVEN_BACK, GIVEN_BACK, delay_s=0.0)
            case _ if is_out_of_memory(error):
                logger.warning("stage_out_of_memory", exc_info=error)
                if self._device.kind != "cpu" and claim.at not in self._too_large:
                    self._too_large[claim.at] = time.monotonic()
                    if len(self._too_large) > REMEMBERED:
                        self._too_large.popitem(last=False)
                    return Verdict(Cause.GIVEN_BACK, OUT_OF_MEMORY, delay_s=0.0)
                return Verdict(Cause.FAILURE, OUT_OF_MEMORY)
            case _ if self._device.kind != "cpu" and (is_device_gone(error) or is_device_lost(error)):
                self._device_lost = True
                gone = is_device_gone(error) or not is_there(self._device)
                logger.error("device_lost", device=self._device.name, gone=gone, exc_info=error)
                # A device that is there still was made useless by the call: a part that does it each time must end.
                return Verdict(Cause.GIVEN_BACK, DEVICE_LOST, 0.0) if gone else Verdict(Cause.LOSS, DEVICE_BROKE)
            case FilesUnavailable() | FilesFull():
                logger.error("files_away", exc_info=error)
                return Verdict(Cause.GIVEN_BACK, FILES_AWAY, delay_s=FILES_AWAY_S * random.uniform(0.5, 1.5))
            case FileMissing():
                logger.error("file_missing", exc_info=error)
                return Verdict(Cause.LOSS, BROKE)
        logger.error("stage_broke", exc_info=error)
        return Verdict(Cause.FAILURE, BROKE)

    def _fail(self, claim: Claim, verdict: Verdict) -> Ended:
        attempts = claim.losses if verdict.cause is Cause.LOSS else claim.failures
        delay_s = back_off(attempts) if verdict.delay_s is None else verdict.delay_s
        error = JobError(verdict.error.code, verdict.error.detail, claim.stage.name, claim.at.index)
        logger.info("part_failed", cause=str(verdict.cause), code=error.code)
        ended = insist(lambda: self._store.fail(claim, verdict.cause, error, delay_s), self._line.waiting(claim))
        self._line.ended(claim, verdict.cause.value, code=error.code)
        return ended

    def close(self) -> None:
        """Give back every connection."""
        self._beside.shutdown()
        self._bell.close()
        self._store.close()


def _bound(claim: Claim) -> AbstractContextManager[None]:
    return log.bound(**log.about(claim))


def _text(error: BaseException) -> str:
    with suppress(Exception):
        return clean(str(error), DETAIL_CHARS)
    return type(error).__name__


_of_this_child: Runtime | None = None


def start(runtime: Runtime) -> None:
    """Make it the one that this process's tasks use."""
    global _of_this_child
    _of_this_child = runtime


def task_of(task: str, stage: Stage) -> Callable[[str, int, int, int], None]:
    """What Celery runs for a stage; `task` is the name it goes by."""

    def part(job_id: str, number: int, generation: int, index: int) -> None:
        assert _of_this_child is not None, "the child was not initialised"
        _of_this_child.work(PartKey(job_id, number, generation, index), task, stage)

    return part
