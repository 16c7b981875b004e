"""Persons before a background that is blurred or taken away."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np

from celery_worker.pipelines.video.tasks import Scene

GREEN = (0, 177, 64)  # what editing programs take for no background
SMALL = 6  # the background is blurred in a picture so many times smaller


class Look:
    """See `celery_worker.pipelines.video.tasks`."""

    def __init__(self, scene: Scene) -> None:
        self._scene = scene
        self._removes = scene.params["background"] == "remove"
        self._mask: np.ndarray | None = None
        self._shares: list[float] = []

    def look(self, picture: np.ndarray, frame: int) -> dict[str, Any]:
        """The share of the picture that is a person."""
        self._mask = self._scene.mask(frame)
        self._shares.append(0.0 if self._mask is None else float(np.count_nonzero(self._mask > 127)) / self._mask.size)
        return {"share": round(self._shares[-1], 4)}

    def draw(self, picture: np.ndarray) -> np.ndarray:
        """Another picture: the persons of this one."""
        height, width = picture.shape[:2]
        if self._removes:
            ground = np.full_like(picture, GREEN)
        else:
            size = (max(1, width // SMALL), max(1, height // SMALL))
            blurred = cv2.GaussianBlur(cv2.resize(picture, size, interpolation=cv2.INTER_AREA), (0, 0), 3)
            ground = cv2.resize(blurred, (width, height), interpolation=cv2.INTER_LINEAR)
        if self._mask is None or not self._mask.any():
            return ground
        mask = cv2.resize(self._mask, (width, height), interpolation=cv2.INTER_LINEAR)
        weight = cv2.merge([mask, mask, mask]).astype(np.float32) / 255
        return (picture * weight + ground * (1 - weight)).astype(np.uint8)

    def found(self, shown: Sequence[int]) -> dict[str, Any]:
        """The mean share."""
        return {"mean_share": round(float(np.average(self._shares, weights=shown)), 4)}
