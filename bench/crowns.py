"""Tree crowns on the plot that nothing was trained on: precision, recall and F1 of the model and of a watershed."""

from __future__ import annotations

import csv
from pathlib import Path

import cv2
import numpy as np

IOU = 0.4


def truth(path: Path) -> np.ndarray:
    """The boxes that people drew."""
    with path.open() as file:
        return np.array([[float(row[key]) for key in ("xmin", "ymin", "xmax", "ymax")] for row in csv.DictReader(file)])


def judge(found: np.ndarray, drawn: np.ndarray) -> tuple[float, float, float]:
    """Precision, recall and F1 of boxes, the surest first: each may match one drawn box, at IoU 0.4."""
    free, hits = np.ones(len(drawn), bool), 0
    for box in found:
        wide = np.minimum(box[2], drawn[:, 2]) - np.maximum(box[0], drawn[:, 0])
        high = np.minimum(box[3], drawn[:, 3]) - np.maximum(box[1], drawn[:, 1])
        shared = np.clip(wide, 0, None) * np.clip(high, 0, None)
        area = (drawn[:, 2] - drawn[:, 0]) * (drawn[:, 3] - drawn[:, 1])
        overlap = shared / ((box[2] - box[0]) * (box[3] - box[1]) + area - shared) * free
        if overlap.max() >= IOU:
            free[overlap.argmax()] = False
            hits += 1
    precision, recall = hits / max(len(found), 1), hits / len(drawn)
    return precision, recall, 2 * precision * recall / max(precision + recall, 1e-9)


def watershed(rgb: np.ndarray, sigma: float, apart: int, least: int = 200) -> np.ndarray:
    """The classical way: crowns are basins of the smoothed greenness, one for each of its local maxima.

    `sigma` smooths, in pixels; `apart` is how far two tops are from each other at least; smaller basins are dropped.
    """
    pixels = rgb.astype(np.float32)
    red, green, blue = (pixels[..., n] for n in range(3))
    leaf = (2 * green - red - blue) / np.maximum(2 * green + red + blue, 1)
    light = cv2.GaussianBlur(green, (0, 0), sigma)
    smooth = cv2.GaussianBlur(leaf, (0, 0), sigma) * light
    level, _ = cv2.threshold(
        np.clip(smooth * 255 / max(float(smooth.max()), 1e-6), 0, 255).astype(np.uint8), 0, 255, cv2.THRESH_OTSU
    )
    grows = (smooth * 255 / max(float(smooth.max()), 1e-6) > level).astype(np.uint8)
    tops = (smooth == cv2.dilate(smooth, np.ones((2 * apart + 1,) * 2, np.uint8))) & (grows > 0)
    count, markers = cv2.connectedComponents(tops.astype(np.uint8))
    markers = np.where(grows > 0, markers, count).astype(np.int32)  # what does not grow is a basin of its own
    relief = 255 - np.clip(smooth * 255 / max(float(smooth.max()), 1e-6), 0, 255).astype(np.uint8)
    basins = cv2.watershed(cv2.merge([relief] * 3), markers)
    found = []
    for number in range(1, count):
        y, x = np.nonzero(basins == number)
        if len(x) >= least:
            found.append((x.min(), y.min(), x.max() + 1, y.max() + 1, len(x)))
    return np.array(sorted(found, key=lambda box: -box[4]), float).reshape(-1, 5)[:, :4]
