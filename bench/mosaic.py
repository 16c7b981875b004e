"""Makes a large picture for the benches: hills, lakes and woods from smooth noise, four bands of bytes, by windows."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import rasterio
from affine import Affine
from rasterio.windows import Window

BLOCK, SEED, LUMP = 512, 5, 60  # pixels of a window; of the smallest hill
GROUND, GRASS, WATER = (110, 115, 120, 140), (40, 70, 50, 160), (60, 55, 35, 12)  # blue, green, red, nir


def make(path: Path, side: int) -> Path:
    """A mosaic of side x side pixels of half a metre, with a strip of nodata along its east."""
    rng = np.random.default_rng(SEED)
    coarse = [rng.normal(size=(side // LUMP + 4,) * 2).astype(np.float32) for _ in range(2)]
    grain = rng.normal(0, 5, (BLOCK, BLOCK)).astype(np.float32)
    with rasterio.open(
        path, "w", driver="GTiff", width=side, height=side, count=4, dtype="uint8", crs="EPSG:32631", tiled=True,
        blockxsize=BLOCK, blockysize=BLOCK, compress="deflate", zlevel=1, nodata=0, photometric="minisblack",
        transform=Affine(0.5, 0, 590_000, 0, -0.5, 5_750_000),
    ) as file:  # fmt: skip
        file.descriptions = ("blue", "green", "red", "nir")
        for y in range(0, side, BLOCK):
            for x in range(0, side, BLOCK):
                wide, high = min(BLOCK, side - x), min(BLOCK, side - y)
                wet, green = (_field(field, x, y, wide, high) for field in coarse)
                bands = np.empty((4, high, wide), np.float32)
                for n in range(4):
                    bands[n] = np.where(wet > 0.6, WATER[n], np.where(green > 0.2, GRASS[n], GROUND[n]))
                bands = np.clip(bands + grain[:high, :wide], 1, 255)
                bands[:, :, max(0, side - side // 50 - x) :] = 0
                file.write(bands.astype(np.uint8), window=Window(x, y, wide, high))
    return path


def _field(coarse: np.ndarray, x: int, y: int, wide: int, high: int) -> np.ndarray:
    """A piece of smooth noise; it goes on without a seam in the next piece."""
    shrink = np.array([[1 / LUMP, 0, x / LUMP + 1], [0, 1 / LUMP, y / LUMP + 1]], np.float32)
    return cv2.warpAffine(coarse, shrink, (wide, high), flags=cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP)
