"""The pictures of docs/pipelines/video.md, from real results on the sample clip: `python -m bench.video_pictures`."""

from __future__ import annotations

import tempfile
from pathlib import Path

import av
import cv2
import numpy as np

from bench.servers import ROOT
from celery_worker.testing import run

PIPELINE = ROOT / "celery_worker" / "pipelines" / "video"
STREET = ROOT / "samples" / "street.mp4"
DOCS = ROOT / "docs" / "pictures"
JPEG = [cv2.IMWRITE_JPEG_QUALITY, 80]
TILE = 440
# The task, where it is seen in the clip, and further params.
SHOWN: tuple[tuple[str, float, dict[str, object]], ...] = (
    ("track", 6.6, {}),
    ("pose", 4.6, {}),
    ("mask", 4.6, {"background": "blur"}),
    ("mask", 4.6, {"background": "remove"}),
    ("edges", 6.6, {}),
    ("lines", 9.0, {}),
    ("motion", 7.1, {"start": 5.6, "fps": 10}),
    ("spectrum", 6.6, {}),
)


def main() -> None:
    """Writes three small pictures."""
    with tempfile.TemporaryDirectory(prefix="video-pictures-") as folder:
        outputs = {"outputs": ["contact-sheet", "timeline", "detections"]}
        whole = run(PIPELINE, {"fps": 5, **outputs}, [STREET], folder=Path(folder) / "whole")
        sheet = cv2.imread(str(whole.artifacts["contact-sheet.jpg"]))
        _write("video-contact-sheet", cv2.resize(sheet, None, fx=0.55, fy=0.55, interpolation=cv2.INTER_AREA))
        _write("video-timeline", cv2.imread(str(whole.artifacts["timeline.png"])))
        tiles = [_tile(task, at, how, Path(folder) / str(n)) for n, (task, at, how) in enumerate(SHOWN)]
        _write("video-tasks", np.vstack([np.hstack(tiles[n : n + 2]) for n in range(0, len(tiles), 2)]))


def _tile(task: str, at: float, how: dict[str, object], folder: Path) -> np.ndarray:
    """The frame at that moment, with its task's name."""
    tasks = ["detect", "track"] if task == "track" else [task]
    params = {"fps": 5, "start": max(0.0, at - 2), "end": at + 0.1, "tasks": tasks, "outputs": ["annotated"], **how}
    done = run(PIPELINE, params, [STREET], folder=folder)
    with av.open(str(done.artifacts["annotated.mp4"])) as file:
        frame = list(file.decode(video=0))[-1].to_ndarray(format="bgr24")
    tile = cv2.resize(frame, (TILE, round(TILE * frame.shape[0] / frame.shape[1])), interpolation=cv2.INTER_AREA)
    name = f"{task} {how.get('background', '')}"
    cv2.putText(tile, name, (9, 21), cv2.FONT_HERSHEY_SIMPLEX, 0.6, (0, 0, 0), 4, cv2.LINE_AA)
    cv2.putText(tile, name, (9, 21), cv2.FONT_HERSHEY_SIMPLEX, 0.6, (255, 255, 255), 1, cv2.LINE_AA)
    return tile


def _write(name: str, picture: np.ndarray) -> None:
    path = DOCS / f"{name}.jpg"
    cv2.imwrite(str(path), picture, JPEG)
    print(f"{path.relative_to(ROOT)}: {picture.shape[1]} x {picture.shape[0]}, {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
