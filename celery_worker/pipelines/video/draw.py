"""Boxes and labels on a picture: a colour for each class, labels that can be read and do not cover each other."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from functools import lru_cache
from math import sqrt

import cv2
import numpy as np

from celery_worker.pipelines.video.track import Sighting

GOLDEN = 0.618033988749895  # steps of the golden ratio keep neighbouring classes apart on the colour wheel
WEIGHT = 600  # semibold reads best on a coloured ground

Colour = tuple[int, int, int]
Rect = tuple[int, int, int, int]  # left, top, right, bottom


def draw(picture: np.ndarray, sightings: Sequence[Sighting], scale: float = 1.0) -> None:
    """Draw onto an RGB picture, which shows the source at `scale`. A passing detection has a thin box."""
    height, width = picture.shape[:2]
    size = text_size(width, height)
    line = max(2, round(size / 7))
    boxes = [_pixels(sighting.box, scale, width, height) for sighting in sightings]
    order = sorted(range(len(boxes)), key=lambda n: (_area(boxes[n]), -n), reverse=True)
    for n in order:  # small ones last, so that a large neighbour does not hide them
        left, top, right, bottom = boxes[n]
        thickness = line if sightings[n].track is not None else 1
        cv2.rectangle(picture, (left, top), (right, bottom), colour_of(sightings[n].class_id), thickness, cv2.LINE_4)
    taken: list[Rect] = []
    for n in reversed(order):  # the label of a small box has the fewest places to go
        tile = label_tile(caption(sightings[n]), size, colour_of(sightings[n].class_id))
        left, top, right, bottom = _place(boxes[n], tile.shape[1], tile.shape[0], width, height, taken, line)
        patch = picture[top:bottom, left:right]
        patch[:] = tile[: patch.shape[0], : patch.shape[1]]
        taken.append((left, top, right, bottom))


def caption(sighting: Sighting) -> str:
    """What stands at a box: the class, and the track's number."""
    return sighting.label if sighting.track is None else f"{sighting.label} {sighting.track}"


def text_size(width: int, height: int) -> int:
    """Pixels of a label's letters on a picture of that size."""
    return max(12, round(0.019 * sqrt(width * height)))


@lru_cache(maxsize=256)
def colour_of(class_id: int) -> Colour:
    """Always the same colour for the same class."""
    red, green, blue = colorsys.hsv_to_rgb((0.58 + class_id * GOLDEN) % 1, 0.75, 0.98)
    return round(red * 255), round(green * 255), round(blue * 255)


@lru_cache(maxsize=1024)
def label_tile(text: str, size: int, colour: Colour) -> np.ndarray:
    """A label as a picture of its own, made once and then only copied."""
    font = _font()
    _, _, text_width, _ = cv2.getTextSize((0, 0), text, (0, 0), font, size, WEIGHT)
    pad = max(3, size // 4)
    tile = np.full((size + 2 * pad - pad // 2, text_width + 2 * pad, 3), colour, np.uint8)
    dark = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2] > 120
    ink = (20, 20, 20) if dark else (255, 255, 255)
    cv2.putText(tile, text, (pad, pad + round(size * 0.80) - pad // 4), ink, font, size, WEIGHT)
    tile.flags.writeable = False
    return tile


@lru_cache(maxsize=1)
def _font() -> cv2.FontFace:
    return cv2.FontFace("sans")


def _pixels(box: Sequence[float], scale: float, width: int, height: int) -> Rect:
    left, top, right, bottom = (round(edge * scale) for edge in box)
    left, top = max(0, min(left, width - 2)), max(0, min(top, height - 2))
    return left, top, max(left + 1, min(right, width - 1)), max(top + 1, min(bottom, height - 1))


def _area(rect: Rect) -> int:
    return (rect[2] - rect[0]) * (rect[3] - rect[1])


def _place(box: Rect, wide: int, high: int, width: int, height: int, taken: Sequence[Rect], line: int) -> Rect:
    """Left and top of a label: above the box if that is free, else inside, below, or beside it."""
    left, top, right, bottom = box
    half = line // 2
    left -= half
    choices = [
        (left, top - high - half),
        (left, top + half),
        (left, bottom + half + 1),
        (left, bottom - high - half),
        (right - wide + half + 1, top - high - half),
        (right - wide + half + 1, bottom + half + 1),
        (right + half + 1, top),
        (left - wide, top),
    ]
    free = (
        (x, y)
        for x, y in ((max(0, min(x, width - wide)), y) for x, y in choices)
        if 0 <= y <= height - high and not any(_meet((x, y, x + wide, y + high), other) for other in taken)
    )
    fallback = (max(0, min(left, width - wide)), max(0, min(top - high - half, height - high)))
    x, y = next(free, fallback)
    return x, y, x + wide, y + high


def _meet(one: Rect, other: Rect) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
