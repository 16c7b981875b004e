"""From areas to polygons on the exact grid of the picture's pixels, dissolved over the seams of the strips."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import shapely
from affine import Affine
from rasterio import features

from celery_worker.pipelines.features.components import Piece
from jobs.errors import BadInput

MAX_CORNERS = 3_000_000  # of one outline: more is noise, and would not fit into memory


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


class Tracer:
    """Follows the outlines of one plane, strip after strip."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._open: dict[int, _Open] = {}

    def trace(self, piece: Piece, plane: np.ndarray) -> Outlines:
        """The areas that are whole now. `plane` has the strip's scores."""
        count = len(piece.roots)
        if not count:
            return Outlines(np.empty(0, object), np.empty(0))
        flat = piece.labels.ravel()
        scores = np.bincount(flat, plane.ravel(), count + 1)[1:]
        pixels = np.bincount(flat, minlength=count + 1)[1:]
        polygons = _polygons(piece, count)
        whole = piece.roots == 0
        for n in np.flatnonzero(~whole):
            self._add(int(piece.roots[n]), polygons[n], float(scores[n]), int(pixels[n]))
        found, means = [polygons[whole]], [scores[whole] / pixels[whole]]
        ended = [self._open.pop(root) for root in sorted(piece.ends)]
        if ended:
            found.append(np.array([_dissolve(each.polygons) for each in ended], object))
            means.append(np.array([each.score / each.pixels for each in ended]))
        return Outlines(canonical(np.concatenate(found)), np.concatenate(means) / 255)

    def _add(self, root: int, polygon: shapely.Polygon, score: float, pixels: int) -> None:
        area = self._open.setdefault(root, _Open())
        area.polygons.append(polygon)
        area.score += score
        area.pixels += pixels
        area.corners += shapely.get_num_coordinates(polygon)
        if area.corners > MAX_CORNERS:
            raise BadInput(
                f"An outline of {self._name} has more than {MAX_CORNERS:,} corners: it is noise, and no area."
            )


def canonical(polygons: np.ndarray) -> np.ndarray:
    """The same outlines begin at the same corner, and have corners only where they turn."""
    found: np.ndarray = shapely.normalize(shapely.simplify(shapely.normalize(polygons), 0))
    return found


def simplify(polygons: np.ndarray, tolerance: float) -> np.ndarray:
    """Fewer corners, the same topology: nothing falls apart, no hole is lost, nothing crosses itself."""
    return shapely.simplify(polygons, tolerance, preserve_topology=True) if tolerance > 0 else polygons


def _polygons(piece: Piece, count: int) -> np.ndarray:
    """One polygon for each number of the piece."""
    found = np.empty(count, object)
    place = Affine.translation(0, piece.y)
    for shape, number in features.shapes(piece.labels, piece.labels > 0, connectivity=4, transform=place):
        rings = [np.array(ring) for ring in shape["coordinates"]]
        found[int(number) - 1] = shapely.Polygon(rings[0], rings[1:])
    return found


def _dissolve(polygons: list[shapely.Polygon]) -> shapely.Polygon:
    """Exact: all corners are whole numbers."""
    return polygons[0] if len(polygons) == 1 else shapely.union_all(polygons)
