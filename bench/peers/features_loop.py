"""The peer of `make bench-features`: what someone would write by hand to find water and vegetation in a large GeoTIFF.

One process: reads windows with a margin, blurs, thresholds and cleans with the same libraries, writes the masks by
windows, then polygonises each whole mask, drops slivers, simplifies, measures, and writes the same four artifacts.
`python -m bench.peers.features_loop PICTURE FOLDER` prints the seconds and the features. It shares no code with the
pipeline.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pyogrio
import pyproj
import rasterio
import rasterio.features
import rasterio.shutil
import shapely
from rasterio.windows import Window

SIDE, MARGIN = 1024, 16
KERNEL = np.ones((3, 3), np.uint8)
LEAST_M2 = 20.0


def main(picture: Path, folder: Path) -> dict[str, float]:
    """One picture, start to end."""
    cv2.setNumThreads(1)
    began = time.monotonic()
    folder.mkdir(parents=True, exist_ok=True)
    with rasterio.open(picture) as file:
        profile = {"driver": "GTiff", "width": file.width, "height": file.height, "count": 3, "dtype": "uint8",
                   "crs": file.crs, "transform": file.transform, "tiled": True, "compress": "deflate"}  # fmt: skip
        shrink = max(1, max(file.shape) // 1_600)
        preview = np.zeros((-(-file.height // shrink), -(-file.width // shrink), 3), np.uint8)
        with rasterio.open(folder / "masks.tif", "w", **profile) as masks:
            for y in range(0, file.height, SIDE):
                for x in range(0, file.width, SIDE):
                    _window(file, masks, preview, shrink, x, y)
        crs, transform, size = file.crs, file.transform, (file.width, file.height)
    count = _outlines(folder, crs, transform, size, preview, shrink)
    (folder / "masks.tif").unlink()
    return {"seconds": time.monotonic() - began, "features": count}


def _window(file, masks, preview, shrink: int, x: int, y: int) -> None:
    """Masks of one window, from more pixels than it has."""
    left, top = max(0, x - MARGIN), max(0, y - MARGIN)
    right, bottom = min(file.width, x + SIDE + MARGIN), min(file.height, y + SIDE + MARGIN)
    bands = file.read(window=Window(left, top, right - left, bottom - top))
    valid = (bands != 0).any(axis=0)
    weight = np.maximum(cv2.GaussianBlur(valid.astype(np.float32), (13, 13), 1.5), 1e-6)
    green, red, nir = (cv2.GaussianBlur(bands[n] * valid.astype(np.float32), (13, 13), 1.5) / weight for n in (1, 2, 3))
    ndvi = (nir - red) / np.maximum(nir + red, 1e-6)
    ndwi = (green - nir) / np.maximum(green + nir, 1e-6)
    found = []
    for mask in (ndvi > 0.28, ndwi > 0.25):
        mask = cv2.morphologyEx((mask & valid).astype(np.uint8), cv2.MORPH_OPEN, KERNEL)
        found.append(cv2.morphologyEx(mask, cv2.MORPH_CLOSE, KERNEL) * valid)
    core = (slice(y - top, min(y + SIDE, file.height) - top), slice(x - left, min(x + SIDE, file.width) - left))
    planes = np.stack([*(mask[core] for mask in found), valid[core].astype(np.uint8)])
    masks.write(planes, window=Window(x, y, planes.shape[2], planes.shape[1]))
    first = (-y % shrink, -x % shrink)
    small = bands[2::-1][:, core[0], core[1]][:, first[0] :: shrink, first[1] :: shrink].transpose(1, 2, 0)
    at = (-(-y // shrink), -(-x // shrink))
    preview[at[0] : at[0] + small.shape[0], at[1] : at[1] + small.shape[1]] = small


def _outlines(folder: Path, crs, transform, size, preview, shrink: int) -> int:
    """Polygons of both masks, and everything that is kept."""
    to_degrees = pyproj.Transformer.from_crs(crs, 4326, always_xy=True)
    features, shapes, names, areas = [], [], [], []
    classes = np.zeros((size[1], size[0]), np.uint8)
    with rasterio.open(folder / "masks.tif") as masks:
        classes[masks.read(3) == 0] = 255
        for number, name in enumerate(("vegetation", "water"), 1):
            mask = masks.read(number)
            kept = rasterio.features.sieve(mask, round(LEAST_M2 / transform.a**2), connectivity=4)
            classes[kept > 0] = number
            for shape, _ in rasterio.features.shapes(kept, kept > 0, connectivity=4, transform=transform):
                polygon = shapely.simplify(shapely.geometry.shape(shape), transform.a)
                lonlat = shapely.transform(polygon, lambda xy: np.stack(to_degrees.transform(*xy.T), 1).round(7))
                outline = json.loads(shapely.to_geojson(shapely.orient_polygons(lonlat)))
                told = {"class": name, "area": polygon.area}
                features.append({"type": "Feature", "properties": told, "geometry": outline})
                shapes.append(polygon)
                names.append(name)
                areas.append(polygon.area)
                ring = shapely.get_coordinates(
                    shapely.transform(polygon, lambda xy: np.stack(~transform @ tuple(xy.T), 1))
                )
                cv2.polylines(preview, [np.round(ring / shrink).astype(np.int32)], True, (255, 0, 0))
    (folder / "features.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    columns = [np.array(names, object), np.array(areas)]
    pyogrio.raw.write(
        folder / "features.gpkg", shapely.to_wkb(np.array(shapes, object)), columns, ["class", "area"], driver="GPKG",
        geometry_type="Polygon", crs=crs.to_wkt(),
    )  # fmt: skip
    cv2.imwrite(str(folder / "preview.png"), np.ascontiguousarray(preview[..., ::-1]))
    profile = {"driver": "COG", "width": size[0], "height": size[1], "count": 1, "dtype": "uint8", "crs": crs,
               "transform": transform, "nodata": 255, "compress": "deflate"}  # fmt: skip
    with rasterio.open(folder / "classes.tif", "w", **profile) as file:
        file.write(classes, 1)
    return len(features)


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), Path(sys.argv[2]))))
