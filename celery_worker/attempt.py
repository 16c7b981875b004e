"""One try at one part: its bench, its scratch folder, its log, and what came of it."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from celery_worker.hands import JobLog, WorkerHands
from celery_worker.workbench import Workbench
from jobs import log
from jobs.model import Claim

stage_logger = logging.getLogger("gristmill.stage")


@dataclass(frozen=True)
class Done:
    """The stage returned this."""

    value: Any


@dataclass(frozen=True)
class Broken:
    """The stage raised this."""

    error: BaseException


Outcome = Done | Broken


class Attempt:
    """A claim with its place of work. `begin` may be called again: a call for several parts broke, and is repeated."""

    def __init__(
        self,
        claim: Claim,
        scratch: Path,
        job_log: JobLog,
        hands_of: Callable[[Claim, Path], WorkerHands],
        bench_of: Callable[[WorkerHands, Path, logging.LoggerAdapter[Any]], Workbench],
    ) -> None:
        self.weight = 1  # inputs of its stage's model
        self.claim, self.job_log, self._scratch = claim, job_log, scratch
        self._hands_of, self._bench_of = hands_of, bench_of
        # No name's logger: parts that are worked on together must not read each other's lines.
        own = logging.Logger(stage_logger.name)
        own.parent = stage_logger
        own.addHandler(job_log)
        self._log = logging.LoggerAdapter(own, log.about(claim))
        self.hands = hands_of(claim, scratch)

    def begin(self) -> tuple[Workbench, Any]:
        """An empty bench, and what the stage is given."""
        self.clear()
        self._scratch.mkdir(parents=True, exist_ok=True)
        self.hands = self._hands_of(self.claim, self._scratch)
        return self._bench_of(self.hands, self._scratch, self._log), self.hands.given()

    def clear(self, *, for_good: bool = False) -> None:
        """Most stages leave it empty, and making folders costs more than looking into one."""
        if self._scratch.exists() and os.listdir(self._scratch):
            shutil.rmtree(self._scratch, ignore_errors=True)
        elif for_good:
            with suppress(OSError):
                self._scratch.rmdir()
