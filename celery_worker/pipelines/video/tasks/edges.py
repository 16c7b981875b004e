"""Edges, by Canny, with thresholds that follow the picture's own contrast."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np

from celery_worker.pipelines.video.tasks import Scene

INK = (255, 214, 10)


def canny(picture: np.ndarray) -> np.ndarray:
    """A mask of the edges. Otsu's threshold of the gradient, as the upper one, finds them in dim pictures too."""
    grey = cv2.GaussianBlur(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY), (5, 5), 0)
    upper, _ = cv2.threshold(grey, 0, 255, cv2.THRESH_BINARY | cv2.THRESH_OTSU)
    upper = max(40.0, upper)
    return cv2.Canny(grey, upper / 2, upper)


class Look:
    """See `celery_worker.pipelines.video.tasks`."""

    def __init__(self, scene: Scene) -> None:
        self._edges = np.zeros(scene.size[::-1], np.uint8)
        self._shares: list[float] = []

    def look(self, picture: np.ndarray, frame: int) -> dict[str, Any]:
        """The share of the picture's pixels that lie on an edge."""
        self._edges = canny(picture)
        self._shares.append(float(np.count_nonzero(self._edges)) / self._edges.size)
        return {"share": round(self._shares[-1], 4)}

    def draw(self, picture: np.ndarray) -> np.ndarray:
        """In yellow."""
        picture[self._edges > 0] = INK
        return picture

    def found(self, shown: Sequence[int]) -> dict[str, Any]:
        """The mean share."""
        return {"mean_share": round(float(np.average(self._shares, weights=shown)), 4)}
