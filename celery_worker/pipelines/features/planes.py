"""From tiles to planes of the whole picture, on disk, and back by strips of rows. Never a plane in memory.

A tile's planes travel in one file, each deflated by itself; an empty one takes no bytes.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

STRIP = 256  # rows: the same for every picture, so that no result depends on the tiles


def pack(planes: Sequence[np.ndarray], path: Path) -> list[int]:
    """Write the planes of one tile; returns how many bytes each took."""
    lengths = []
    with path.open("wb") as file:
        for plane in planes:
            lengths.append(file.write(zlib.compress(plane.tobytes(), 1)) if plane.any() else 0)
    return lengths


def unpack(path: Path, lengths: Sequence[int], shape: tuple[int, int]) -> Iterator[np.ndarray | None]:
    """The planes of one tile, in order; None for an empty one."""
    with path.open("rb") as file:
        for length in lengths:
            data = file.read(length)
            yield np.frombuffer(zlib.decompress(data), np.uint8).reshape(shape) if length else None


class Planes:
    """One byte for each pixel and class of a picture, in a folder. The first is where the picture holds data."""

    def __init__(self, folder: Path, count: int, width: int, height: int) -> None:
        self.width, self.height, self.count = width, height, count
        self.used = [False] * count  # a plane without a single pixel has no bytes
        self._paths = [folder / f"plane-{n}" for n in range(count)]

    def fill(
        self, parts: Sequence[Mapping[str, Any]], open_: Callable[[str], Path], checkpoint: Callable[[], None]
    ) -> None:
        """Put every tile in its place, one row of tiles at a time."""
        rows: dict[int, list[Mapping[str, Any]]] = {}
        for part in parts:
            rows.setdefault(part["y"], []).append(part)
        files = [path.open("wb") for path in self._paths]
        try:
            for y, row in sorted(rows.items()):
                checkpoint()
                band = np.zeros((self.count, max(part["height"] for part in row), self.width), np.uint8)
                touched = [False] * self.count
                for part in row:
                    where = slice(part["x"], part["x"] + part["width"])
                    shape = (part["height"], part["width"])
                    for n, plane in enumerate(unpack(open_(part["planes"]), part["lengths"], shape)):
                        if plane is not None:
                            band[n, : shape[0], where] = plane
                            touched[n] = True
                for n, file in enumerate(files):
                    if touched[n]:
                        self.used[n] = True
                        file.seek(y * self.width)
                        file.write(band[n])
        finally:
            for path, file in zip(self._paths, files, strict=True):
                file.close()
                with path.open("r+b") as whole:
                    whole.truncate(self.width * self.height)  # what no tile wrote is zero, and takes no disk

    @property
    def strips(self) -> list[tuple[int, int]]:
        """First row and number of rows of each strip."""
        return [(y, min(STRIP, self.height - y)) for y in range(0, self.height, STRIP)]

    def read(self, number: int, y: int, rows: int) -> np.ndarray:
        """A strip of a plane."""
        found = np.fromfile(self._paths[number], np.uint8, rows * self.width, offset=y * self.width)
        return found.reshape(rows, self.width)

    def discard(self) -> None:
        """Give the disk back."""
        for path in self._paths:
            path.unlink(missing_ok=True)
