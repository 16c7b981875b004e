"""Detections and tracks as text: JSON lines, CSV, COCO and MOT Challenge."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from celery_worker.pipelines.video.decode import Sampling
from celery_worker.pipelines.video.track import Sighting

COLUMNS = ("source", "frame", "time", "class", "score", "x1", "y1", "x2", "y2", "track")
# COCO's 17 points of a body, by their numbers among the 33 landmarks.
KEYPOINTS = {
    "nose": 0, "left_eye": 2, "right_eye": 5, "left_ear": 7, "right_ear": 8, "left_shoulder": 11,
    "right_shoulder": 12, "left_elbow": 13, "right_elbow": 14, "left_wrist": 15, "right_wrist": 16, "left_hip": 23,
    "right_hip": 24, "left_knee": 25, "right_knee": 26, "left_ankle": 27, "right_ankle": 28,
}  # fmt: skip
SEEN = 0.5  # a surer landmark is one that shows


@dataclass(frozen=True)
class Seen:
    """What was seen in one source. `persons` are those of each frame, where the task `pose` ran."""

    name: str
    size: tuple[int, int]
    moments: Sampling
    frames: Sequence[Sequence[Sighting]]
    persons: Sequence[Sequence[Mapping[str, Any]]] = ()
    is_still: bool = False

    @property
    def frame_count(self) -> int:
        """Of this source."""
        return len(self.frames)

    def rows(self) -> Iterator[dict[str, Any]]:
        """One detection after the other."""
        for n, sightings in enumerate(self.frames):
            for sighting in sightings:
                yield {
                    "frame": n,
                    "time": round(float(self.moments.at(n)), 4),
                    "class": sighting.label,
                    "score": sighting.score,
                    "box": sighting.box,
                    "track": sighting.track,
                }


def as_lines(seen: Sequence[Seen], several: bool) -> str:
    """One JSON object a line for each detection; with its source, where there are several."""
    return "".join(
        json.dumps({"source": one.name, **row} if several else row) + "\n" for one in seen for row in one.rows()
    )


def as_csv(seen: Sequence[Seen]) -> str:
    """A table for spreadsheets: one detection a row. A name that a spreadsheet would compute is quoted by a blank."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    for one in seen:
        name = f" {one.name}" if one.name[:1] in "=+-@\t\r" else one.name
        for row in one.rows():
            track = "" if row["track"] is None else row["track"]
            writer.writerow([name, row["frame"], row["time"], row["class"], row["score"], *row["box"], track])
    return out.getvalue()


def as_mot(seen: Seen) -> str:
    """The tracks as the MOT Challenge writes them: frames from 1, left, top, width, height."""
    rows = (row for row in seen.rows() if row["track"] is not None)
    return "".join(
        f"{row['frame'] + 1},{row['track']},{x1:.2f},{y1:.2f},{x2 - x1:.2f},{y2 - y1:.2f},{row['score']:.4f},-1,-1,-1\n"
        for row in rows
        for x1, y1, x2, y2 in [row["box"]]
    )


def as_coco(seen: Sequence[Seen]) -> dict[str, Any]:
    """An annotation file of COCO: an image for each frame, category ids of COCO, bodies as 17 keypoints."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    categories: dict[int, dict[str, Any]] = {}
    for one in seen:
        width, height = one.size
        for n, sightings in enumerate(one.frames):
            image = len(images) + 1
            file_name = one.name if len(one.frames) == 1 else f"{one.name}#frame={n}"
            images.append({"id": image, "file_name": file_name, "width": width, "height": height})
            bodies = {tuple(person["box"]): person for person in (one.persons[n] if one.persons else ())}
            for sighting in sightings:
                number = sighting.class_id + 1
                categories.setdefault(number, {"id": number, "name": sighting.label, "supercategory": "object"})
                annotation = _annotation(len(annotations) + 1, image, sighting)
                if body := bodies.get(tuple(sighting.box)):
                    annotation |= _keypoints(body)
                    categories[number] |= {"keypoints": list(KEYPOINTS), "skeleton": []}
                annotations.append(annotation)
    listed = [categories[number] for number in sorted(categories)]
    info = {"description": "Detections by EfficientDet-Lite0", "version": "1.0"}
    return {"info": info, "licenses": [], "images": images, "annotations": annotations, "categories": listed}


def _annotation(number: int, image: int, sighting: Sighting) -> dict[str, Any]:
    x1, y1, x2, y2 = sighting.box
    wide, high = round(x2 - x1, 2), round(y2 - y1, 2)
    return {
        "id": number,
        "image_id": image,
        "category_id": sighting.class_id + 1,
        "bbox": [x1, y1, wide, high],
        "area": round(wide * high, 2),
        "segmentation": [],
        "iscrowd": 0,
        "score": sighting.score,
        "track_id": sighting.track,
    }


def _keypoints(person: Mapping[str, Any]) -> dict[str, Any]:
    points = [person["landmarks"][n] for n in KEYPOINTS.values()]
    flat = [value for x, y, sure in points for value in (x, y, 2 if sure >= SEEN else 1)]
    return {"keypoints": flat, "num_keypoints": len(points)}
