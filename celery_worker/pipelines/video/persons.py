"""Looks closer at each person: 33 landmarks of the body and a mask. The contract is in models/PROVENANCE.md."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import cv2
import numpy as np

from celery_worker.pipelines.video.detect import Detection
from celery_worker.workbench import Workbench

MODEL = "pose-landmark-full"
SIDE = 256  # the model's input is SIDE x SIDE
ROOM = 1.25  # the crop's side, in longer sides of the person's box
SURE = 0.5  # that the crop shows a person at all
MOST = 20  # persons of one frame, the surest
LANDMARKS = 33

Person = dict[str, Any]


def persons(
    session: Any, picture: np.ndarray, found: Sequence[Detection], scale: float, batch: int = 1
) -> tuple[list[Person], np.ndarray]:
    """The persons among the detections, and what of the picture is one of them, 0 to 255.

    `picture` shows the source at `scale`; boxes and landmarks are in pixels of the source. A landmark is x, y and how
    sure it is to be seen, 0 to 1; it may lie outside of the picture. `batch` persons share a call.
    """
    mask = np.zeros(picture.shape[:2], np.uint8)
    seen: list[Person] = []
    squares = squares_of(found, scale)
    looked = looks(session, [cut(picture, *square) for square in squares], batch)
    for (_, score, *box), (left, top, side), (landmarks, presence, body) in zip(found, squares, looked, strict=False):
        if float(presence[0]) < SURE:
            continue
        points = landmarks[:LANDMARKS]
        certain = 1 / (1 + np.exp(-np.minimum(points[:, 3], points[:, 4])))
        places = (points[:, :2] / SIDE * side + (left, top)) / scale
        seen.append(
            {
                "box": box,
                "score": score,
                "landmarks": [
                    [round(float(x), 1), round(float(y), 1), round(float(sure), 3)]
                    for (x, y), sure in zip(places, certain, strict=True)
                ],
            }
        )
        _paste(mask, (body[:, :, 0] * 255).astype(np.uint8), left, top, side)
    return seen, mask


def bodies(bench: Workbench, segment: Mapping[str, Any], found: list[list[Detection]], person: int) -> dict[str, Any]:
    """The persons of each frame, and a file with their masks."""
    width, height = segment["pictures"]
    pictures = np.memmap(bench.open(segment["files"]["pictures"]), np.uint8, "r").reshape(-1, height, width, 3)
    scale = width / segment["size"][0]
    seen, masks = [], []
    for n, detections in enumerate(found):
        boxes = [one for one in detections if one[0] == person]
        body, mask = persons(bench.model(MODEL), pictures[n], boxes, scale, bench.batch)
        seen.append(body)
        masks.append(mask)
        bench.progress(n + 1, len(found))
    answer: dict[str, Any] = {"persons": [seen[n] for n in segment["shown"]]}
    if "mask" in bench.params["tasks"]:
        file = bench.scratch / "masks.npz"
        np.savez_compressed(file, masks=np.stack(masks))
        answer |= {"masks": bench.keep("masks.npz", file, listed=False), "shown": segment["shown"]}
    return answer


def squares_of(found: Sequence[Detection], scale: float) -> list[tuple[int, int, int]]:
    """Left, top and side of the crop of each person that is looked at."""
    return [_square([edge * scale for edge in box]) for _, _, *box in found[:MOST]]


def looks(session: Any, crops: Sequence[np.ndarray], batch: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Landmarks, presence and mask of each crop."""
    for first in range(0, len(crops), batch):
        images = np.stack(crops[first : first + batch])
        yield from zip(*session.run(["landmarks", "presence", "mask"], {"images": images}), strict=True)


def _square(box: Sequence[float]) -> tuple[int, int, int]:
    """Left, top and side of the crop around a box."""
    x1, y1, x2, y2 = box
    side = max(2, round(ROOM * max(x2 - x1, y2 - y1)))
    return round((x1 + x2 - side) / 2), round((y1 + y2 - side) / 2), side


def _inside(shape: Sequence[int], left: int, top: int, side: int) -> tuple[slice, slice, slice, slice]:
    """Where the crop lies in the picture, and that place in the crop: rows and columns of each."""
    height, width = shape[:2]
    x1, y1, x2, y2 = max(0, left), max(0, top), min(width, left + side), min(height, top + side)
    return slice(y1, y2), slice(x1, x2), slice(y1 - top, y2 - top), slice(x1 - left, x2 - left)


def cut(picture: np.ndarray, left: int, top: int, side: int) -> np.ndarray:
    """A crop as the model takes it; what lies outside of the picture is black."""
    rows, columns, inner_rows, inner_columns = _inside(picture.shape, left, top, side)
    crop = np.zeros((side, side, 3), np.uint8)
    crop[inner_rows, inner_columns] = picture[rows, columns]
    kind = cv2.INTER_AREA if side > SIDE else cv2.INTER_LINEAR
    return cv2.resize(crop, (SIDE, SIDE), interpolation=kind)


def _paste(mask: np.ndarray, body: np.ndarray, left: int, top: int, side: int) -> None:
    rows, columns, inner_rows, inner_columns = _inside(mask.shape, left, top, side)
    whole = cv2.resize(body, (side, side), interpolation=cv2.INTER_LINEAR)
    np.maximum(mask[rows, columns], whole[inner_rows, inner_columns], out=mask[rows, columns])
