"""From the faces of strips to one polygon for each area, dissolved over the seams of the strips."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import shapely

from celery_worker.pipelines.features.components import Piece
from celery_worker.pipelines.features.faces import MAX_CORNERS, Faces
from jobs.errors import BadInput


@dataclass(frozen=True)
class Layer:
    """One class in one strip: what its areas are part of, as `Piece` has it, the sums of their scores, their pixels."""

    roots: np.ndarray
    ends: frozenset[int]
    scores: np.ndarray
    pixels: np.ndarray

    @classmethod
    def of(cls, piece: Piece, plane: np.ndarray) -> Layer:
        """`plane` has the scores of the strip's pixels."""
        inside = np.flatnonzero(piece.labels)
        scores = np.bincount(piece.labels.ravel()[inside], plane.ravel()[inside], len(piece.roots) + 1)[1:]
        return cls(piece.roots, piece.ends, scores, piece.pixels)


@dataclass(frozen=True)
class Outlines:
    """Polygons in pixels of the picture, and the mean score of each."""

    polygons: np.ndarray
    scores: np.ndarray


@dataclass
class _Open:
    """An area whose last strip has not come."""

    polygons: list[shapely.Polygon] = field(default_factory=list)
    corners: int = 0
    score: float = 0.0
    pixels: int = 0

    def add(self, polygon: shapely.Polygon, score: float, pixels: int, name: str) -> None:
        """One strip of it. Raises BadInput for noise."""
        self.polygons.append(polygon)
        self.score += float(score)
        self.pixels += int(pixels)
        self.corners += shapely.get_num_coordinates(polygon)
        if self.corners > MAX_CORNERS:
            raise BadInput(f"An outline of {name} has more than {MAX_CORNERS:,} corners: it is noise, and no area.")


class Tracer:
    """Follows the outlines of all classes, strip after strip. `names` in the order in which they were laid."""

    def __init__(self, names: Mapping[int, str]) -> None:
        self._names = names
        self._open: dict[int, dict[int, _Open]] = {number: {} for number in names}

    def trace(self, faces: Faces, layers: Mapping[int, Layer]) -> Iterator[tuple[int, Outlines]]:
        """The areas that are whole now, by the number of their class."""
        for labels, (number, layer) in zip(faces.labels, layers.items(), strict=True):
            polygons = _dissolved(faces.polygons, labels, len(layer.roots))
            whole = layer.roots == 0
            going_on = self._open[number]
            for n in np.flatnonzero(~whole).tolist():
                area = going_on.setdefault(int(layer.roots[n]), _Open())
                area.add(polygons[n], layer.scores[n], layer.pixels[n], self._names[number])
            ended = [going_on.pop(root) for root in sorted(layer.ends)]
            every = [polygons[whole], *(_dissolve(area.polygons) for area in ended)]
            scores = [layer.scores[whole] / layer.pixels[whole], *([area.score / area.pixels] for area in ended)]
            yield number, Outlines(shapely.normalize(np.hstack(every)), np.hstack(scores) / 255)


def _dissolved(polygons: np.ndarray, labels: np.ndarray, count: int) -> np.ndarray:
    """One polygon for each label from 1 to `count`: a face of its own, or several that hang together."""
    order = np.argsort(labels, kind="stable")
    ends = np.searchsorted(labels[order], np.arange(count + 1), side="right")
    found = np.empty(count, object)
    for n in range(count):
        found[n] = _dissolve(polygons[order[ends[n] : ends[n + 1]]])
    return found


def _dissolve(polygons: np.ndarray | list[shapely.Polygon]) -> shapely.Polygon:
    """Exact: those that hang together have the same corners on the border that they share."""
    return polygons[0] if len(polygons) == 1 else shapely.union_all(polygons)
