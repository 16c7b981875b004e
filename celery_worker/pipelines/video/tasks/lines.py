"""Straight lines, by a Hough transform over the edges, with their angle and length."""

from __future__ import annotations

from collections.abc import Sequence
from math import atan2, degrees, hypot
from typing import Any

import cv2
import numpy as np

from celery_worker.pipelines.video.draw import text_size
from celery_worker.pipelines.video.tasks import Scene
from celery_worker.pipelines.video.tasks.edges import canny

SHORTEST = 0.08  # of the picture's diagonal
GAP = 0.01
MOST = 100  # of one frame, the longest
INK = (0, 229, 255)
BINS = ("horizontal", "rising", "vertical", "falling")


class Look:
    """See `celery_worker.pipelines.video.tasks`."""

    def __init__(self, scene: Scene) -> None:
        self._diagonal = hypot(*scene.size)
        self._width = max(1, text_size(*scene.size) // 8)
        self._lines: list[list[float]] = []
        self._counts: list[int] = []
        self._lengths: list[list[float]] = []  # by direction

    def look(self, picture: np.ndarray, frame: int) -> dict[str, Any]:
        """Each line's ends and length in pixels, and its angle: 0 is horizontal, 90 vertical, 45 rises to the right."""
        shortest = SHORTEST * self._diagonal
        found = cv2.HoughLinesP(
            canny(picture), 1, np.pi / 180, round(shortest / 2), minLineLength=shortest, maxLineGap=GAP * self._diagonal
        )
        ends = [] if found is None else found.reshape(-1, 4).tolist()
        lines = sorted(([*each, _length(each), _angle(each)] for each in ends), key=lambda one: (-one[4], one))
        self._lines = lines[:MOST]
        self._counts.append(len(self._lines))
        self._lengths.append([0.0] * len(BINS))
        for *_, length, angle in self._lines:
            self._lengths[-1][round(angle / 45) % 4] += length
        return {
            "lines": [
                {"from": line[:2], "to": line[2:4], "length": round(line[4], 1), "angle": round(line[5], 1)}
                for line in self._lines
            ]
        }

    def draw(self, picture: np.ndarray) -> np.ndarray:
        """In cyan."""
        for x1, y1, x2, y2, *_ in self._lines:
            cv2.line(picture, (int(x1), int(y1)), (int(x2), int(y2)), INK, self._width, cv2.LINE_AA)
        return picture

    def found(self, shown: Sequence[int]) -> dict[str, Any]:
        """How many, and the share of their length in each direction."""
        lengths = np.array(shown) @ np.array(self._lengths)
        shares = lengths / (lengths.sum() or 1.0)
        return {
            "count": sum(count * ticks for count, ticks in zip(self._counts, shown, strict=True)),
            "directions": dict(zip(BINS, shares.round(3).tolist(), strict=True)),
        }


def _length(line: Sequence[float]) -> float:
    return hypot(line[2] - line[0], line[3] - line[1])


def _angle(line: Sequence[float]) -> float:
    """From 0 to below 180, counted against the clock, as one reads a picture."""
    return degrees(atan2(line[1] - line[3], line[2] - line[0])) % 180.0
