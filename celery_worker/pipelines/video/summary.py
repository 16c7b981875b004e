"""Which seconds of a clip matter, and when each class was seen: for the summary clip and the time line picture."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil

import cv2
import numpy as np

from celery_worker.pipelines.video.draw import colour_of, label_tile
from celery_worker.pipelines.video.track import Sighting

SHARE, MOST_S = 0.25, 30.0  # of the clip, and in all
PIECE_S = 2.0  # a shorter piece cannot be watched
NEW = 2.0  # a track that begins is worth so many detections
WIDTH, ROW, MARGIN, LABEL = 1_200, 34, 16, 150
GROUND, GRID, INK = (24, 26, 30), (52, 56, 64), (236, 238, 242)
TEXT = 15


def matters(frames: Sequence[Sequence[Sighting]], rate: float) -> list[tuple[int, int]]:
    """Pieces of the clip, as frames from and to, in order: where most is seen, and where something new appears."""
    step = max(1, round(PIECE_S * rate))
    pieces = [(first, min(first + step, len(frames))) for first in range(0, len(frames), step)]
    room = max(1, min(ceil(SHARE * len(pieces)), int(MOST_S / PIECE_S)))
    known: set[int] = set()
    worth = []
    for first, end in pieces:
        seen = [sighting for sightings in frames[first:end] for sighting in sightings]
        new = {sighting.track for sighting in seen if sighting.track is not None} - known
        known |= new
        worth.append(sum(sighting.score for sighting in seen) / (end - first) + NEW * len(new) / step)
    best = sorted(range(len(pieces)), key=lambda n: (-worth[n], n))[:room]
    joined: list[tuple[int, int]] = []
    for n in sorted(best):
        first, end = pieces[n]
        if joined and joined[-1][1] == first:
            joined[-1] = (joined[-1][0], end)
        else:
            joined.append((first, end))
    return joined


def time_line(frames: Sequence[Sequence[Sighting]], rate: float, start: float) -> bytes:
    """A PNG: a row for each class, most seen first, as dark as many of it are seen at a time; seconds below."""
    counts: dict[str, np.ndarray] = {}
    ids: dict[str, int] = {}
    for n, sightings in enumerate(frames):
        for sighting in sightings:
            ids[sighting.label] = sighting.class_id
            counts.setdefault(sighting.label, np.zeros(len(frames), np.int32))[n] += 1
    names = sorted(counts, key=lambda name: (-int(counts[name].sum()), name))
    width = WIDTH - LABEL - 2 * MARGIN
    page = np.full((2 * MARGIN + ROW * (len(names) + 1), WIDTH, 3), GROUND, np.uint8)
    edges = np.linspace(0, len(frames), width + 1).astype(int)
    for row, name in enumerate(names):
        top = MARGIN + row * ROW
        _write(page, name, MARGIN, top + 6)
        most = int(counts[name].max())
        for x in range(width):
            here = counts[name][edges[x] : max(edges[x] + 1, edges[x + 1])]
            if here.max(initial=0):
                high = round((ROW - 8) * (0.35 + 0.65 * float(here.max()) / most))
                page[top + ROW - 4 - high : top + ROW - 4, LABEL + MARGIN + x] = colour_of(ids[name])
        page[top + ROW - 3, LABEL + MARGIN : WIDTH - MARGIN] = GRID
    _seconds(page, width, len(frames) / rate, start)
    return bytes(cv2.imencode(".png", cv2.cvtColor(page, cv2.COLOR_RGB2BGR))[1])


def _seconds(page: np.ndarray, width: int, length_s: float, start: float) -> None:
    step = next((s for s in (0.1, 0.5, 1, 2, 5, 10, 30, 60, 300, 600, 1_800, 3_600) if length_s / s <= 10), 7_200)
    at = 0.0
    while at <= length_s:
        x = LABEL + MARGIN + round(at / length_s * (width - 1))
        page[MARGIN : page.shape[0] - MARGIN - ROW + 6, x] = np.maximum(page[MARGIN : -MARGIN - ROW + 6, x], GRID)
        _write(page, f"{start + at:g} s", min(x, WIDTH - 60), page.shape[0] - MARGIN - ROW + 8)
        at += step


def _write(page: np.ndarray, text: str, left: int, top: int) -> None:
    tile = label_tile(text, TEXT, GROUND)[:, : WIDTH - left]
    page[top : top + tile.shape[0], left : left + tile.shape[1]] = tile[: page.shape[0] - top]
