"""All classes of one strip as faces that share their borders, and still share them when they have lost corners.

A face is what the same areas cover. Wherever the borders of three faces meet lies a node; between two nodes a border
is one line that both its faces have, so it is simplified once. Where a strip ends, its borders are held: the next
strip goes on from there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import shapely
from affine import Affine
from rasterio import features

from jobs.errors import BadInput

MAX_CORNERS = 3_000_000  # of one strip or one outline: more is noise, and would not fit into memory
LARGEST = 2**31 - 1


@dataclass(frozen=True)
class Faces:
    """Polygons in pixels of the picture; `labels` [classes, faces] has the area of each class that a face lies in."""

    polygons: np.ndarray
    labels: np.ndarray


class Overlay:
    """Numbers the pixels of a strip: two have the same number where the same areas cover them."""

    def __init__(self, rows: int, width: int) -> None:
        self.numbers: np.ndarray = np.zeros((rows, width), np.int32)
        self.covered = np.zeros((rows, width), bool)
        self._most = 1
        self._laid: list[tuple[int, np.ndarray | None]] = []

    def lay(self, labels: np.ndarray) -> None:
        """The areas of one more class, numbered from 1."""
        count, table = int(labels.max()) + 1, None
        if self._most * count > LARGEST:
            table, numbers = np.unique(self.numbers.astype(np.int64) * count + labels, return_inverse=True)
            self.numbers, self._most = numbers.reshape(labels.shape).astype(np.int32), len(table)
        elif count > 1:
            self.numbers *= count
            self.numbers += labels
            self._most *= count
        self.covered |= labels > 0
        self._laid.append((count, table))

    def labels(self, numbers: np.ndarray) -> np.ndarray:
        """The area of each class that such pixels lie in: [classes, n]."""
        found = np.zeros((len(self._laid), len(numbers)), np.int64)
        for n, (count, table) in reversed(list(enumerate(self._laid))):
            numbers, found[n] = np.divmod(numbers if table is None else table[numbers], count)
        return found


def faces(overlay: Overlay, y: int, above: np.ndarray | None, below: np.ndarray | None, tolerance: float) -> Faces:
    """The faces of the strip that begins in row y. `above` and `below` are the rows of numbers next to it.

    `tolerance`, in pixels: a corner goes if the triangle that it makes with its neighbours is smaller than the square
    of it (Visvalingam and Whyatt 1993), as long as no two borders come to touch or cross. Raises BadInput for noise.
    """
    corners = _corners(overlay.numbers, above, below)
    rings, numbers = [], []
    for shape, number in features.shapes(overlay.numbers, overlay.covered, connectivity=4, transform=Affine.identity()):
        rings.append([np.array(ring, np.int32) for ring in shape["coordinates"]])
        numbers.append(int(number))
    labels = overlay.labels(np.array(numbers, np.int64))
    if not rings:
        return Faces(np.empty(0, object), labels)
    polygons = _polygons(rings, corners)
    if tolerance > 0:
        beyond = [_cells(corners[0], -1)] if above is not None else []
        beyond += [_cells(corners[-1], len(corners) - 1)] if below is not None else []
        polygons = shapely.coverage_simplify(np.concatenate([polygons, *beyond]), tolerance)[: len(polygons)]
    return Faces(shapely.transform(polygons, lambda xy: xy + np.array([0, y])), labels)


def _corners(numbers: np.ndarray, above: np.ndarray | None, below: np.ndarray | None) -> np.ndarray:
    """Where a border turns, three borders meet, or one goes on in the next strip: [rows + 1, width + 1]."""
    padded = np.pad(numbers, 1, constant_values=-1)
    upright, level = padded[:, 1:] != padded[:, :-1], padded[1:] != padded[:-1]
    up, down, left, right = upright[:-1], upright[1:], level[:, :-1], level[:, 1:]
    corners: np.ndarray = (up & down & (left | right)) | (left & right & (up | down)) | ((up != down) & (left != right))
    if np.count_nonzero(corners) > MAX_CORNERS:
        raise BadInput(f"The outlines have more than {MAX_CORNERS:,} corners in {len(numbers)} rows: they are noise.")
    for edge, own, other in ((0, numbers[0], above), (-1, numbers[-1], below)):
        if other is not None:
            corners[edge, 1:-1] |= (own[1:] != own[:-1]) | (other[1:] != other[:-1])
    return corners


def _polygons(rings: Sequence[Sequence[np.ndarray]], corners: np.ndarray) -> np.ndarray:
    """Polygons of these closed rings, shells first, with exactly these corners: neighbours have the same ones."""
    flat = [ring for polygon in rings for ring in polygon]
    begin = np.concatenate([ring[:-1] for ring in flat])
    way = np.concatenate([np.diff(ring, axis=0) for ring in flat])
    length = np.abs(way).sum(axis=1)
    edge = np.repeat(np.arange(len(way)), length)
    step = np.arange(len(edge)) - np.repeat(np.cumsum(length) - length, length)
    at = begin[edge] + np.sign(way)[edge] * step[:, None]
    keep = corners[at[:, 1], at[:, 0]]
    ring_of = np.repeat(np.arange(len(flat)), [len(ring) - 1 for ring in flat])
    closed = shapely.linearrings(at[keep].astype(float), indices=ring_of[edge][keep])
    made: np.ndarray = shapely.polygons(closed, indices=np.repeat(np.arange(len(rings)), [len(one) for one in rings]))
    return made


def _cells(corners: np.ndarray, row: int) -> np.ndarray:
    """The row of pixels beyond a seam, as one face between two corners there: so they hold their places."""
    at = np.flatnonzero(corners)
    cells: np.ndarray = shapely.box(at[:-1], row, at[1:], row + 1)
    return cells
