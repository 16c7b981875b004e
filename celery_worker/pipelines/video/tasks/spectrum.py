"""The Fourier spectrum of each frame, and from it how sharp the frame is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np

from celery_worker.pipelines.video.tasks import Scene

SIDE = 256  # every frame is looked at in this size, so that scores of different videos compare
LOW = 0.3  # of the highest frequency: what lies below is shape and light, what lies above is detail
BLURRED = 0.2  # a score below this. Frames of samples/street.mp4 have 0.26 to 0.51, blurred by 3 pixels 0.09 to 0.14
INSET = 0.28  # of the picture's shorter side


class Look:
    """See `celery_worker.pipelines.video.tasks`."""

    def __init__(self, scene: Scene) -> None:
        self._scores: list[float] = []
        self._magnitude = np.zeros((SIDE, SIDE), np.float32)
        rows, columns = np.ogrid[-SIDE // 2 : SIDE // 2, -SIDE // 2 : SIDE // 2]
        self._detail = np.hypot(rows, columns) > LOW * SIDE / 2
        self._window = np.outer(np.hanning(SIDE), np.hanning(SIDE)).astype(np.float32)

    def look(self, picture: np.ndarray, frame: int) -> dict[str, Any]:
        """`sharpness` is the share of the amplitude that lies in detail, 0 to 1; `blurred`: that is little."""
        grey = cv2.cvtColor(cv2.resize(picture, (SIDE, SIDE), interpolation=cv2.INTER_AREA), cv2.COLOR_RGB2GRAY)
        light = grey.astype(np.float32)
        amplitude = np.abs(np.fft.fftshift(np.fft.fft2((light - light.mean()) * self._window)))
        self._magnitude = np.log1p(amplitude).astype(np.float32)
        score = float(amplitude[self._detail].sum() / (amplitude.sum() or 1.0))
        self._scores.append(score)
        return {"sharpness": round(score, 4), "blurred": score < BLURRED}

    def draw(self, picture: np.ndarray) -> np.ndarray:
        """As an inset at the lower left: low frequencies in the middle."""
        side = max(16, round(INSET * min(picture.shape[:2])))
        scaled = (self._magnitude * (255 / max(float(self._magnitude.max()), 1e-6))).astype(np.uint8)
        inset = cv2.cvtColor(
            cv2.applyColorMap(cv2.resize(scaled, (side, side)), cv2.COLORMAP_INFERNO), cv2.COLOR_BGR2RGB
        )
        patch = picture[-side:, :side]
        patch[:] = inset[-patch.shape[0] :, : patch.shape[1]]
        return picture

    def found(self, shown: Sequence[int]) -> dict[str, Any]:
        """The mean, and how many frames are blurred."""
        return {
            "mean_sharpness": round(float(np.average(self._scores, weights=shown)), 4),
            "blurred_frames": sum(ticks for score, ticks in zip(self._scores, shown, strict=True) if score < BLURRED),
        }
