"""One picture to look at: the source, not larger than a screen, with the features' outlines over it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np
import shapely

from celery_worker.pipelines.features.export import colour
from celery_worker.pipelines.features.indices import RGB
from celery_worker.pipelines.features.plan import Tile

MOST, LEAST = 1_600, 800  # pixels of the longer side: a larger picture is thinned out, a smaller one enlarged
FILL = 0.35
SHIFT = 4  # OpenCV draws at 1/16 of a pixel
LINE = 22


class Base:
    """The source, every n-th pixel of it, gathered while its tiles are read."""

    def __init__(self, width: int, height: int, bands: Sequence[str], levels: Mapping[str, Sequence[float]]) -> None:
        self.every = -(-max(width, height) // MOST)
        self._bands = RGB if set(RGB) <= set(bands) else (bands[0],) * 3
        self._levels = levels
        self._picture = np.zeros((-(-height // self.every), -(-width // self.every), 3), np.uint8)

    def add(self, tile: Tile, bands: Mapping[str, np.ndarray], valid: np.ndarray) -> None:
        """One tile's core."""
        rows, columns = tile.core
        y, x = -(-tile.y // self.every), -(-tile.x // self.every)
        own = (slice(rows.start + y * self.every - tile.y, rows.stop, self.every),
               slice(columns.start + x * self.every - tile.x, columns.stop, self.every))  # fmt: skip
        seen = [_stretch(bands[name][own], self._levels[name]) for name in self._bands]
        found = np.dstack(seen) * valid[own][..., None]
        self._picture[y : y + found.shape[0], x : x + found.shape[1]] = found

    def png(self) -> bytes:
        """As a file."""
        return encode(self._picture)


class Preview:
    """Draws on a base."""

    def __init__(self, base: bytes, width: int, names: Sequence[str]) -> None:
        decoded: Any = cv2.imdecode(np.frombuffer(base, np.uint8), cv2.IMREAD_COLOR)
        picture = np.ascontiguousarray(decoded[..., ::-1])
        grow = max(1, round(LEAST / max(picture.shape[:2])))
        self._scale = grow / -(-max(width, 1) // picture.shape[1])
        self._picture = cv2.resize(picture, None, fx=grow, fy=grow, interpolation=cv2.INTER_CUBIC)
        self._filled = self._picture.copy()
        self._names = names
        self._rings: list[tuple[int, np.ndarray]] = []

    def add(self, number: int, polygons: np.ndarray) -> None:
        """Some features of one class."""
        for polygon in polygons:
            rings = [self._points(ring) for ring in (polygon.exterior, *polygon.interiors)]
            if max(np.ptp(rings[0], axis=0)) >= 1 << SHIFT:  # less than a pixel long
                cv2.fillPoly(self._filled, rings, colour(self._names, number), cv2.LINE_8, SHIFT)
                self._rings += [(number, ring) for ring in rings]

    def png(self, counts: Mapping[str, int]) -> bytes:
        """The picture, with a legend."""
        drawn = cv2.addWeighted(self._filled, FILL, self._picture, 1 - FILL, 0)
        for number, ring in self._rings:
            cv2.polylines(drawn, [ring], True, colour(self._names, number), 1, cv2.LINE_AA, SHIFT)
        _legend(drawn, self._names, counts)
        return encode(drawn)

    def _points(self, ring: shapely.LinearRing) -> np.ndarray:
        sixteenths = shapely.get_coordinates(ring) * self._scale * (1 << SHIFT) - (1 << SHIFT - 1)
        found: np.ndarray = np.round(sixteenths).astype(np.int32)
        return found


def encode(picture: np.ndarray) -> bytes:
    """PNG."""
    done, data = cv2.imencode(".png", picture[..., ::-1])
    assert done
    return bytes(data)


def _legend(picture: np.ndarray, names: Sequence[str], counts: Mapping[str, int]) -> None:
    height = 12 + LINE * len(names)
    lines = [f"{name}: {counts.get(name, 0):,}" for name in names]
    wide = 44 + max(cv2.getTextSize(line, cv2.FONT_HERSHEY_SIMPLEX, 0.5, 1)[0][0] for line in lines)
    corner = picture[:height, :wide]
    corner[:] = corner // 3
    for n, line in enumerate(lines):
        y = 10 + LINE * n
        cv2.rectangle(picture, (10, y), (24, y + 12), colour(names, n), -1)
        cv2.putText(picture, line, (32, y + 11), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (255, 255, 255), 1, cv2.LINE_AA)


def _stretch(values: np.ndarray, levels: Sequence[float]) -> np.ndarray:
    low, _, high = levels
    share = (values.astype(np.float32) - low) / max(high - low, 1e-6)
    found: np.ndarray = np.clip(share * 255, 0, 255).astype(np.uint8)
    return found
