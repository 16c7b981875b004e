"""All classes of a picture, strip after strip: what is kept of each lies over the others, and becomes polygons."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain, pairwise

import numpy as np

from celery_worker.pipelines.features.components import Areas
from celery_worker.pipelines.features.export import NO_DATA
from celery_worker.pipelines.features.faces import Overlay, faces
from celery_worker.pipelines.features.outlines import Layer, Tracer
from celery_worker.pipelines.features.planes import Planes


@dataclass(frozen=True)
class Strip:
    """The rows from y on: the class that shows at each pixel, which areas cover it, and what is known of these."""

    y: int
    classes: np.ndarray
    overlay: Overlay
    layers: dict[int, Layer]


def merged(
    planes: Planes,
    areas: Mapping[int, Areas],
    names: Sequence[str],
    tolerance: float,
    keep: Callable[[int, np.ndarray, np.ndarray], None],
    progress: Callable[[float, float], None],
) -> Iterator[Strip]:
    """Each strip, once `keep` has got the areas that end in it: number of the class, polygons, scores."""
    tracer = Tracer({number: names[number - 1] for number in areas})
    above: np.ndarray | None = None
    for strip, after in pairwise(chain(_ahead(_strips(planes, areas)), [None])):
        assert strip
        below = after.overlay.numbers[0] if after else None
        found = faces(strip.overlay, strip.y, above, below, tolerance)
        for number, traced in tracer.trace(found, strip.layers):
            progress(strip.y, planes.height)
            keep(number, traced.polygons, traced.scores)
        above = strip.overlay.numbers[-1]
        yield strip


def _strips(planes: Planes, areas: Mapping[int, Areas]) -> Iterator[Strip]:
    for n, (y, rows) in enumerate(planes.strips):
        classes = np.where(planes.read(0, y, rows) > 0, 0, NO_DATA).astype(np.uint8)
        strip = Strip(y, classes, Overlay(rows, planes.width), {})
        for number, found in areas.items():
            piece = found.piece(n)
            classes[piece.labels > 0] = number
            strip.overlay.lay(piece.labels)
            strip.layers[number] = Layer.of(piece, planes.read(number, y, rows))
        yield strip


def _ahead(strips: Iterator[Strip]) -> Iterator[Strip]:
    """The same, each made while the one before is worked on: most of both is done by libraries that free the lock."""
    with ThreadPoolExecutor(1) as aside:
        waiting = aside.submit(next, strips, None)
        while (strip := waiting.result()) is not None:
            waiting = aside.submit(next, strips, None)
            yield strip
