"""From pictures to detections: letterbox, the detector, suppression. The contract is in models/PROVENANCE.md."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from functools import partial
from typing import Any

import cv2
import numpy as np

from celery_worker.pipelines.video.ahead import in_order

MODEL = "efficientdet-lite0"
SIDE = 320  # the model's input is SIDE x SIDE
IOU = 0.5  # two boxes of one class that overlap more are one object
MOST = 100  # detections of one frame
CANDIDATES = 2_000  # boxes that suppression looks at

Answer = tuple[np.ndarray, np.ndarray, np.ndarray]  # boxes, scores and classes of every candidate in one frame
Detection = tuple[int, float, float, float, float, float]  # class, score, x1, y1, x2, y2 in pixels of the source


def scale_of(width: int, height: int) -> float:
    """From pixels of the source to pixels of the model."""
    return min(SIDE / width, SIDE / height)


def letterbox(picture: np.ndarray, grey: bool, out: np.ndarray) -> None:
    """Bring a picture to the model's size, in the top left corner of `out`, whose rest stays as it is (zeros)."""
    height, width = picture.shape[:2]
    scale = scale_of(width, height)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    small = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
    if grey:
        small = cv2.cvtColor(cv2.cvtColor(small, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    out[: size[1], : size[0]] = small


def detect(
    session: Any, frames: np.ndarray, *, batch: int, size: tuple[int, int], min_score: float, classes: frozenset[int]
) -> Iterator[list[Detection]]:
    """The detections of each frame, best first. No `classes` means all."""
    for answer in answers(session, frames, batch):
        yield suppressed(answer, size, min_score, classes)


def answers(session: Any, frames: np.ndarray, batch: int) -> Generator[Answer, None, None]:
    """What the model says of each frame, `batch` of them to a call."""
    for call in _calls(session, frames, batch):
        yield from zip(*call(), strict=True)


def answers_ahead(
    session: Any, frames: np.ndarray, batch: int, waiting: Callable[[], None]
) -> Generator[Answer, None, None]:
    """The same, for a GPU: it computes the next batches while one is read. `waiting` is called now and then.

    Close it: the frames must not be taken away under a call.
    """
    with closing(in_order(_calls(session, frames, batch), waiting)) as said:
        for one in said:
            yield from zip(*one, strict=True)


def _calls(session: Any, frames: np.ndarray, batch: int) -> Iterator[Callable[[], Sequence[np.ndarray]]]:
    for first in range(0, len(frames), batch):
        given = {"images": frames[first : first + batch]}
        yield partial(session.run, ["boxes", "scores", "class_ids"], given)


def suppressed(answer: Answer, size: tuple[int, int], min_score: float, classes: frozenset[int]) -> list[Detection]:
    """Per class, best first: a rider does not suppress the bicycle. Then clipped to the source."""
    boxes, scores, ids = answer
    chosen = np.flatnonzero(scores > min_score)
    if classes:
        chosen = chosen[np.isin(ids[chosen], list(classes))]
    chosen = chosen[np.argsort(-scores[chosen], kind="stable")][:CANDIDATES]
    boxes, scores, ids = boxes[chosen].astype(np.float64), scores[chosen], ids[chosen]
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    width, height = size
    scale = scale_of(width, height)
    alive = np.ones(len(chosen), bool)
    found: list[Detection] = []
    for n in range(len(chosen)):
        if not alive[n]:
            continue
        x1, y1, x2, y2 = np.clip(np.clip(boxes[n], 0, SIDE) / scale, 0, (width, height, width, height)).round(2)
        if x2 > x1 and y2 > y1:
            found.append((int(ids[n]), round(float(scores[n]), 4), float(x1), float(y1), float(x2), float(y2)))
            if len(found) == MOST:
                break
        corner, opposite = np.maximum(boxes[n, :2], boxes[:, :2]), np.minimum(boxes[n, 2:], boxes[:, 2:])
        shared = np.prod(np.maximum(opposite - corner, 0), axis=1)
        alive &= (shared <= IOU * (areas[n] + areas - shared)) | (ids != ids[n])
    return found
