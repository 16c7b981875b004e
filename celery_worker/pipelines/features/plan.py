"""Cuts a picture into tiles: their cores cover it once, and each reads as far around as its filters and models look."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from rasterio.windows import Window

from jobs.errors import BadInput
from jobs.model import MAX_PARTS

SIDES = (1024, 512, 256, 128, 64)  # what a tile may have where nobody asks
TILE_BYTES = 96 * 1024 * 1024  # of one tile as 32 bits a value; its filters take a few times that


@dataclass(frozen=True)
class Tile:
    """One part. Its core is x, y, width, height in pixels of the picture; what is read reaches further."""

    x: int
    y: int
    width: int
    height: int
    left: int
    top: int
    right: int
    bottom: int

    @property
    def window(self) -> Window:
        """What is read."""
        return Window(self.left, self.top, self.right - self.left, self.bottom - self.top)

    @property
    def core(self) -> tuple[slice, slice]:
        """Rows and columns of the core in what is read."""
        y, x = self.y - self.top, self.x - self.left
        return slice(y, y + self.height), slice(x, x + self.width)


def side_of(asked: int | None, width: int, height: int, bands: int, halo: int) -> int:
    """Pixels on a side of a tile: as asked, and less where memory asks for it. Raises BadInput for too many parts."""
    sides = (asked, *(side for side in SIDES if side < asked)) if asked else SIDES
    side = next((side for side in sides if (side + 2 * halo) ** 2 * (bands + 1) * 4 <= TILE_BYTES), sides[-1])
    parts = -(-width // side) * -(-height // side)
    if parts > MAX_PARTS:
        raise BadInput(f"Tiles of {side} pixels make {parts:,} parts; at most {MAX_PARTS:,}: raise tile.")
    return side


def tiles(width: int, height: int, side: int, halo: int) -> Iterator[Tile]:
    """Row by row, from the top left."""
    for y in range(0, height, side):
        for x in range(0, width, side):
            wide, high = min(side, width - x), min(side, height - y)
            yield Tile(
                x, y, wide, high,
                left=max(0, x - halo), top=max(0, y - halo),
                right=min(width, x + wide + halo), bottom=min(height, y + high + halo),
            )  # fmt: skip
