"""What hangs together across strips: which areas of a plane are kept, told strip by strip, within bounded memory.

The first pass looks at sizes alone and joins what goes on in the next strip. What it keeps of a strip is a number for
each area that touches its first or last row; all others are whole, and judged again by the second pass.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np

from celery_worker.pipelines.features.planes import Planes


@dataclass(frozen=True)
class Sizes:
    """How many pixels an area may have."""

    least: int
    most: int | None = None

    def fit(self, pixels: np.ndarray) -> np.ndarray:
        """Which of them do."""
        return (pixels >= self.least) & ((pixels <= self.most) if self.most is not None else True)


@dataclass(frozen=True)
class Piece:
    """Some areas of one strip: `labels` numbers them from 1, 0 is nowhere; `pixels` counts those of each; `roots` has
    for each the area that it is a part of, or 0 where it is whole; `ends` the areas of which this strip holds the last
    piece."""

    labels: np.ndarray
    pixels: np.ndarray
    roots: np.ndarray
    ends: frozenset[int]


class Areas:
    """The areas of one plane that have the right size. Neighbours are those that share a pixel's edge."""

    def __init__(self, planes: Planes, number: int, sizes: Sizes, checkpoint: Callable[[], None]) -> None:
        self._planes, self._number, self._sizes = planes, number, sizes
        self._joints: list[tuple[np.ndarray, np.ndarray]] = []  # by strip: local labels at its edges, their areas
        self._ends: dict[int, frozenset[int]] = {}
        self._survey(checkpoint)

    def piece(self, strip: int) -> Piece:
        """The kept areas of a strip."""
        y, rows = self._planes.strips[strip]
        labels, pixels = _label(self._planes.read(self._number, y, rows))
        keep = self._sizes.fit(pixels)
        keep[0] = False
        roots = np.zeros(len(pixels), np.int64)
        edge, areas = self._joints[strip]
        keep[edge] = areas > 0
        roots[edge] = areas
        numbers = np.zeros(len(pixels), np.int32)
        numbers[keep] = np.arange(1, keep.sum() + 1)
        return Piece(numbers[labels], pixels[keep], roots[keep], self._ends.get(strip, frozenset()))

    def _survey(self, checkpoint: Callable[[], None]) -> None:
        """Join over the seams, then judge each joined area by all of its pixels."""
        forest = _Forest()
        above: np.ndarray | None = None  # the area of each pixel in the last row of the strip before
        for y, rows in self._planes.strips:
            checkpoint()
            labels, pixels = _label(self._planes.read(self._number, y, rows))
            edge = np.unique(np.concatenate([labels[0], labels[-1]]))
            edge = edge[edge > 0]
            areas = forest.add(pixels[edge])
            of = np.zeros(len(pixels), np.int64)
            of[edge] = areas
            if above is not None:
                first = of[labels[0]]
                both = (above > 0) & (first > 0)
                for one, other in np.unique(np.stack([above[both], first[both]], 1), axis=0).tolist():
                    forest.join(one, other)
            above = of[labels[-1]]
            self._joints.append((edge, areas))
        roots, pixels = forest.settle()
        kept = self._sizes.fit(pixels)
        kept[0] = False
        last: dict[int, int] = {}
        for strip, (edge, areas) in enumerate(self._joints):
            mine = roots[areas]
            mine[~kept[mine]] = 0
            self._joints[strip] = (edge, mine)
            last.update(dict.fromkeys(mine[mine > 0].tolist(), strip))
        ends: dict[int, set[int]] = {}
        for root, strip in last.items():
            ends.setdefault(strip, set()).add(root)
        self._ends = {strip: frozenset(found) for strip, found in ends.items()}


class _Forest:
    """Areas that turn out to be one. Numbered from 1."""

    def __init__(self) -> None:
        self._parents: list[int] = [0]
        self._pixels: list[np.ndarray] = [np.zeros(1, np.int64)]

    def add(self, pixels: np.ndarray) -> np.ndarray:
        """New areas of so many pixels; returns their numbers."""
        numbers = np.arange(len(self._parents), len(self._parents) + len(pixels), dtype=np.int64)
        self._parents.extend(numbers.tolist())
        self._pixels.append(pixels.astype(np.int64))
        return numbers

    def join(self, one: int, other: int) -> None:
        """They are one; the smaller number stands for both."""
        one, other = self._root(one), self._root(other)
        self._parents[max(one, other)] = min(one, other)

    def settle(self) -> tuple[np.ndarray, np.ndarray]:
        """The root of each number, and the pixels of each root."""
        roots = np.array([self._root(n) for n in range(len(self._parents))], np.int64)
        pixels = np.bincount(roots, np.concatenate(self._pixels), len(roots)).astype(np.int64)
        return roots, pixels

    def _root(self, number: int) -> int:
        parents = self._parents
        while parents[number] != number:
            parents[number] = parents[parents[number]]
            number = parents[number]
        return number


def _label(plane: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A number for each area of a strip, and the pixels of each."""
    _, labels, stats, _ = cv2.connectedComponentsWithStats((plane > 0).view(np.uint8), connectivity=4, ltype=cv2.CV_32S)
    return labels, stats[:, cv2.CC_STAT_AREA].astype(np.int64)
