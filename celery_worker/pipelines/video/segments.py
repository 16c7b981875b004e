"""A piece of a source on its way to inference: raw frames of the model's size and, for some tasks, larger ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np

FRAMES = 1_000  # a segment holds no more, however long it may be: 300 MB
PICTURE_SIDE = 960  # the longer side of the larger frames: a person may be small in them
PICTURE_BYTES = 128 << 20  # of the larger frames of one segment


def picture_size(size: tuple[int, int]) -> tuple[int, int]:
    """Width and height of the larger frames of a source."""
    scale = min(1.0, PICTURE_SIDE / max(size))
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def most_frames(size: tuple[int, int], with_pictures: bool) -> int:
    """How many frames of a source one segment may hold."""
    width, height = picture_size(size)
    return max(1, min(FRAMES, PICTURE_BYTES // (width * height * 3))) if with_pictures else FRAMES


class Segment:
    """Files of raw frames; a held frame is written once and shown again."""

    def __init__(self, folder: Path, source: int, first: int, larger: tuple[int, int] | None) -> None:
        self.source, self.first = source, first
        self.shown: list[int] = []
        self._larger = larger
        self.files = {"frames": folder / f"{source}.{first}.bin"}
        self._frames = self.files["frames"].open("wb")
        if larger:
            self.files["pictures"] = folder / f"{source}.{first}.rgb"
            self._pictures = self.files["pictures"].open("wb")

    def __len__(self) -> int:
        return len(self.shown)

    def add(self, canvas: np.ndarray, rgb: np.ndarray, fresh: bool) -> None:
        """The next frame of the source, in the model's size and in its own; not `fresh`: as the one before."""
        if not fresh and self.shown:
            self.shown.append(self.shown[-1])
            return
        self._frames.write(canvas.data)
        if self._larger:
            small = cv2.resize(rgb, self._larger, interpolation=cv2.INTER_AREA)
            self._pictures.write(np.ascontiguousarray(small).data)
        self.shown.append(self.shown[-1] + 1 if self.shown else 0)

    def close(self) -> None:
        """The files are whole."""
        self._frames.close()
        if self._larger:
            self._pictures.close()

    def payload(self, size: tuple[int, int]) -> dict[str, Any]:
        """What inference is told of it."""
        told: dict[str, Any] = {"source": self.source, "first": self.first, "shown": self.shown, "size": size}
        return {**told, "pictures": self._larger} if self._larger else told
