"""Looks at a tile with an ONNX model, through windows on one grid over the whole picture.

Because the grid is the picture's and not the tile's, each pixel and each object is seen by the same window, whatever
the tiles: a seam cannot show.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from celery_worker.pipelines.features.contract import Contract
from celery_worker.pipelines.features.plan import Tile
from jobs.errors import BadInput

TYPES = {"tensor(float)": np.float32, "tensor(uint8)": np.uint8, "tensor(float16)": np.float16}

Box = tuple[str, float, float, float, float, float]  # class, score, x1, y1, x2, y2 in pixels of the picture


@dataclass(frozen=True)
class View:
    """A tile as a model sees it: its bands, where they hold data, and the picture's levels."""

    tile: Tile
    bands: Mapping[str, np.ndarray]
    valid: np.ndarray
    levels: Mapping[str, Sequence[float]]


def segment(
    session: Any, contract: Contract, view: View, batch: int, checkpoint: Callable[[], None]
) -> dict[str, np.ndarray]:
    """A plane of the tile's core for each class that the contract tells."""
    tile, core, margin = view.tile, contract.core, contract.margin
    planes = {name: np.zeros((tile.height, tile.width), np.uint8) for name in contract.told}
    columns = range(tile.x // core * core, tile.x + tile.width, core)
    rows = range(tile.y // core * core, tile.y + tile.height, core)
    wanted = [str(contract.outputs.get("mask", session.get_outputs()[0].name))]
    for places, answers in _windows(session, contract, view, [(x, y) for y in rows for x in columns], batch, wanted):
        checkpoint()
        for (x, y), answer in zip(places, answers[0], strict=True):
            inner = slice(margin, margin + core)
            for name, sure in _probabilities(contract, answer):
                seen = sure[inner, inner]
                left, top = max(x, tile.x), max(y, tile.y)
                right, bottom = min(x + core, tile.x + tile.width), min(y + core, tile.y + tile.height)
                here = seen[top - y : bottom - y, left - x : right - x]
                mine = planes[name][top - tile.y : bottom - tile.y, left - tile.x : right - tile.x]
                mine[:] = np.where(here > 0, np.round(1 + 254 * np.clip(here, 0, 1)), 0).astype(np.uint8)
    valid = view.valid[tile.core]
    return {name: plane * valid for name, plane in planes.items()}


def detect(
    session: Any, contract: Contract, view: View, batch: int, least: float, checkpoint: Callable[[], None]
) -> list[Box]:
    """The boxes whose middle lies in the core of a window that begins in this tile's core."""
    tile, core, margin = view.tile, contract.core, contract.margin
    columns = range(-(-tile.x // core) * core, tile.x + tile.width, core)
    rows = range(-(-tile.y // core) * core, tile.y + tile.height, core)
    names = {output.name for output in session.get_outputs()}
    boxes_of, scores_of, ids_of = (contract.outputs.get(key, key) for key in ("boxes", "scores", "class_ids"))
    wanted = [boxes_of, scores_of, *({ids_of} & names)]
    found: list[Box] = []
    for places, answers in _windows(session, contract, view, [(x, y) for y in rows for x in columns], batch, wanted):
        checkpoint()
        for n, (x, y) in enumerate(places):
            boxes, scores = (np.asarray(answer[n], np.float64) for answer in answers[:2])
            ids = np.asarray(answers[2][n], int) if len(answers) > 2 else np.zeros(len(scores), int)
            middle = (boxes[:, :2] + boxes[:, 2:]) / 2 - margin
            mine = (scores >= least) & (middle >= 0).all(1) & (middle < core).all(1)
            for box, score, class_id in zip(boxes[mine], scores[mine], ids[mine], strict=True):
                name = contract.classes[class_id] if 0 <= class_id < len(contract.classes) else None
                x1, y1, x2, y2 = (box + np.array([x, y, x, y]) - margin).round(2).tolist()
                if name is not None and x2 > x1 and y2 > y1 and _is_valid(view, (x1 + x2) / 2, (y1 + y2) / 2):
                    found.append((name, round(float(score), 4), x1, y1, x2, y2))
    return found


def _is_valid(view: View, x: float, y: float) -> bool:
    column, row = int(x) - view.tile.left, int(y) - view.tile.top
    inside = 0 <= row < view.valid.shape[0] and 0 <= column < view.valid.shape[1]
    return inside and bool(view.valid[row, column])


def _windows(
    session: Any, contract: Contract, view: View, places: list[tuple[int, int]], batch: int, wanted: Sequence[str]
) -> Iterator[tuple[list[tuple[int, int]], list[np.ndarray]]]:
    """The answers for some windows, each named by its core's first column and row; empty ones are left out."""
    given = session.get_inputs()[0]
    kind = TYPES.get(given.type)
    if kind is None:
        raise BadInput(f"The model {contract.name} takes {given.type}; float, float16 and uint8 are offered.")
    if isinstance(given.shape[0], int):
        batch = given.shape[0]
    prepared = _normalised(contract, view, as_is=kind is np.uint8)
    waiting: list[tuple[tuple[int, int], np.ndarray]] = []
    for place in places:
        cut, valid = _cut(prepared, view, place, contract)
        if valid.any():
            waiting.append((place, cut))
        if waiting and (len(waiting) == batch or place == places[-1]):
            yield _ask(session, contract, given.name, waiting, batch, kind, wanted)
            waiting = []
    if waiting:
        yield _ask(session, contract, given.name, waiting, batch, kind, wanted)


def _ask(
    session: Any, contract: Contract, given: str, waiting: list[Any], batch: int, kind: Any, wanted: Sequence[str]
) -> tuple[list[tuple[int, int]], list[np.ndarray]]:
    pixels = np.stack([cut for _, cut in waiting])
    if contract.layout == "nhwc":
        pixels = pixels.transpose(0, 2, 3, 1)
    if len(pixels) < batch and isinstance(session.get_inputs()[0].shape[0], int):
        pixels = np.concatenate([pixels, np.zeros((batch - len(pixels), *pixels.shape[1:]), pixels.dtype)])
    try:
        answers = session.run(list(wanted), {given: np.ascontiguousarray(pixels.astype(kind))})
    except Exception as error:
        line = (str(error).strip().splitlines() or ["no reason given"])[0][:200]
        raise BadInput(f"The model {contract.name} does not fit its contract in models.yaml: {line}") from error
    return [place for place, _ in waiting], [answer[: len(waiting)] for answer in answers]


def _normalised(contract: Contract, view: View, as_is: bool) -> np.ndarray:
    """Channels first; zero where there is no data."""
    pixels = np.stack([view.bands[name] for name in contract.bands]).astype(np.float32)
    if contract.divide == "levels":
        for n, name in enumerate(contract.bands):
            low, _, high = view.levels[name]
            pixels[n] = np.clip((pixels[n] - low) / max(high - low, 1e-6), 0, 1)
    else:
        pixels /= float(contract.divide)
    if contract.mean:
        pixels -= np.array(contract.mean, np.float32)[:, None, None]
    if contract.std:
        pixels /= np.array(contract.std, np.float32)[:, None, None]
    if as_is:
        pixels = np.clip(np.round(pixels), 0, 255)
    found: np.ndarray = pixels * view.valid
    return found


def _cut(pixels: np.ndarray, view: View, place: tuple[int, int], contract: Contract) -> tuple[np.ndarray, np.ndarray]:
    """One window; beyond the picture's edge lies nothing."""
    x, y = place[0] - contract.margin - view.tile.left, place[1] - contract.margin - view.tile.top
    size = contract.size
    cut, valid = np.zeros((len(pixels), size, size), np.float32), np.zeros((size, size), bool)
    rows = slice(max(0, y), min(pixels.shape[1], y + size))
    columns = slice(max(0, x), min(pixels.shape[2], x + size))
    if rows.start < rows.stop and columns.start < columns.stop:
        to = (slice(rows.start - y, rows.stop - y), slice(columns.start - x, columns.stop - x))
        cut[:, to[0], to[1]] = pixels[:, rows, columns]
        valid[to] = view.valid[rows, columns]
    return cut, valid


def _probabilities(contract: Contract, answer: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """How sure the model is of each told class, for each pixel; 0 where it is not sure enough."""
    size, count = contract.size, len(contract.classes)
    if answer.shape in ((size, size), (1, size, size)) and answer.dtype.kind in "iu":  # class numbers
        numbers = answer.reshape(size, size)
        for n, name in enumerate(contract.classes):
            if name is not None:
                yield name, (numbers == n).astype(np.float32)
        return
    if answer.shape == (size, size, count) and answer.shape != (count, size, size):
        answer = answer.transpose(2, 0, 1)
    if answer.shape == (size, size):
        answer = answer[None]
    if answer.shape != (count, size, size):
        raise BadInput(
            f"The model {contract.name} answers {answer.shape} for a window; its contract says {(count, size, size)}."
        )
    sure = _activate(answer.astype(np.float32), contract.activation)
    best = np.ones(sure.shape, bool)
    if count > 1 and contract.activation != "sigmoid":
        best = np.arange(count)[:, None, None] == sure.argmax(axis=0)
    for n, name in enumerate(contract.classes):
        if name is not None:
            yield name, np.where(best[n] & (sure[n] >= contract.threshold), sure[n], 0)


def _activate(answer: np.ndarray, activation: str) -> np.ndarray:
    if activation == "sigmoid":
        return np.asarray(1 / (1 + np.exp(-np.clip(answer, -60, 60))))
    if activation == "softmax":
        power = np.exp(answer - answer.max(axis=0))
        return np.asarray(power / power.sum(axis=0))
    return answer
