"""What a stage function is handed. No Celery, no store, no settings reach it."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from celery_worker.fetch import Fetched
from jobs.errors import JobsError


class Dismissed(JobsError):
    """The job has ended; the stage should stop."""


@dataclass(frozen=True)
class Device:
    """What a stage computes on. `name` stands in the job's record: `cpu`, or `cuda:0 NVIDIA ...`."""

    name: str
    kind: str  # cpu, cuda, simulated
    index: int = 0
    memory_bytes: int = 0
    threads: int = 1
    uuid: str = ""  # of a GPU or a slice


@dataclass(frozen=True)
class Limits:
    """What one part may cost."""

    max_pixels: int
    max_memory_mb: int


class Hands(Protocol):
    """What the runtime does for a bench; `celery_worker.testing` does the same in one process, without a store."""

    def keep(self, name: str, source: Path | bytes, listed: bool) -> str: ...
    def emit(self, index: int, payload: Mapping[str, Any], files: Mapping[str, Path]) -> None: ...
    def progress(self, fraction: float) -> None: ...
    def checkpoint(self) -> None: ...
    def open(self, reference: str) -> Path: ...
    def output(self, stage: str) -> Any: ...
    def model(self, name: str) -> Any: ...
    def models(self) -> Mapping[str, Mapping[str, Any]]: ...
    def fetch(
        self, url: str, most_bytes: int | None, within_s: float | None, headers: Mapping[str, str]
    ) -> Fetched: ...


@dataclass(frozen=True)
class Workbench:
    """One part's place of work. JSON in, JSON out, bytes by reference.

    `inputs` are local paths of the files that the client sent, or that lies behind the URL it sent: fetched when it is
    first looked at, once for all stages. `names` are what the client calls them. `input` is the job's `input` as it was
    submitted.
    `scratch` is an empty folder of this attempt, removed afterwards. `key` is the same for every attempt at this
    part, in a retry of the job too: pass it on to effects outside (mail, webhooks), which may happen more than once.
    `batch` is how many inputs one call of a model should have on this device: what measuring found to pay.
    """

    key: str
    params: Mapping[str, Any]
    input: Mapping[str, Any]
    inputs: Sequence[Path]
    names: Sequence[str]
    scratch: Path
    device: Device
    limits: Limits
    log: logging.LoggerAdapter[Any] | logging.Logger
    hands: Hands
    batch: int = 1

    def keep(self, name: str, source: Path | bytes | str, *, listed: bool = True) -> str:
        """Store a file under the job; returns its reference. `listed`: clients see it as an artifact of that name.

        A path is moved from. `name` has letters, digits, `.`, `_`, `-` only.
        """
        return self.hands.keep(name, source.encode() if isinstance(source, str) else source, listed)

    def keep_json(self, name: str, value: Any, *, listed: bool = True) -> str:
        """`keep` some JSON."""
        return self.keep(name, json.dumps(value, allow_nan=False), listed=listed)

    def emit(self, index: int, payload: Mapping[str, Any], files: Mapping[str, Path] | None = None) -> None:
        """Hand one part to the next stage, which is `each`, while this one still runs. Waits while it is far behind.

        `files` are moved from and stored; the consumer finds their references in `given["files"]`, and they are freed
        once it is done. Raises Dismissed.
        """
        self.hands.emit(index, payload, files or {})

    def progress(self, done: float, total: float) -> None:
        """Tell how far this part is; also a checkpoint. Raises Dismissed."""
        self.hands.progress(min(1.0, done / total) if total > 0 else 0.0)

    def checkpoint(self) -> None:
        """Stop here if the job has ended. Raises Dismissed."""
        self.hands.checkpoint()

    def open(self, reference: str) -> Path:
        """A local path with the bytes behind a reference; read-only."""
        return self.hands.open(reference)

    def output(self, stage: str) -> Any:
        """What an earlier stage returned; a list in index order for an `each` stage."""
        return self.hands.output(stage)

    def model(self, name: str) -> Any:
        """A model of models.yaml, loaded once per process: an `onnxruntime.InferenceSession`, or a file's path."""
        return self.hands.model(name)

    @property
    def models(self) -> Mapping[str, Mapping[str, Any]]:
        """What models.yaml says of each model, by name; none of them is loaded by looking."""
        return self.hands.models()

    def fetch(
        self,
        url: str,
        *,
        most_bytes: int | None = None,
        within_s: float | None = None,
        headers: Mapping[str, str] = {},
    ) -> Fetched:
        """Fetch a further file into the scratch folder; the limits only lower those of the settings.

        Raises BadInput for what is refused, TryAgain for what may be there later (a status stands in `http_status`).
        """
        return self.hands.fetch(url, most_bytes, within_s, headers)
