"""The 33 landmarks of each person's body, drawn as a skeleton."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np

from celery_worker.pipelines.video.draw import text_size
from celery_worker.pipelines.video.tasks import Scene

NAMES = (
    "nose", "left_eye_inner", "left_eye", "left_eye_outer", "right_eye_inner", "right_eye", "right_eye_outer",
    "left_ear", "right_ear", "mouth_left", "mouth_right", "left_shoulder", "right_shoulder", "left_elbow",
    "right_elbow", "left_wrist", "right_wrist", "left_pinky", "right_pinky", "left_index", "right_index",
    "left_thumb", "right_thumb", "left_hip", "right_hip", "left_knee", "right_knee", "left_ankle", "right_ankle",
    "left_heel", "right_heel", "left_foot_index", "right_foot_index",
)  # fmt: skip
BONES = (
    (0, 2), (2, 7), (0, 5), (5, 8), (9, 10), (11, 12), (11, 13), (13, 15), (15, 17), (15, 19), (17, 19), (15, 21),
    (12, 14), (14, 16), (16, 18), (16, 20), (18, 20), (16, 22), (11, 23), (12, 24), (23, 24), (23, 25), (25, 27),
    (27, 29), (29, 31), (27, 31), (24, 26), (26, 28), (28, 30), (30, 32), (28, 32),
)  # fmt: skip
SEEN = 0.5  # a landmark that is less sure is hidden or guessed: it is in the file, and not drawn
LEFT, RIGHT, MIDDLE = (255, 138, 0), (0, 217, 231), (245, 245, 245)


class Look:
    """See `celery_worker.pipelines.video.tasks`."""

    def __init__(self, scene: Scene) -> None:
        self._scene = scene
        self._width = max(1, text_size(*scene.size) // 8)
        self._persons: Sequence[Mapping[str, Any]] = ()
        self._counts: list[int] = []

    def look(self, picture: np.ndarray, frame: int) -> dict[str, Any]:
        """Each person's box, score and landmarks: x, y, and how sure it is to be seen."""
        self._persons = self._scene.persons[frame]
        self._counts.append(len(self._persons))
        return {"persons": list(self._persons)}

    def draw(self, picture: np.ndarray) -> np.ndarray:
        """The left side in orange, the right one in cyan."""
        for person in self._persons:
            points = person["landmarks"]
            for a, b in BONES:
                if min(points[a][2], points[b][2]) >= SEEN:
                    cv2.line(picture, _at(points[a]), _at(points[b]), _colour(a, b), self._width, cv2.LINE_AA)
            for n, point in enumerate(points):
                if point[2] >= SEEN:
                    cv2.circle(picture, _at(point), self._width + 1, _colour(n, n), cv2.FILLED, cv2.LINE_AA)
        return picture

    def found(self, shown: Sequence[int]) -> dict[str, Any]:
        """How often a body was seen, and how many at most at a time."""
        return {
            "bodies": sum(count * ticks for count, ticks in zip(self._counts, shown, strict=True)),
            "most_at_once": max(self._counts, default=0),
        }


def _at(point: Sequence[float]) -> tuple[int, int]:
    """OpenCV takes no number beyond a short's range."""
    return int(np.clip(point[0], -32_000, 32_000)), int(np.clip(point[1], -32_000, 32_000))


def _colour(a: int, b: int) -> tuple[int, int, int]:
    sides = {NAMES[n].partition("_")[0] if "left" in NAMES[n] or "right" in NAMES[n] else "" for n in (a, b)}
    if sides == {"left"}:
        return LEFT
    return RIGHT if sides == {"right"} else MIDDLE
