"""From the detections of one source to its files and its result."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from celery_worker import devices
from celery_worker.pipelines.video.annotations import Seen
from celery_worker.pipelines.video.decode import Clip
from celery_worker.pipelines.video.render import CODEC_THREADS, Job, Rendered, render
from celery_worker.pipelines.video.smaller import smaller
from celery_worker.pipelines.video.sources import Source
from celery_worker.pipelines.video.summary import time_line
from celery_worker.pipelines.video.tasks import Scene
from celery_worker.pipelines.video.track import by_track, label_of, track, untracked
from celery_worker.workbench import Workbench

SEEN_IN_PASS = frozenset({"annotated", "side-by-side", "summary", "contact-sheet", "crops"})


def finish(
    bench: Workbench,
    job: Job,
    source: Source,
    decoded: Mapping[str, Any],
    parts: list[dict[str, Any]],
    lines: Mapping[str, Any],
    prefix: str,
    progress: Callable[[int], None],
) -> tuple[Seen, Rendered]:
    """One source, from its detections to its files. `progress` is told how many of its frames are done."""
    size = tuple(decoded["size"])
    labels = {int(n): label for part in parts for n, label in part["labels"].items()}
    detections = [[tuple(d) for d in frame] for part in parts for frame in part["frames"]]
    detections = detections or [[] for _ in range(decoded["frames"])]
    rate = float(job.moments.rate)
    if "track" in job.tasks:
        frames = track(detections, labels, rate, bench.params["min_score"], bench.checkpoint, decoded["cuts"])
    else:
        frames = untracked(detections, labels)
    bodies = [bodies for part in parts for bodies in part.get("persons", ())]
    scene = Scene(size, job.moments.rate, bench.params, bodies, Masks(bench, parts).of)
    if job.outputs & SEEN_IN_PASS or lines:
        made = render(bench, job, source, frames, scene, decoded["aspect"], lines, prefix, progress)
    else:
        made = Rendered()
    if "timeline" in job.outputs and not source.is_still:
        made.files[f"{prefix}timeline.png"] = time_line(frames, rate, float(job.moments.start))
    if "smaller" in job.outputs and not source.is_still:
        copy = bench.scratch / f"smaller-{source.number}.mp4"
        made.result["smaller"] = smaller(source.path, copy, job.moments, _opener(bench), _threads())
        made.files[f"{prefix}smaller.mp4"] = copy
    return Seen(source.name, size, job.moments, frames, bodies, source.is_still), made


def _opener(bench: Workbench) -> Callable[[Path], Clip]:
    return lambda path: Clip(path, bench.limits.max_pixels, bench.checkpoint, _threads())


def _threads() -> int:
    return min(CODEC_THREADS, devices.cores())


class Masks:
    """The masks of a source's frames, loaded a segment at a time."""

    def __init__(self, bench: Workbench, parts: Sequence[Mapping[str, Any]]) -> None:
        self._bench = bench
        self._where = [(part, n) for part in parts if "masks" in part for n in part["shown"]]
        self._loaded: tuple[str, np.ndarray] | None = None

    def of(self, frame: int) -> np.ndarray | None:
        """What of the frame is a person, 0 to 255; None where nobody looked."""
        if frame >= len(self._where):
            return None
        part, n = self._where[frame]
        if self._loaded is None or self._loaded[0] != part["masks"]:
            self._loaded = part["masks"], np.load(self._bench.open(part["masks"]))["masks"]
        mask: np.ndarray = self._loaded[1][n]
        return mask


def result_of(job: Job, seen: Seen, decoded: Mapping[str, Any]) -> dict[str, Any]:
    said = {name: decoded[name] for name in ("frames", "duration", "fps", "size") if decoded[name] is not None}
    if not job.tasks & {"detect", "track"}:
        return said
    tracks = by_track(seen.frames)
    return {
        **said,
        "counts": count_of(s.label for sightings in seen.frames for s in sightings),
        "tracks": count_of(label_of(sightings) for sightings in tracks.values()),
    }


def count_of(labels: Iterable[str]) -> dict[str, int]:
    """How often each, the most frequent first."""
    counts: dict[str, int] = {}
    for label in labels:
        counts[label] = counts.get(label, 0) + 1
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))
