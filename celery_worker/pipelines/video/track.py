"""From detections to tracks: ByteTrack over each shot of a clip, one tracker for each kind of thing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from celery_worker.pipelines.video.detect import Detection

# What the detector takes for each other. A track may change between these, but a rider never becomes the bicycle.
ALIKE = (
    {"car", "truck", "bus", "train"},
    {"bicycle", "motorcycle"},
    {"cat", "dog", "horse", "sheep", "cow", "bear", "elephant", "zebra", "giraffe"},
    {"chair", "couch", "bed"},
    {"tv", "laptop"},
)
LOST_S = 1.0  # an object unseen for longer gets a new track
SURE = 0.5  # a box with a lower score may continue a track, but not begin one; min_score lowers or raises it
OVERLAP = 0.15  # IoU with where the track should be now

Place = tuple[int, int]  # a frame, and a place among its detections
Known = tuple[int, int, int]  # a kind of thing, the shot's first frame, and that tracker's id
NOBODY = (-1, -1, -1)


@dataclass(frozen=True)
class Sighting:
    """One detection of one frame. `track` counts from 1 in order of first sighting; None for a passing one."""

    frame: int
    label: str
    class_id: int
    score: float
    box: tuple[float, float, float, float]
    track: int | None


def track(
    frames: Sequence[Sequence[Detection]],
    labels: Sequence[str] | dict[int, str],
    rate: float,
    min_score: float,
    checkpoint: Callable[[], None],
    cuts: Sequence[int] = (),
) -> list[list[Sighting]]:
    """The sightings of each frame, in the order of its detections. No track goes on over a cut."""
    names = {found[0]: labels[found[0]] for detections in frames for found in detections}
    kinds = sorted({_kind(name) for name in names.values()})
    numbers: dict[Place, Known] = {}
    for number, kind in enumerate(kinds):
        mine = {class_id for class_id, name in names.items() if _kind(name) == kind}
        numbers.update(_follow(number, mine, frames, rate, min_score, checkpoint, frozenset(cuts)))
    renumbered: dict[Known, int] = {}
    for key in sorted(numbers):
        renumbered.setdefault(numbers[key], len(renumbered) + 1)
    return [
        [
            Sighting(n, names[d[0]], d[0], d[1], d[2:], renumbered.get(numbers.get((n, place), NOBODY)))
            for place, d in enumerate(detections)
        ]
        for n, detections in enumerate(frames)
    ]


def untracked(frames: Sequence[Sequence[Detection]], labels: dict[int, str]) -> list[list[Sighting]]:
    """The sightings of each frame, when nobody asks which are of one object."""
    return [[Sighting(n, labels[d[0]], d[0], d[1], d[2:], None) for d in frame] for n, frame in enumerate(frames)]


def label_of(sightings: Sequence[Sighting]) -> str:
    """What a track shows: the class with the highest sum of scores."""
    sums: dict[str, float] = {}
    for sighting in sightings:
        sums[sighting.label] = sums.get(sighting.label, 0.0) + sighting.score
    return max(sorted(sums), key=sums.__getitem__)


def by_track(frames: Sequence[Sequence[Sighting]]) -> dict[int, list[Sighting]]:
    """The sightings of each track, in order."""
    found: dict[int, list[Sighting]] = {}
    for sightings in frames:
        for sighting in sightings:
            if sighting.track is not None:
                found.setdefault(sighting.track, []).append(sighting)
    return dict(sorted(found.items()))


def _kind(label: str) -> str:
    return next((min(group) for group in ALIKE if label in group), label)


def _follow(
    kind: int,
    mine: set[int],
    frames: Sequence[Sequence[Detection]],
    rate: float,
    min_score: float,
    checkpoint: Callable[[], None],
    cuts: frozenset[int],
) -> dict[Place, Known]:
    """Which track the detections of one kind belong to."""
    import supervision as sv

    sure = max(SURE, min_score)
    tracker, shot = _tracker(rate, sure), 0
    given: dict[Place, Known] = {}
    born: list[tuple[Any, Place]] = []  # tracks of the frame before, not yet numbered
    for n, detections in enumerate(frames):
        if n % 64 == 0:
            checkpoint()
        if n in cuts:
            tracker, shot, born = _tracker(rate, sure), n, []
        places = [place for place, found in enumerate(detections) if found[0] in mine]
        if not places and not tracker.tracks:
            continue
        before = list(tracker.tracks)
        boxes = np.array([detections[place][2:] for place in places], np.float64).reshape(-1, 4)
        scores = np.array([detections[place][1] for place in places], np.float64)
        tracked: Any = tracker.update(
            sv.Detections(xyxy=boxes, confidence=scores, data={"place": np.array(places, int)})
        )
        unnumbered = []
        for place, number in zip(tracked.data.get("place", ()), tracked.tracker_id, strict=True):
            if number >= 0:
                given[n, int(place)] = (kind, shot, int(number))
            else:
                unnumbered.append(int(place))
        # A track gets its number when it is seen a second time; its first sighting is numbered afterwards.
        for tracklet, key in born:
            if tracklet.tracker_id >= 0:
                given[key] = (kind, shot, int(tracklet.tracker_id))
        new = [tracklet for tracklet in tracker.tracks if not any(tracklet is old for old in before)]
        starters = [place for place in unnumbered if detections[place][1] >= sure]
        born = [(tracklet, (n, place)) for tracklet, place in zip(new, starters, strict=True)]
    return given


def _tracker(rate: float, sure: float) -> Any:
    from trackers import ByteTrackTracker

    return ByteTrackTracker(
        lost_track_buffer=round(30 * max(LOST_S, 2 / rate)),  # in frames of a 30 fps clip, so in 1/30 s
        frame_rate=rate,
        track_activation_threshold=sure,
        high_conf_det_threshold=sure,
        minimum_iou_threshold=OVERLAP,
        minimum_consecutive_frames=2,
    )


def warm_up() -> None:
    """Import now what takes two seconds, and what only the last stage needs."""
    import supervision  # noqa: F401
    import trackers  # noqa: F401
