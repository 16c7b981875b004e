"""From a source to segments for inference, at a constant rate and the model's size."""

from __future__ import annotations

from dataclasses import dataclass
from time import perf_counter
from typing import Any

import numpy as np

from celery_worker.pipelines.video.cuts import Cuts
from celery_worker.pipelines.video.decode import Clip, Sampling, picture
from celery_worker.pipelines.video.detect import SIDE, letterbox, scale_of
from celery_worker.pipelines.video.render import TELL_EVERY, Job, open_source
from celery_worker.pipelines.video.segments import FRAMES, Segment, most_frames, picture_size
from celery_worker.pipelines.video.smaller import fitted
from celery_worker.pipelines.video.sources import Source
from celery_worker.pipelines.video.still import Still
from celery_worker.pipelines.video.tasks import WITH_DETECTIONS, WITH_PERSONS
from celery_worker.workbench import Workbench
from jobs.errors import BadInput
from jobs.model import MAX_PARTS

MAX_FRAMES = 500_000  # of one job: 27 hours at 5 fps, 5.5 hours at 25


class Clock:
    """Seconds that a stage worked, without those it waited."""

    def __init__(self, before_s: float = 0.0) -> None:
        self.began = perf_counter() - before_s

    def skip(self, waited: float) -> None:
        """Leave out some seconds."""
        self.began += waited

    def seconds(self) -> float:
        """So far."""
        return round(perf_counter() - self.began, 3)


@dataclass
class Counter:
    """Frames and parts of the whole job, so far."""

    frames: int = 0
    parts: int = 0


def split(bench: Workbench, job: Job, source: Source, counter: Counter, clock: Clock) -> dict[str, Any]:
    """One source: what it is, once all its segments are emitted."""
    cuts, moments = Cuts(), job.moments
    looks_closer, infers = bool(job.tasks & WITH_PERSONS), bool(job.tasks & WITH_DETECTIONS)
    with open_source(bench, source, bench.checkpoint) as clip:
        length = _expected_s(clip, moments)
        per_segment, left = (
            _per_segment(bench, moments),
            Counter(MAX_FRAMES - counter.frames, MAX_PARTS - counter.parts),
        )
        _refuse_too_long(length, moments, per_segment, left)
        canvas = np.zeros((SIDE, SIDE, 3), np.uint8)
        segment, size, aspect, count, parts = None, (0, 0), None, 0, 0
        for tick in clip.ticks(moments):
            if tick.fresh:
                rgb = picture(tick.frame)
                if not count:
                    size, aspect = (rgb.shape[1], rgb.shape[0]), clip.aspect(tick.frame)
                    per_segment = min(per_segment, most_frames(size, looks_closer))
                    used = tuple(max(1, round(edge * scale_of(*size))) for edge in size)
                rgb = fitted(rgb, size)
                letterbox(rgb, bench.params["color"] == "grey", canvas)
                cuts.see(canvas[: used[1], : used[0]], tick.index)
            if infers:
                if segment is None:
                    larger = picture_size(size) if looks_closer else None
                    segment = Segment(bench.scratch, source.number, tick.index, larger)
                segment.add(canvas, rgb, fresh=tick.fresh)
            count = tick.index + 1
            if count > left.frames or count > left.parts * per_segment:
                _refuse_too_long(count / moments.rate, moments, per_segment, left)
            if segment is not None and len(segment) == per_segment:
                _emit(bench, segment, counter.parts + parts, size, clock)
                segment, parts = None, parts + 1
            if count % TELL_EVERY == 0:
                bench.progress(float(count / moments.rate), length or 0)
        if segment is not None:
            _emit(bench, segment, counter.parts + parts, size, clock)
            parts += 1
        counter.frames, counter.parts = counter.frames + count, counter.parts + parts
        return {
            "name": source.name,
            "frames": count,
            "size": size,
            "aspect": aspect,
            "fps": None if source.is_still else round(float(moments.rate), 4),
            "duration": 0.0 if source.is_still else round(float(count / moments.rate), 3),
            "codec": clip.codec,
            "cuts": cuts.at,
        }


def _emit(bench: Workbench, segment: Segment, index: int, size: tuple[int, int], clock: Clock) -> None:
    segment.close()
    began = perf_counter()
    bench.emit(index, segment.payload(size), files=segment.files)
    clock.skip(perf_counter() - began)  # storing it, and waiting while inference is far behind


def _per_segment(bench: Workbench, moments: Sampling) -> int:
    wanted: int = round(bench.params["segment_seconds"] * moments.rate)
    return max(1, min(FRAMES, wanted))


def _expected_s(clip: Clip | Still, moments: Sampling) -> float | None:
    """How much of the clip will be looked at, as far as its header can be believed."""
    ends = [end for end in (clip.declared_s, moments.end and float(moments.end)) if end is not None]
    return min(ends) - float(moments.start) if ends and not isinstance(clip, Still) else None


def _refuse_too_long(length: Any, moments: Sampling, per_segment: int, left: Counter) -> None:
    """A job may not have endless parts: say which param helps."""
    frames = float(length or 0) * float(moments.rate)
    if frames > left.frames:
        raise BadInput(
            f"At this rate the video gives more than {MAX_FRAMES:,} frames: lower fps, raise every, or set an end."
        )
    if frames > left.parts * per_segment:
        raise BadInput(f"The video gives more than {MAX_PARTS:,} segments: raise segment_seconds, or set an end.")
