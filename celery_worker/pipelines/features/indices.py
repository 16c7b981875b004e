"""Masks by spectral indices. Each pixel's answer depends on its neighbours within a class's reach, and on no tile.

A plane has a byte for each pixel: 0 where the class is not, else how sure it is, 1 to 255. Thresholds are the same for
the whole picture: relative to a tile they would shred what is larger than one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import cv2
import numpy as np

from celery_worker.pipelines.features.bands import need

cv2.setNumThreads(1)  # every core has a child of its own; a pool in each would fight for them

BLUR, BLUR_REACH = 1.5, 6
TEXTURE, TEXTURE_REACH = 2.5, 10
TOP_HAT = 31  # pixels: what is broader is no roof or road, it is the ground
CLEAN_REACH = 4  # opening and closing by 3 x 3
PLAIN_REACH = BLUR_REACH + CLEAN_REACH

CANOPY_TEXTURE = 0.20  # deviation from the mean of the neighbourhood, as a share of it
BRIGHT, BRIGHT_NDVI = 0.20, 0.10
POOL_HUE, POOL_SATURATION, POOL_VALUE = (160.0, 215.0), 0.30, 0.35
RGB = ("red", "green", "blue")
Plane = np.ndarray


@dataclass(frozen=True)
class Scene:
    """What a class may look at: the bands as 32 bits a value, where they hold data, and levels of the whole picture.

    `levels` are the 2nd, 50th and 98th percentile of each band.
    """

    bands: Mapping[str, np.ndarray]
    valid: np.ndarray
    levels: Mapping[str, Sequence[float]]
    params: Mapping[str, Any]

    @cached_property
    def weight(self) -> np.ndarray:
        """How much of a blurred pixel's neighbourhood holds data."""
        found: np.ndarray = np.maximum(_gauss(self.valid.astype(np.float32), BLUR, BLUR_REACH), 1e-6)
        return found

    @cached_property
    def _smoothed(self) -> dict[str, np.ndarray]:
        return {}

    def smooth(self, name: str) -> np.ndarray:
        """A band, blurred over the pixels that hold data."""
        if name not in self._smoothed:
            self._smoothed[name] = _gauss(self.bands[name] * self.valid, BLUR, BLUR_REACH) / self.weight
        return self._smoothed[name]

    @cached_property
    def vegetation_index(self) -> np.ndarray:
        """NDVI; where there is no near infrared, the green leaf index."""
        see = self.smooth
        if "nir" in self.bands:
            return _index(see("nir") - see("red"), see("nir") + see("red"))
        rest = see("red") + see("blue")
        return _index(2 * see("green") - rest, 2 * see("green") + rest)

    @cached_property
    def vegetation(self) -> np.ndarray:
        """Where it grows."""
        return _clean(self.vegetation_index > self.vegetation_threshold, self.valid)

    @property
    def vegetation_threshold(self) -> float:
        return float(self.params["ndvi" if "nir" in self.bands else "gli"])

    @cached_property
    def water_index(self) -> np.ndarray:
        """NDWI."""
        see = self.smooth
        return _index(see("green") - see("nir"), see("green") + see("nir"))

    def relative(self, name: str) -> np.ndarray:
        """A blurred band, 0 at its darkest and 1 at its brightest, but for the extremes."""
        low, _, high = self.levels[name]
        found: np.ndarray = (self.smooth(name) - low) / max(high - low, 1e-6)
        return found


def _vegetation(scene: Scene) -> Plane:
    return _plane(scene.vegetation, scene.vegetation_index, scene.vegetation_threshold, 1.0)


def _canopy(scene: Scene) -> Plane:
    """Vegetation that is rough, as crowns are and grass is not; what does not grow is no part of the roughness."""
    grows = scene.vegetation.astype(np.float32)
    weight = np.maximum(_gauss(grows, TEXTURE, TEXTURE_REACH), 1e-6)
    green = scene.bands["green" if "green" in scene.bands else "red"] * grows
    mean = _gauss(green, TEXTURE, TEXTURE_REACH) / weight
    square = _gauss(green * green, TEXTURE, TEXTURE_REACH) / weight
    rough = np.sqrt(np.maximum(square - mean * mean, 0)) / np.maximum(np.abs(mean), 1e-6)
    return _plane(_clean(scene.vegetation & (rough > CANOPY_TEXTURE), scene.valid), rough, CANOPY_TEXTURE, 0.6)


def _water(scene: Scene) -> Plane:
    threshold = float(scene.params["ndwi"])
    return _plane(_clean(scene.water_index > threshold, scene.valid), scene.water_index, threshold, 1.0)


def _pool(scene: Scene) -> Plane:
    """The blue-green of lit water in a basin; how large it is decides afterwards."""
    red, green, blue = (np.clip(scene.relative(name), 0, 1) for name in RGB)
    hsv = cv2.cvtColor(np.dstack([red, green, blue]).astype(np.float32), cv2.COLOR_RGB2HSV)
    hue, saturation, value = hsv[..., 0], hsv[..., 1], hsv[..., 2]
    is_pool = (hue > POOL_HUE[0]) & (hue < POOL_HUE[1]) & (saturation > POOL_SATURATION) & (value > POOL_VALUE)
    return _plane(_clean(is_pool, scene.valid), saturation, POOL_SATURATION, 1.0)


def _bright(scene: Scene) -> Plane:
    """Brighter than what lies around it, and nothing grows there."""
    names = RGB if all(name in scene.bands for name in RGB) else ("red",)
    light = np.mean([scene.relative(name) for name in names], axis=0, dtype=np.float32) * scene.valid
    kernel = np.ones((TOP_HAT, TOP_HAT), np.uint8)
    stands_out = cv2.morphologyEx(np.clip(light, 0, 2), cv2.MORPH_TOPHAT, kernel)
    return _plane(_clean((stands_out > BRIGHT) & (scene.vegetation_index < BRIGHT_NDVI), scene.valid),
                  stands_out, BRIGHT, 1.0)  # fmt: skip


@dataclass(frozen=True)
class Index:
    """A class that needs no model. `sizes`: what is smaller or larger, in m², is something else.

    `reach`: how far around a pixel its answer looks.
    """

    name: str
    plane: Callable[[Scene], Plane]
    needs: Sequence[Sequence[str]]  # one of these sets of bands
    sizes: tuple[float, float | None] = (0.0, None)
    reach: int = PLAIN_REACH


# In the class map a later one hides an earlier one.
INDICES = {
    index.name: index
    for index in (
        Index("vegetation", _vegetation, (("red", "nir"), RGB)),
        Index("bright-impervious", _bright, (("red", "nir"), RGB), reach=PLAIN_REACH + TOP_HAT - 1),
        Index("water", _water, (("green", "nir"),)),
        Index("pool", _pool, (RGB,), (8.0, 400.0)),
        Index("canopy", _canopy, (("red", "nir"), RGB), reach=PLAIN_REACH + TEXTURE_REACH + CLEAN_REACH),
    )
}


def bands_of(name: str, bands: Sequence[str]) -> set[str]:
    """The bands of a picture that a class looks at. Raises BadInput where none of its sets is there."""
    needs = INDICES[name].needs
    found = next((wanted for wanted in needs if set(wanted) <= set(bands)), None)
    if found is None:
        need(bands, needs[0], f"The class {name}")
    looks = {*(found or ())}
    if name == "bright-impervious" and set(RGB) <= set(bands):
        looks.update(RGB)
    if name == "canopy" and "green" in bands:
        looks.add("green")
    return looks


def _gauss(values: np.ndarray, sigma: float, reach: int) -> np.ndarray:
    """Outside of the picture lies nothing, as in a pixel without data."""
    side = 2 * reach + 1
    return cv2.GaussianBlur(values, (side, side), sigma, borderType=cv2.BORDER_CONSTANT)


def _index(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    found: np.ndarray = np.clip(part / np.where(whole > 0, whole, np.inf), -1, 1)
    return found


def _clean(mask: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Without specks and pinholes, and without what holds no data."""
    kernel = np.ones((3, 3), np.uint8)
    plain = (mask & valid).astype(np.uint8)
    opened = cv2.morphologyEx(plain, cv2.MORPH_OPEN, kernel)
    closed: np.ndarray = (cv2.morphologyEx(opened, cv2.MORPH_CLOSE, kernel) > 0) & valid
    return closed


def _plane(mask: np.ndarray, index: np.ndarray, threshold: float, best: float) -> Plane:
    """How far beyond its threshold: a half just there, one at the best."""
    sure = 0.5 + 0.5 * np.clip((index - threshold) / max(best - threshold, 1e-6), 0, 1)
    found: np.ndarray = np.where(mask, np.round(1 + 254 * sure), 0).astype(np.uint8)
    return found
