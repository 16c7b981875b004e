"""Reads a source a second time, in the same way, and makes what there is to look at."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from celery_worker import devices
from celery_worker.pipelines.video.ahead import ahead
from celery_worker.pipelines.video.decode import Clip, Sampling, Tick, picture
from celery_worker.pipelines.video.draw import draw
from celery_worker.pipelines.video.export import AnnotatedVideo, ContactSheet, Crops, jpeg_of
from celery_worker.pipelines.video.smaller import fitted
from celery_worker.pipelines.video.sources import Source
from celery_worker.pipelines.video.still import Still
from celery_worker.pipelines.video.summary import matters
from celery_worker.pipelines.video.tasks import ORDER, Look, Scene, look_of
from celery_worker.pipelines.video.track import Sighting
from celery_worker.workbench import Dismissed, Workbench

TELL_EVERY = 8  # frames between two signs of progress
CODEC_THREADS = 4  # more do not help at these sizes, and cost memory
WIDEST = 3_840  # of a side-by-side video: two of 1080p


@dataclass(frozen=True)
class Job:
    """What the client asked for, of every source."""

    tasks: frozenset[str]
    outputs: frozenset[str]
    moments: Sampling


@dataclass
class Rendered:
    """What was made of one source: its files by name, and what its tasks and outputs say in the result."""

    files: dict[str, Path | bytes] = field(default_factory=dict)
    annotated: bytes | None = None  # a still's picture
    crops: Mapping[str, bytes] = field(default_factory=dict)
    result: dict[str, Any] = field(default_factory=dict)


class Films:
    """The videos that one pass writes: annotated, side by side, and the seconds that matter."""

    def __init__(
        self, job: Job, folder: Path, frames: Sequence[Sequence[Sighting]], size: tuple[int, int], aspect: str
    ):
        self._size = size
        self._threads = min(CODEC_THREADS, devices.cores())
        self._rate, self._aspect = job.moments.rate, Fraction(aspect)
        self._folder, self.open = folder, dict[str, AnnotatedVideo]()
        if "annotated" in job.outputs:
            self._add("annotated.mp4", size)
        self._step = 2 if 2 * size[0] > WIDEST else 1
        if "side-by-side" in job.outputs:
            self._add("side-by-side.mp4", (2 * len(range(0, size[0], self._step)), len(range(0, size[1], self._step))))
        self.pieces = matters(frames, float(self._rate)) if "summary" in job.outputs else []
        if "summary" in job.outputs:
            self._add("summary.mp4", size)

    def add(self, n: int, rgb: np.ndarray, drawn: np.ndarray) -> None:
        """The next frame, as it was and as it is now."""
        if film := self.open.get("annotated.mp4"):
            film.add(drawn)
        if film := self.open.get("side-by-side.mp4"):
            film.add(np.hstack([one[:: self._step, :: self._step] for one in (rgb, drawn)]))
        if (film := self.open.get("summary.mp4")) and any(first <= n < end for first, end in self.pieces):
            film.add(drawn)

    def finish(self) -> dict[str, Path]:
        """Where they are, once whole."""
        for film in self.open.values():
            film.finish()
        return {name: self._folder / name for name in self.open}

    def close(self) -> None:
        """Let go of the files, finished or not."""
        for film in self.open.values():
            film.close()

    def _add(self, name: str, size: tuple[int, int]) -> None:
        self.open[name] = AnnotatedVideo(self._folder / name, size, self._rate, self._aspect, self._threads)


class Looks:
    """The tasks that look at every frame, in the order in which they draw over each other."""

    def __init__(self, job: Job, scene: Scene, lines: Mapping[str, TextIO], source: str | None) -> None:
        self._made: dict[str, Look] = {task: look_of(task, scene) for task in ORDER if task in job.tasks}
        self._boxes = bool(job.tasks & {"detect", "track"})
        self._lines, self._source, self._moments = lines, source, job.moments
        self._seen: dict[str, dict[str, Any]] = {}
        self._shown: list[int] = []

    def draw(self, tick: Tick, rgb: np.ndarray, sightings: Sequence[Sighting]) -> np.ndarray:
        """A copy of the frame with everything in it."""
        drawn = rgb.copy()  # the same picture may be held for the next tick
        if tick.fresh:
            self._shown.append(0)
        self._shown[-1] += 1
        for task in ORDER:
            if task == "boxes" and self._boxes:
                draw(drawn, sightings)
            if look := self._made.get(task):
                if tick.fresh:
                    self._seen[task] = look.look(rgb, tick.index)
                drawn = look.draw(drawn)
                said: dict[str, Any] = {"source": self._source} if self._source is not None else {}
                said |= {"frame": tick.index, "time": round(float(tick.at), 4), **self._seen[task]}
                self._lines[task].write(json.dumps(said) + "\n")
        return drawn

    def found(self) -> dict[str, Any]:
        """What the result says of each task."""
        return {task: look.found(self._shown) for task, look in self._made.items()}


def open_source(bench: Workbench, source: Source, checkpoint: Any) -> Clip | Still:
    """A picture or a video, by what the file is."""
    if source.is_still:
        return Still(source.path, bench.limits.max_pixels)
    return Clip(source.path, bench.limits.max_pixels, checkpoint, min(CODEC_THREADS, devices.cores()))


def render(
    bench: Workbench,
    job: Job,
    source: Source,
    frames: list[list[Sighting]],
    scene: Scene,
    aspect: str,
    lines: Mapping[str, TextIO],
    prefix: str,
    progress: Callable[[int], None],
) -> Rendered:
    """One pass over one source. `prefix` stands before the names of its files, where there are several sources."""
    made = Rendered()
    folder = bench.scratch / f"made-{source.number}"
    folder.mkdir(exist_ok=True)
    sheet = ContactSheet(frames, scene.size) if "contact-sheet" in job.outputs and not source.is_still else None
    crops = Crops(frames if "crops" in job.outputs else [], scene.size, prefix)
    looks = Looks(job, scene, lines, source.name if prefix else None)
    with ExitStack() as ending:  # in reverse: stop decoding, end the threads, then close what they worked on
        halt = threading.Event()
        clip: Clip | Still = open_source(bench, source, lambda: _go_on_unless(halt))
        ending.enter_context(clip)
        films = Films(job, folder, frames, scene.size, aspect) if not source.is_still else None
        if films:
            ending.callback(films.close)
        # Three threads: decode, draw, encode. FFmpeg and OpenCV let go of the interpreter while they work.
        drawn = ahead(
            _drawn(ahead(_pictures(clip, job.moments, scene.size)), frames, sheet, crops, looks),
            lambda: _checkpoint(bench, halt),
        )
        ending.enter_context(closing(drawn))
        ending.callback(halt.set)
        for n, (rgb, annotated) in enumerate(drawn):
            if films:
                films.add(n, rgb, annotated)
            elif "annotated" in job.outputs:
                made.annotated = jpeg_of(annotated)
            if n % TELL_EVERY == 0:
                progress(n + 1)
        if films:
            made.files |= {prefix + name: path for name, path in films.finish().items()}
    if sheet:
        made.files[f"{prefix}contact-sheet.jpg"] = sheet.jpeg()
    made.crops = crops.jpegs
    made.result = looks.found()
    if films and films.pieces:
        at = job.moments.at
        made.result["summary"] = [[round(float(at(first)), 3), round(float(at(end)), 3)] for first, end in films.pieces]
    return made


def _pictures(clip: Clip | Still, moments: Sampling, size: tuple[int, int]) -> Iterator[tuple[Tick, np.ndarray]]:
    rgb = np.empty(0)
    for tick in clip.ticks(moments):
        if tick.fresh:
            rgb = fitted(picture(tick.frame), size)
        yield tick, rgb


def _checkpoint(bench: Workbench, halt: threading.Event) -> None:
    """The bench's checkpoint, in the middle of a wait for threads: they must stop before anyone waits for their end."""
    try:
        bench.checkpoint()
    except BaseException:
        halt.set()
        raise


def _go_on_unless(halt: threading.Event) -> None:
    """The checkpoint of a thread: only the main one may ask the bench."""
    if halt.is_set():
        raise Dismissed


def _drawn(
    pictures: Generator[tuple[Tick, np.ndarray], None, None],
    frames: list[list[Sighting]],
    sheet: ContactSheet | None,
    crops: Crops,
    looks: Looks,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    with closing(pictures):
        for tick, rgb in pictures:
            sightings = frames[tick.index]
            crops.add(rgb, tick.index)
            if sheet and tick.index in sheet.wanted:
                sheet.add(rgb, sightings, float(tick.at))
            yield rgb, looks.draw(tick, rgb, sightings)
