"""Batch after batch of one stage: parts of several jobs in one call, each finished on its own while the next one runs.

A signature names one part and opens a turn. What else is ready comes straight from the store, so the signatures of
those parts find nothing to claim; such a one opens a turn as well, with whatever is ready by then.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, Protocol

from celery_worker.attempt import Attempt, Broken, Done, Outcome
from celery_worker.batch import Batch, packs
from celery_worker.device_errors import DeviceGone, is_device_lost, is_out_of_memory
from celery_worker.stages import Stage
from celery_worker.workbench import Dismissed
from jobs import log
from jobs.errors import StoreUnavailable
from jobs.model import Claim

TURN_S = 0.5  # then the queue decides again what is next: by priority, and among all of its stages

logger = log.get(__name__)


class Desk(Protocol):
    """What a turn needs of the runtime."""

    def claim_more(self, like: Claim, count: int) -> list[Claim]: ...
    def hold(self, claim: Claim) -> Attempt: ...
    def wait(self, claim: Claim, waiting: bool) -> None: ...
    def must_stop(self, claim: Claim) -> bool: ...
    def end(self, attempt: Attempt, outcome: Outcome) -> None: ...
    def aside(self, work: Callable[[], None]) -> Future[None]: ...


class Turn:
    """The work that one signature opens."""

    def __init__(self, desk: Desk, stage: Stage, batch: Batch) -> None:
        self._desk, self._stage, self._batch = desk, stage, batch
        self._ending: Future[None] | None = None
        self._lost = False  # the device has gone: nothing more is tried, or claimed

    def run(self, claim: Claim | None) -> None:
        """Until nothing is ready or time is up. Returns when all that it claimed is settled."""
        until = time.monotonic() + TURN_S
        held = self._gather([claim] if claim else [])
        try:
            while held:
                self._batch.had_company = len(held) > 1
                for pack in self._packed(held):
                    self._settle(_untried(pack) if self._lost else self._looked(pack, self._batch.size))
                held = self._gather([]) if time.monotonic() < until and not self._lost else []
        finally:
            self._settled()

    def _gather(self, claims: list[Claim]) -> list[Attempt]:
        """What goes together: the first, and as many more as there is room for and are ready."""
        held = [self._hold(claim) for claim in claims]
        if any(claim.failures or claim.losses for claim in claims):
            return held  # it ended badly before: alone, it takes nobody with it
        self._batch.like = claims[0] if claims else self._batch.like
        held += self._more(self._room(held))
        if held and self._batch.had_company and self._batch.wait_s and self._room(held) > 0:
            time.sleep(self._batch.wait_s)
            held += self._more(self._room(held))
        return held

    def _room(self, held: Sequence[Attempt]) -> int:
        return self._batch.size - sum(one.weight for one in held)

    def _more(self, room: int) -> list[Attempt]:
        if room <= 0 or self._batch.like is None:
            return []
        try:
            return [self._hold(claim) for claim in self._desk.claim_more(self._batch.like, room)]
        except StoreUnavailable:
            return []

    def _hold(self, claim: Claim) -> Attempt:
        attempt = self._desk.hold(claim)
        if self._batch.form.weigh is not None:
            # What cannot be read breaks in a call of its own, with its own error.
            attempt.weight = self._batch.size
            with suppress(Exception):
                attempt.weight = max(1, self._batch.form.weigh(attempt.hands.given()))
        return attempt

    def _packed(self, held: Sequence[Attempt]) -> list[list[Attempt]]:
        found = packs([one.weight for one in held], self._batch.size)
        for pack in found[1:]:
            for number in pack:
                self._desk.wait(held[number].claim, True)
        return [[held[number] for number in pack] for pack in found]

    def _looked(self, pack: Sequence[Attempt], size: int) -> list[tuple[Attempt, Outcome]]:
        """One call; if it breaks, its halves. So what is poisonous is found, and what is too much is made less.

        `size` is the batch's at the beginning.
        """
        if not pack or self._lost:
            return _untried(pack)
        try:
            return [(one, Done(value)) for one, value in zip(pack, self._call(pack), strict=True)]
        except BaseException as error:  # noqa: BLE001 - also SystemExit: nothing of a stage may reach Celery
            ended = [one for one in pack if self._desk.must_stop(one.claim)]
            if ended:
                # Now, not with the rest: the parent kills whoever does not let go of a dismissed part in time.
                self._settle([(one, Broken(Dismissed())) for one in ended])
                return self._looked([one for one in pack if one not in ended], size)
            if is_device_lost(error):
                self._lost = True
                return [(one, Broken(error)) for one in pack]
            halved = is_out_of_memory(error) and self._batch.halve()
            if len(pack) == 1 and halved:
                return self._looked(pack, size)
            if len(pack) == 1:
                if is_out_of_memory(error):
                    self._batch.size = size  # the part is too large, not the batch
                return [(pack[0], Broken(error))]
            logger.warning("batch_bisected", task=self._batch.form.task, parts=len(pack), error=type(error).__name__)
            middle = len(pack) // 2
            return self._looked(pack[:middle], size) + self._looked(pack[middle:], size)

    def _call(self, pack: Sequence[Attempt]) -> Sequence[Any]:
        begun = [one.begin() for one in pack]
        if len(pack) == 1 or self._batch.form.call is None:
            return [self._stage(bench, given) for bench, given in begun]
        values = self._batch.form.call([bench for bench, _ in begun], [given for _, given in begun])
        if not isinstance(values, list | tuple) or len(values) != len(pack):
            raise TypeError(f"{self._batch.form.task}_batch must return one output for each of its parts")
        return values

    def _settle(self, outcomes: list[tuple[Attempt, Outcome]]) -> None:
        """Aside, one batch at a time: the next one may run meanwhile."""
        self._settled()

        def end_all() -> None:
            for attempt, outcome in outcomes:
                self._desk.end(attempt, outcome)

        self._ending = self._desk.aside(end_all)

    def _settled(self) -> None:
        if self._ending is not None:
            self._ending.result()


def _untried(pack: Sequence[Attempt]) -> list[tuple[Attempt, Outcome]]:
    return [(one, Broken(DeviceGone())) for one in pack]
