"""Runs a pipeline's stages in one process, without store or Celery: for test_stages.py, and for writing a pipeline."""

from __future__ import annotations

import json
import logging
import re
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from celery_worker import devices
from celery_worker.batch import forms_of, packs
from celery_worker.fetch import Fetched, Terms
from celery_worker.inputs import Names, fetch_input, fetch_into
from celery_worker.models import Models
from celery_worker.stages import Stage, load
from celery_worker.workbench import Device, Dismissed, Limits, Workbench
from jobs.addresses import allowed
from jobs.errors import ClaimLost, TooManyParts
from jobs.file_stores.local import LocalFiles
from jobs.model import MAX_PARTS
from jobs.pipeline import Pipeline, read

MODELS = Path(__file__).resolve().parent.parent / "models"
NAME = re.compile(r"[A-Za-z0-9._-]+")


@dataclass(frozen=True)
class Run:
    """What a run left. `outputs` has a list for an `each` stage; `artifacts` are the listed files, by name."""

    pipeline: Pipeline
    params: Mapping[str, Any]
    folder: Path
    outputs: dict[str, Any] = field(default_factory=dict)
    artifacts: dict[str, Path] = field(default_factory=dict)
    events: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    dismissed: bool = False

    @property
    def result(self) -> Any:
        """The last stage's output."""
        return self.outputs[self.pipeline.stages[-1].name]


def run(
    pipeline: str | Path | Pipeline,
    params: Mapping[str, Any] | None = None,
    files: Sequence[str | Path] = (),
    *,
    input: Mapping[str, Any] | None = None,
    folder: Path | None = None,
    dismiss_at: tuple[str, int] | None = None,
    device: Device | None = None,
    models_dir: Path = MODELS,
    limits: Limits = Limits(max_pixels=67_108_864, max_memory_mb=4_096),  # noqa: B008 - frozen
    allowed_hosts: Sequence[str] = (),
    batch: int = 1,
    models: Models | None = None,
) -> Run:
    """Run all stages in order, with real files below `folder` (a temporary one if none is given, removed at exit).

    Params are checked and filled in as at the door. Outputs and payloads go through JSON, emitted parts are consumed
    in index order, each stage has a scratch folder of its own. `dismiss_at=("decode", 3)` dismisses the job at the
    third checkpoint of that stage; the run then ends with `dismissed`. Other errors of a stage are raised as they are.
    `batch` is what a worker would have measured: so many inputs share a call, of several parts where a stage can.
    `models` take the place of those in `models_dir`.
    `input={"url": ...}` is really fetched; `allowed_hosts` is the setting ALLOWED_HOSTS.
    """
    found = pipeline if isinstance(pipeline, Pipeline) else read(Path(pipeline))
    place = folder if folder is not None else _temporary()
    done = Run(found, found.check(params or {}), place)
    workshop = _Workshop(
        done, load(found), [Path(file) for file in files], input or {}, limits, device or devices.find("cpu")
    )
    workshop.models = models or _models(models_dir, workshop.device)
    workshop.dismiss_at = dismiss_at
    workshop.batch = batch
    workshop.terms = Terms(allowed(allowed_hosts), most_bytes=1 << 30, within_s=60.0)
    try:
        workshop.run_all()
    except Dismissed:
        return Run(found, done.params, place, done.outputs, done.artifacts, done.events, dismissed=True)
    return done


class _Workshop:
    """One run: where its files are, what it emitted, how many checkpoints it passed."""

    models: Models
    terms: Terms
    dismiss_at: tuple[str, int] | None = None
    batch: int = 1

    def __init__(
        self,
        done: Run,
        stages: Mapping[str, Stage],
        files: Sequence[Path],
        given: Mapping[str, Any],
        limits: Limits,
        device: Device,
    ) -> None:
        self.done = done
        self.stages = stages
        self.files = files
        self.input = given
        self.limits = limits
        self.device = device
        self.forms = forms_of(done.pipeline)
        self.emitted: dict[int, dict[str, Any]] = {}
        self.checkpoints: dict[str, int] = {}

    def run_all(self) -> None:
        given: Any = {}
        if url := self.input.get("url"):
            self.files = _Behind(url, self)
        for stage in self.done.pipeline.stages:
            work = self.stages[stage.name]
            self.event("stage_started", stage=stage.name)
            if stage.each:
                parts, self.emitted = self.emitted, {}
                outputs: list[Any] = []
                for pack in self.packed(stage.name, parts):
                    outputs += self.run_pack(stage.name, work, pack, [parts[index] for index in pack])
                self.done.outputs[stage.name] = outputs
            else:
                [self.done.outputs[stage.name]] = self.run_pack(stage.name, work, [0], [given])
            self.event("stage_finished", stage=stage.name)
            given = self.done.outputs[stage.name]

    def packed(self, stage: str, parts: Mapping[int, Any]) -> list[list[int]]:
        """The indexes of the parts that share a call, as a worker with this batch would have it."""
        form, order = self.forms.get(stage), sorted(parts)
        if form is None or form.call is None or self.batch == 1:
            return [[index] for index in order]
        weights = [form.weigh(parts[index]) if form.weigh else 1 for index in order]
        return [[order[number] for number in pack] for pack in packs(weights, self.batch)]

    def run_pack(self, stage: str, work: Any, pack: Sequence[int], givens: Sequence[Any]) -> list[Any]:
        folders = [self.done.folder / "scratch" / f"{stage}.{index}" for index in pack]
        for folder in folders:
            folder.mkdir(parents=True)
        try:
            benches = [self.bench(stage, index, folder) for index, folder in zip(pack, folders, strict=True)]
            together = self.forms[stage].call if len(pack) > 1 else None
            found = together(benches, givens) if together else [work(benches[0], givens[0])]
            outputs = [_through_json(one) for one in found]
        finally:
            for folder in folders:
                shutil.rmtree(folder)
        for given in givens:
            for reference in (given.get("files") or {}).values() if isinstance(given, dict) else ():
                (self.done.folder / reference).unlink()  # as in a real job: freed once the consumer is done
        return outputs

    def bench(self, stage: str, index: int, scratch: Path) -> Workbench:
        return Workbench(
            key=f"test.{stage}.{index}",
            params=self.done.params,
            input=self.input,
            inputs=self.files,
            names=Names(self.input, None) if "url" in self.input else [file.name for file in self.files],
            scratch=scratch,
            device=self.device,
            limits=self.limits,
            log=logging.getLogger(f"{__name__}.{stage}"),
            hands=_Hands(self, stage, index),
            batch=self.batch,
        )

    def event(self, kind: str, **data: Any) -> None:
        self.done.events.append((kind, data))

    def store(self, stage: str, index: int, name: str, source: Path | bytes) -> str:
        """Put a file where the run keeps them; its reference is its path below the run's folder."""
        if not NAME.fullmatch(name):
            raise ValueError(f"{name!r} is not a name of letters, digits, `.`, `_`, `-`")
        reference = f"files/{stage}.{index}/{name}"
        target = self.done.folder / reference
        target.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(source, bytes):
            target.write_bytes(source)
        else:
            shutil.move(source, target)
        return reference


class _Behind(Sequence[Path]):
    """The file behind a job's URL, fetched when it is first looked at; a stage that only wants the URL never does."""

    def __init__(self, url: str, workshop: _Workshop) -> None:
        self._url, self._workshop = url, workshop

    def __len__(self) -> int:
        return 1

    def __getitem__(self, at: Any) -> Any:
        folder = self._workshop.done.folder
        if not (folder / "input" / "0").exists():
            pipeline = self._workshop.done.pipeline
            fetch_input(self._url, LocalFiles(folder), "input/0", self._workshop.terms, pipeline, lambda: None)
        return [folder / "input" / "0"][at]


class _Hands:
    """What the bench of one part may do; see `celery_worker.workbench.Hands`."""

    def __init__(self, workshop: _Workshop, stage: str, index: int) -> None:
        self.workshop = workshop
        self.stage = stage
        self.index = index

    def keep(self, name: str, source: Path | bytes, listed: bool) -> str:
        reference = self.workshop.store(self.stage, self.index, name, source)
        if listed:
            path = self.workshop.done.folder / reference
            self.workshop.done.artifacts[name] = path
            self.workshop.event("artifact", stage=self.stage, name=name, bytes=path.stat().st_size)
        return reference

    def emit(self, index: int, payload: Mapping[str, Any], files: Mapping[str, Path]) -> None:
        self.checkpoint()
        plan = self.workshop.done.pipeline.stages
        number = next(n for n, stage in enumerate(plan) if stage.name == self.stage)
        if number + 1 >= len(plan) or not plan[number + 1].each:
            raise ClaimLost(f"{self.stage} emits, but the stage after it is not `each`.")
        if not 0 <= index < MAX_PARTS:
            raise TooManyParts(f"Part {index}; a stage may have {MAX_PARTS}.")
        if index in self.workshop.emitted:
            return
        kept = {key: self.workshop.store(self.stage, index, key, path) for key, path in files.items()}
        self.workshop.emitted[index] = _through_json({**payload, **({"files": kept} if kept else {})})

    def progress(self, fraction: float) -> None:
        self.workshop.event("progress", stage=self.stage, index=self.index, progress=fraction)
        self.checkpoint()

    def checkpoint(self) -> None:
        passed = self.workshop.checkpoints[self.stage] = self.workshop.checkpoints.get(self.stage, 0) + 1
        if self.workshop.dismiss_at == (self.stage, passed):
            raise Dismissed

    def open(self, reference: str) -> Path:
        return self.workshop.done.folder / reference

    def output(self, stage: str) -> Any:
        return self.workshop.done.outputs[stage]

    def model(self, name: str) -> Any:
        return self.workshop.models.load(name)

    def models(self) -> Mapping[str, Mapping[str, Any]]:
        return self.workshop.models.declared

    def fetch(self, url: str, most_bytes: int | None, within_s: float | None, headers: Mapping[str, str]) -> Fetched:
        folder = self.workshop.done.folder / "scratch" / f"{self.stage}.{self.index}"
        return fetch_into(folder, url, self.workshop.terms.within(most_bytes, within_s), self.checkpoint, headers)


def events_of(run: Run, kind: str) -> Iterable[dict[str, Any]]:
    """The data of a run's events of one kind, in order."""
    return (data for found, data in run.events if found == kind)


_temporaries: list[tempfile.TemporaryDirectory[str]] = []  # held until the process ends


def _temporary() -> Path:
    _temporaries.append(tempfile.TemporaryDirectory(prefix="run-"))
    return Path(_temporaries[-1].name)


@lru_cache(maxsize=4)
def _models(models_dir: Path, device: Device) -> Models:
    """Shared by all runs of a process, as in a worker: loading takes longer than a short clip."""
    return Models(models_dir, device)


def _through_json(value: Any) -> Any:
    """What the next stage would get: JSON, without NaN."""
    return json.loads(json.dumps(value, allow_nan=False))
