"""What is kept of the features: GeoJSON as RFC 7946 says, a GeoPackage, and the class map. All written as they come."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyogrio
import rasterio
import rasterio.shutil
import shapely
from rasterio.windows import Window

from celery_worker.pipelines.features.ground import Ground
from celery_worker.pipelines.features.picture import ENVIRONMENT
from celery_worker.pipelines.features.planes import STRIP
from jobs.errors import BadInput

MAX_FEATURES = 1_000_000
GPKG_VERSION = "1.2"  # a newer one has nothing that we need, and GDAL before 3.7 warns of it
GPKG_BATCH = 20_000  # features between two openings of the file
NO_DATA = 255

# A GeoPackage carries the time of its last change: with one that stands still, the same input gives the same file.
pyogrio.set_gdal_config_options({"OGR_CURRENT_DATE": "2000-01-01T00:00:00.000Z", "OGR_SQLITE_SYNCHRONOUS": "OFF"})


class Features:
    """Writes features.geojson and features.gpkg, and counts."""

    def __init__(self, folder: Path, ground: Ground) -> None:
        self.geojson, self.geopackage = folder / "features.geojson", folder / "features.gpkg"
        self.counts: dict[str, int] = {}
        self.areas: dict[str, float] = {}
        self._ground = ground
        self._file = self.geojson.open("w")
        self._file.write(f'{{"type": "FeatureCollection", "bbox": {ground.bounds}, "features": [')
        self._batch: list[tuple[np.ndarray, dict[str, np.ndarray]]] = []
        self._wait = 0
        self._made = False

    @property
    def count(self) -> int:
        """How many so far."""
        return sum(self.counts.values())

    def add(self, name: str, polygons: np.ndarray, scores: np.ndarray) -> None:
        """Some features of one class, as polygons in pixels of the picture."""
        if not len(polygons):
            return
        areas, perimeters = (np.round(values, 2) for values in self._ground.measure(polygons))
        scores = np.round(scores, 4)
        first = self.count
        if first + len(polygons) > MAX_FEATURES:
            raise BadInput(f"The picture gives more than {MAX_FEATURES:,} features: raise min_area.")
        shapes = shapely.to_geojson(self._ground.degrees(polygons))
        for n, shape in enumerate(shapes):
            told = {"class": name, "area": areas[n], "perimeter": perimeters[n], "score": scores[n]}
            head = f'{{"type": "Feature", "id": {first + n + 1}, "properties": {json.dumps(told)}, "geometry": '
            self._file.write((",\n" if first + n else "\n") + head + shape + "}")
        self.counts[name] = self.counts.get(name, 0) + len(polygons)
        self.areas[name] = self.areas.get(name, 0.0) + float(areas.sum())
        table = {
            "class": np.full(len(polygons), name, object),
            "area": areas,
            "perimeter": perimeters,
            "score": scores,
        }
        self._batch.append((shapely.to_wkb(self._ground.map_(polygons)), table))
        self._wait += len(polygons)
        if self._wait >= GPKG_BATCH:
            self._flush()

    def close(self) -> None:
        """Both files, whole."""
        self._file.write("\n]}\n")
        self._file.close()
        if self._batch or not self._made:
            self._flush()

    def _flush(self) -> None:
        shapes = np.concatenate([shape for shape, _ in self._batch]) if self._batch else np.empty(0, object)
        columns = ("class", "area", "perimeter", "score")
        types = (object, float, float, float)
        table = [
            np.concatenate([table[name] for _, table in self._batch]) if self._batch else np.empty(0, kind)
            for name, kind in zip(columns, types, strict=True)
        ]
        pyogrio.raw.write(
            self.geopackage, shapes, table, columns, driver="GPKG", layer="features", geometry_type="Polygon",
            crs=self._ground.crs.to_wkt(), append=self._made, dataset_options={"VERSION": GPKG_VERSION},
        )  # fmt: skip
        self._made, self._batch, self._wait = True, [], 0


class ClassMap:
    """A class for each pixel, 0 for none, 255 without data; written by strips, kept as a Cloud Optimized GeoTIFF."""

    def __init__(self, folder: Path, names: Sequence[str], width: int, height: int, ground: Ground) -> None:
        self._aside, self.path = folder / "classes-aside.tif", folder / "classes.tif"
        self._environment = rasterio.Env(**ENVIRONMENT)
        self._width = width
        with self._environment:
            self._file = rasterio.open(
                self._aside, "w", driver="GTiff", width=width, height=height, count=1, dtype="uint8",
                crs=ground.crs.to_wkt(), transform=ground.transform, nodata=NO_DATA, tiled=True, blockxsize=STRIP,
                blockysize=STRIP, compress="deflate", zlevel=1, bigtiff="if_safer", sparse_ok=False,
            )  # fmt: skip
            self._file.write_colormap(1, colours(names))
            self._file.update_tags(1, **{f"class_{n}": name for n, name in enumerate(names, 1)})

    def write(self, y: int, strip: np.ndarray) -> None:
        """The strip that begins in this row."""
        with self._environment:
            self._file.write(strip, 1, window=Window(0, y, self._width, len(strip)))

    def close(self) -> None:
        """Bring it into the order that can be read over a network, with smaller copies of itself."""
        with self._environment:
            self._file.close()
            rasterio.shutil.copy(
                self._aside, self.path, driver="COG", compress="deflate", overview_resampling="mode", blocksize=512
            )
        self._aside.unlink()


PALETTE: dict[str, tuple[int, int, int]] = {
    "vegetation": (122, 201, 67),
    "canopy": (22, 120, 60),
    "water": (41, 128, 220),
    "pool": (0, 220, 220),
    "bright-impervious": (240, 160, 60),
}
OTHERS = ((230, 60, 60), (240, 220, 50), (190, 90, 220), (255, 130, 190), (150, 100, 60), (120, 120, 255))


def colour(names: Sequence[str], number: int) -> tuple[int, int, int]:
    """Red, green and blue of a class, the same in every picture."""
    return PALETTE.get(names[number]) or OTHERS[sum(name not in PALETTE for name in names[:number]) % len(OTHERS)]


def colours(names: Sequence[str]) -> dict[int, tuple[int, ...]]:
    """The class map's colour table."""
    found: dict[int, tuple[int, ...]] = {0: (235, 235, 235, 255), NO_DATA: (0, 0, 0, 0)}
    found.update({n + 1: (*colour(names, n), 255) for n in range(len(names))})
    return found


def summary(features: Features, names: Sequence[str]) -> dict[str, Any]:
    """Counts and areas by class, zero for what was looked for and not found."""
    return {
        "counts": {name: features.counts.get(name, 0) for name in names},
        "areas": {name: round(features.areas.get(name, 0.0), 2) for name in names},
    }
