"""What moves before a camera that stands still, by subtracting the background that it learns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np

from celery_worker.pipelines.video.draw import text_size
from celery_worker.pipelines.video.tasks import Scene

SIDE = 480  # the longer side of what is looked at
MEMORY_S = 10  # how long a thing must stand still to become background
SMALLEST = 0.0008  # of the picture; smaller areas are leaves and noise
WHOLE = 0.6  # more than this has moved: the camera did, or the scene was cut
INK = (255, 64, 129)


class Look:
    """See `celery_worker.pipelines.video.tasks`."""

    def __init__(self, scene: Scene) -> None:
        width, height = scene.size
        self._scale = min(1.0, SIDE / max(width, height))
        self._small = (max(1, round(width * self._scale)), max(1, round(height * self._scale)))
        self._line = max(1, text_size(width, height) // 7)
        frames = max(10, round(float(scene.rate) * MEMORY_S))
        self._learning = 1 / frames
        self._background = cv2.createBackgroundSubtractorMOG2(frames, varThreshold=25, detectShadows=True)
        self._first = True
        self._boxes: list[list[int]] = []
        self._shares: list[float] = []

    def look(self, picture: np.ndarray, frame: int) -> dict[str, Any]:
        """The share of the picture that moves, and the areas that do, in pixels of the source."""
        small = cv2.resize(picture, self._small, interpolation=cv2.INTER_AREA)
        raw = self._background.apply(small, learningRate=1.0 if self._first else self._learning)
        moving = (raw == 255).astype(np.uint8) if not self._first else np.zeros(raw.shape, np.uint8)  # 127 is shadow
        moving = cv2.morphologyEx(moving, cv2.MORPH_OPEN, np.ones((3, 3), np.uint8))
        moving = cv2.morphologyEx(moving, cv2.MORPH_CLOSE, np.ones((9, 9), np.uint8))
        share = float(moving.mean())
        self._first = share > WHOLE  # another scene, or another view: its background is learned anew
        self._boxes = [] if share > WHOLE else self._areas(moving)
        self._shares.append(share)
        return {"share": round(share, 4), "camera": share > WHOLE, "boxes": self._boxes}

    def draw(self, picture: np.ndarray) -> np.ndarray:
        """Frames in pink."""
        for x1, y1, x2, y2 in self._boxes:
            cv2.rectangle(picture, (x1, y1), (x2, y2), INK, self._line)
        return picture

    def found(self, shown: Sequence[int]) -> dict[str, Any]:
        """The mean share, and how many frames have a thing that moves."""
        moving = sum(ticks for share, ticks in zip(self._shares, shown, strict=True) if 0.0 < share <= WHOLE)
        return {"mean_share": round(float(np.average(self._shares, weights=shown)), 4), "moving_frames": moving}

    def _areas(self, moving: np.ndarray) -> list[list[int]]:
        count, _, stats, _ = cv2.connectedComponentsWithStats(moving)
        least = SMALLEST * moving.size
        boxes = [stats[n, :4] / self._scale for n in range(1, count) if stats[n, cv2.CC_STAT_AREA] >= least]
        return [[round(x), round(y), round(x + width), round(y + height)] for x, y, width, height in boxes]
