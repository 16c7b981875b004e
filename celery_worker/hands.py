"""What a bench can do in a worker: files, emits, progress, checkpoints, on behalf of one claim."""

from __future__ import annotations

import logging
import mimetypes
import re
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any, TypeVar

from celery_worker.fetch import Fetched, Terms
from celery_worker.inputs import fetch_into
from celery_worker.line import ChildLine
from celery_worker.models import Models
from celery_worker.workbench import Dismissed
from jobs import log
from jobs.dispatch import Bell
from jobs.errors import StoreUnavailable
from jobs.files import Files, part_folder
from jobs.model import Artifact, Claim, LogLine, Output
from jobs.store import JobStore
from jobs.values import pack, unpack

NAME = re.compile(r"[A-Za-z0-9._-]{1,120}")
OWN = "_"  # a folder of our own below the part's: no kept name has a slash
LOOK_S = 0.05  # a checkpoint looks at the line at most so often: stages call it for every frame
PROGRESS_S = 0.2
FULL_S = (0.05, 0.5)  # between two tries of an emit that found the next stage full
LOG_LINES, LOG_S = 50, 1.0  # lines gathered, and for how long, before they are stored
LINE_CHARS = 2_000

logger = log.get(__name__)
T = TypeVar("T")


def insist(call: Callable[[], T], waiting: AbstractContextManager[None], within_s: float | None = None) -> T:
    """Repeat a call until the store answers: an absent store does not stop the work, only its refusal does.

    `waiting` is entered while it is away. Raises StoreUnavailable after `within_s`, if that is given.
    """
    with suppress(StoreUnavailable):
        return call()
    with waiting:
        until = None if within_s is None else time.monotonic() + within_s
        pause_s = 0.1
        while True:
            time.sleep(pause_s)
            try:
                return call()
            except StoreUnavailable as error:
                logger.warning("store_unavailable", error=str(error))
                if until is not None and time.monotonic() > until:
                    raise
            pause_s = min(pause_s * 2, 2.0)


class WorkerHands:
    """See `celery_worker.workbench.Hands`."""

    def __init__(
        self,
        claim: Claim,
        store: JobStore,
        files: Files,
        bell: Bell,
        line: ChildLine,
        models: Models,
        scratch: Path,
        terms: Terms,
    ) -> None:
        self.claim, self.scratch, self.terms = claim, scratch, terms
        self._store, self._files, self._bell, self._line, self._models = store, files, bell, line, models
        self._folder = part_folder(claim.at, claim.fence)
        self._artifacts: dict[str, Artifact] = {}
        self._emitted: set[int] = set()
        self._looked = self._told = 0.0

    @property
    def artifacts(self) -> Sequence[Artifact]:
        """What was kept for the client."""
        return tuple(self._artifacts.values())

    @property
    def emitted(self) -> int | None:
        """How many parts were emitted; None where the next stage is not `each`."""
        return len(self._emitted) if self._emits else None

    @property
    def _emits(self) -> bool:
        following = self.claim.at.stage + 1
        return following < len(self.claim.plan.stages) and self.claim.plan.stages[following].each

    def keep(self, name: str, source: Path | bytes, listed: bool) -> str:
        if not NAME.fullmatch(name) or name in (".", ".."):
            raise ValueError(f"{name!r} is not a name of letters, digits, `.`, `_`, `-`")
        reference = self._folder + name
        stored = self._files.put(reference, source)
        if listed:
            type_ = mimetypes.guess_type(name)[0] or "application/octet-stream"
            self._artifacts[name] = Artifact(name, reference, stored.bytes, stored.sha256, type_)
        return reference

    def emit(self, index: int, payload: Mapping[str, Any], files: Mapping[str, Path]) -> None:
        if not self._emits:
            raise ValueError(f"{self.claim.stage.name} emits, but the stage after it is not `each`")
        self.checkpoint()
        names: list[str] = []
        references = {}
        for key, path in files.items():
            if not NAME.fullmatch(key):
                raise ValueError(f"{key!r} is not a name of letters, digits, `.`, `_`, `-`")
            references[key] = f"{self._folder}{OWN}/{index}.{key}"
            self._files.put(references[key], path)
            names.append(references[key])

        def spill(data: bytes) -> str:
            names.append(self._spill(f"{index}.payload.json", data))
            return names[-1]

        packed = pack({**payload, "files": references} if files else dict(payload), spill)
        answer = self._insist(lambda: self._store.emit(self.claim, index, packed, names))
        if answer.full:
            with self._line.waiting(self.claim):
                pause_s = FULL_S[0]
                while answer.full:
                    time.sleep(pause_s)
                    pause_s = min(pause_s * 1.5, FULL_S[1])
                    self.checkpoint()
                    answer = self._insist(lambda: self._store.emit(self.claim, index, packed, names))
        self._emitted.add(index)
        if answer.rings:
            self._bell.ring(answer.rings)

    def progress(self, fraction: float) -> None:
        now = time.monotonic()
        if now - self._told >= PROGRESS_S and not self.claim.stage.each:
            self._told = now
            self._line.progress(self.claim, fraction)
        self.checkpoint()

    def checkpoint(self) -> None:
        now = time.monotonic()
        if now - self._looked >= LOOK_S:
            self._looked = now
            if self._line.must_stop(self.claim):
                raise Dismissed

    def open(self, reference: str) -> Path:
        return self._files.local(reference, self.scratch)

    def output(self, stage: str) -> Any:
        names = [one.name for one in self.claim.plan.stages[: self.claim.at.stage]]
        if stage not in names:
            raise ValueError(f"{stage!r} is not a stage before {self.claim.stage.name}")
        return self.output_of(names.index(stage))

    def output_of(self, number: int) -> Any:
        """What the stage of that number left: a list in index order for an `each` stage."""
        found = self._insist(lambda: self._store.outputs(self.claim.at.job_id, number))
        values = [self._value(one) for one in found]
        return values if self.claim.plan.stages[number].each else values[0]

    def model(self, name: str) -> Any:
        return self._models.load(name)

    def models(self) -> Mapping[str, Mapping[str, Any]]:
        return self._models.declared

    def fetch(self, url: str, most_bytes: int | None, within_s: float | None, headers: Mapping[str, str]) -> Fetched:
        return fetch_into(self.scratch, url, self.terms.within(most_bytes, within_s), self.checkpoint, headers)

    def given(self) -> Any:
        """What the stage gets: nothing, the payload, or what the stage before it left."""
        if self.claim.stage.each:
            return unpack(self.claim.payload or b"=null", self._files.load)
        return self.output_of(self.claim.at.stage - 1) if self.claim.at.stage else {}

    def pack_output(self, value: Any) -> bytes:
        """For the record; a large one goes to a file."""
        return pack(value, lambda data: self._spill("output.json", data))

    def _insist(self, call: Callable[[], T]) -> T:
        return insist(call, self._line.waiting(self.claim))

    def _spill(self, name: str, data: bytes) -> str:
        reference = f"{self._folder}{OWN}/{name}"
        self._files.put(reference, data)
        return reference

    def _value(self, output: Output) -> Any:
        if output.value is None:
            error = output.error
            return {"error": {"code": error.code, "detail": error.detail} if error else {}}
        return unpack(output.value, self._files.load)


class JobLog(logging.Handler):
    """Gathers what a stage logs, and stores it in the job's own log. Losing a line is no reason to fail."""

    def __init__(self, claim: Claim, store: JobStore) -> None:
        super().__init__(logging.INFO)
        self._claim, self._store = claim, store
        self._lines: list[LogLine] = []
        self._stored = time.monotonic()

    def emit(self, record: logging.LogRecord) -> None:
        claim, level = self._claim, record.levelname.lower()
        text = clean(record.getMessage(), LINE_CHARS)
        self._lines.append(LogLine(record.created, level, text, claim.stage.name, claim.at.index, claim.fence))
        if len(self._lines) >= LOG_LINES or time.monotonic() - self._stored >= LOG_S:
            self.flush()

    def flush(self) -> None:
        lines, self._lines = self._lines, []
        self._stored = time.monotonic()
        if lines:
            try:
                self._store.log(self._claim.at.job_id, lines)
            except StoreUnavailable as error:
                logger.warning("job_log_lost", count=len(lines), error=str(error))


def clean(text: str, most: int) -> str:
    """Text that every store can hold: no NUL, no lone surrogate, not endless."""
    return text[:most].replace("\0", "�").encode("utf-8", "replace").decode()
