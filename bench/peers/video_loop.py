"""The loop that people write by hand: decode, resize, detect, track, draw, encode, in one process, in one pass.

It keeps the same artifacts as the pipeline `video`, and takes from it what costs time (suppression, drawing, the
encoder's settings), so that both sides do the same work. As a program it answers each line of JSON with another one:
{"clip": path, "out": folder} -> {"seconds": ..., "frames": ..., "detections": ..., "tracks": ...}.
"""

from __future__ import annotations

import json
import sys
import time
import zipfile
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import onnxruntime as ort
import supervision as sv
from trackers import ByteTrackTracker

from celery_worker.pipelines.video.detect import SIDE, detect, letterbox
from celery_worker.pipelines.video.draw import draw
from celery_worker.pipelines.video.export import JPEG, AnnotatedVideo
from celery_worker.pipelines.video.track import LOST_S, OVERLAP, SURE, Sighting

MIN_SCORE = 0.4
THUMBS = 12
THUMB = (400, 170)


@dataclass
class View:
    """The best view of a track so far."""

    worth: float
    label: str
    picture: np.ndarray


def open_model(models: Path, threads: int) -> tuple[ort.InferenceSession, list[str]]:
    """The detector with so many threads, and its labels."""
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    session = ort.InferenceSession(models / "efficientdet-lite0.onnx", options, providers=["CPUExecutionProvider"])
    session.run(None, {"images": np.zeros((1, SIDE, SIDE, 3), np.uint8)})
    return session, (models / "coco-labels.txt").read_text().splitlines()


def run(clip: Path, out: Path, session: ort.InferenceSession, labels: list[str], codec_threads: int) -> dict[str, Any]:
    """The whole loop over one clip at its own frame rate."""
    began = time.monotonic()
    container = av.open(str(clip))
    stream = container.streams.video[0]
    stream.codec_context.thread_count, stream.codec_context.thread_type = codec_threads, "AUTO"
    rate, size = Fraction(stream.average_rate), (stream.width, stream.height)
    video = AnnotatedVideo(out / "annotated.mp4", size, rate, Fraction(1), codec_threads)
    tracker = ByteTrackTracker(
        lost_track_buffer=round(30 * LOST_S),
        frame_rate=float(rate),
        track_activation_threshold=SURE,
        high_conf_det_threshold=SURE,
        minimum_iou_threshold=OVERLAP,
        minimum_consecutive_frames=2,
    )
    canvas, views, thumbs = np.zeros((1, SIDE, SIDE, 3), np.uint8), {}, []
    every = max(1, stream.frames // THUMBS)
    detections = frames = 0
    with (out / "detections.jsonl").open("w") as lines:
        for frames, frame in enumerate(container.decode(stream), 1):
            rgb = frame.to_ndarray(format="rgb24")
            letterbox(rgb, False, canvas[0])
            found = next(detect(session, canvas, batch=1, size=size, min_score=MIN_SCORE, classes=frozenset()))
            sightings = follow(tracker, found, labels, frames - 1)
            for sighting in sightings:
                lines.write(json.dumps(as_line(sighting, frames - 1, rate)) + "\n")
                look(views, sighting, rgb)
            detections += len(sightings)
            draw(rgb, sightings)
            if frames % every == 1 and len(thumbs) < THUMBS:
                thumbs.append(cv2.resize(rgb, THUMB, interpolation=cv2.INTER_AREA))
            video.add(rgb)
    video.finish()
    container.close()
    page = np.vstack([np.hstack(thumbs[n : n + 4]) for n in range(0, len(thumbs) // 4 * 4, 4)])
    (out / "contact-sheet.jpg").write_bytes(jpeg(page))
    with zipfile.ZipFile(out / "crops.zip", "w", zipfile.ZIP_STORED) as crops:
        for number, view in sorted(views.items()):
            crops.writestr(f"crops/track-{number:04}-{view.label}.jpg", jpeg(view.picture))
    return {
        "seconds": time.monotonic() - began,
        "frames": frames,
        "detections": detections,
        "tracks": len(views),
    }


def follow(tracker: ByteTrackTracker, found: list[tuple[Any, ...]], labels: list[str], frame: int) -> list[Sighting]:
    """One step of the tracker."""
    tracked = tracker.update(
        sv.Detections(
            xyxy=np.array([d[2:] for d in found], np.float64).reshape(-1, 4),
            confidence=np.array([d[1] for d in found], np.float64),
            data={"place": np.arange(len(found))},
        )
    )
    numbers = {int(place): int(n) for place, n in zip(tracked.data.get("place", ()), tracked.tracker_id, strict=True)}
    return [
        Sighting(frame, labels[d[0]], d[0], d[1], d[2:], n + 1 if (n := numbers.get(place, -1)) >= 0 else None)
        for place, d in enumerate(found)
    ]


def look(views: dict[int, View], sighting: Sighting, rgb: np.ndarray) -> None:
    """Keep a view that is better than the one before."""
    x1, y1, x2, y2 = (int(edge) for edge in sighting.box)
    worth = sighting.score * ((x2 - x1) * (y2 - y1)) ** 0.5
    if sighting.track is not None and (sighting.track not in views or worth > views[sighting.track].worth):
        views[sighting.track] = View(worth, sighting.label, rgb[y1 : y2 + 1, x1 : x2 + 1].copy())


def as_line(sighting: Sighting, frame: int, rate: Fraction) -> dict[str, Any]:
    """One line of detections.jsonl."""
    return {
        "frame": frame,
        "time": round(float(frame / rate), 4),
        "class": sighting.label,
        "score": sighting.score,
        "box": sighting.box,
        "track": sighting.track,
    }


def jpeg(rgb: np.ndarray) -> bytes:
    """A picture as a file."""
    return bytes(cv2.imencode(".jpg", cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR), JPEG)[1])


def main(models: str, model_threads: str, codec_threads: str) -> int:
    """Load and warm up once, then answer."""
    cv2.setNumThreads(int(codec_threads))
    session, labels = open_model(Path(models), int(model_threads))
    print("{}", flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        Path(asked["out"]).mkdir(parents=True, exist_ok=True)
        done = run(Path(asked["clip"]), Path(asked["out"]), session, labels, int(codec_threads))
        print(json.dumps(done), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
