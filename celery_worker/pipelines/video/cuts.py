"""Hard cuts: where one shot ends and the next begins, nothing goes on."""

from __future__ import annotations

import cv2
import numpy as np

STEP = 4  # of the model's picture every fourth pixel is looked at
APART = 14.0  # distance of the histograms (Bhattacharyya) x mean difference of the pixels: fast pans stay below 12


class Cuts:
    """Sees frames in order, and notes those with which a shot begins."""

    def __init__(self) -> None:
        self.at: list[int] = []
        self._before: tuple[np.ndarray, np.ndarray] | None = None

    def see(self, picture: np.ndarray, frame: int) -> None:
        """The next fresh frame, in the model's size without its margins."""
        small = np.ascontiguousarray(picture[::STEP, ::STEP])
        histogram = cv2.calcHist([small], [0, 1, 2], None, [8, 8, 8], [0, 256] * 3)
        if self._before is not None:
            earlier, counted = self._before
            apart = cv2.compareHist(counted, histogram, cv2.HISTCMP_BHATTACHARYYA)
            if apart * float(cv2.absdiff(small, earlier).mean()) > APART:
                self.at.append(frame)
        self._before = small, histogram
