"""From the boxes of all tiles to objects: the same one is seen by several windows, the surest of them counts."""

from __future__ import annotations

import numpy as np
import shapely

from celery_worker.pipelines.features.look import Box


def objects(boxes: list[Box], overlap: float, width: int, height: int) -> tuple[np.ndarray, np.ndarray]:
    """Polygons in pixels of the picture, clipped to it, and their scores: the surest first, whatever the tiles."""
    if not boxes:
        return np.empty(0, object), np.empty(0)
    values = np.array([box[1:] for box in boxes], np.float64)
    values = values[np.lexsort((values[:, 4], values[:, 3], values[:, 2], values[:, 1], -values[:, 0]))]
    corners = np.clip(values[:, 1:], 0, (width, height, width, height))
    shapes = shapely.box(*corners.T)
    keep = suppress(corners, overlap, shapes)
    return shapes[keep], values[keep, 0]


def suppress(corners: np.ndarray, overlap: float, shapes: np.ndarray) -> np.ndarray:
    """Which boxes stay, best first: those that share no more than `overlap` (IoU) with a better one that stays."""
    area = (corners[:, 2] - corners[:, 0]) * (corners[:, 3] - corners[:, 1])
    one, other = shapely.STRtree(shapes).query(shapes)
    later = one < other
    one, other = one[later], other[later]
    wide = np.minimum(corners[one, 2], corners[other, 2]) - np.maximum(corners[one, 0], corners[other, 0])
    high = np.minimum(corners[one, 3], corners[other, 3]) - np.maximum(corners[one, 1], corners[other, 1])
    shared = np.clip(wide, 0, None) * np.clip(high, 0, None)
    rivals = shared > overlap * (area[one] + area[other] - shared)
    order = np.argsort(one[rivals], kind="stable")
    keep: np.ndarray = area > 0
    for better, worse in zip(one[rivals][order].tolist(), other[rivals][order].tolist(), strict=True):
        if keep[better]:
            keep[worse] = False
    return keep
