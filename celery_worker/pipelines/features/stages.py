"""Find map features in a picture: preprocess cuts tiles, inference looks at each, postprocess merges and draws."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from time import perf_counter
from typing import Any

import numpy as np
import pyproj
from affine import Affine

from celery_worker.confined import confined
from celery_worker.pipelines.features import indices
from celery_worker.pipelines.features.boxes import objects
from celery_worker.pipelines.features.components import Areas
from celery_worker.pipelines.features.export import ClassMap, Features, summary
from celery_worker.pipelines.features.ground import Ground
from celery_worker.pipelines.features.look import Box, View, detect, segment
from celery_worker.pipelines.features.looks import looks_of
from celery_worker.pipelines.features.merge import merged
from celery_worker.pipelines.features.picture import Picture, find_picture, levels_of
from celery_worker.pipelines.features.plan import Tile, side_of, tiles
from celery_worker.pipelines.features.planes import Planes, pack
from celery_worker.pipelines.features.preview import Base, Preview
from celery_worker.workbench import Workbench
from jobs.errors import BadInput

PROBE = {"inference": None}  # the models are the job's: there is nothing to measure beforehand


@confined
def preprocess(bench: Workbench, given: Mapping[str, Any]) -> dict[str, Any]:
    """Check the picture by its header, then cut it into tiles that overlap as far as their filters look."""
    began, waited = perf_counter(), 0.0
    looks = looks_of(bench.params, bench.models)
    path, world = find_picture(list(bench.inputs))
    with Picture(path, bench.params, bench.limits.max_pixels, world) as picture:
        header = picture.header
        ground = Ground(header.width, header.height, header.transform, header.crs)
        wanted = looks.bands(header, ground.pixel_side)
        side = side_of(bench.params["tile"], header.width, header.height, len(wanted), looks.halo)
        levels = levels_of(picture, wanted, bench.checkpoint)
        base = Base(header.width, header.height, wanted, levels)
        count = pixels = seen = 0
        for tile in tiles(header.width, header.height, side, looks.halo):
            values, valid = picture.read(tile.window, wanted)
            pixels += tile.width * tile.height
            if valid.any():  # also around the core: a window that begins there may see it
                seen += int(valid[tile.core].sum())
                base.add(tile, dict(zip(wanted, values, strict=True)), valid)
                file = bench.scratch / "tile.npz"
                np.savez(file, pixels=values, valid=np.packbits(valid))
                since = perf_counter()
                payload = {"tile": asdict(tile), "bands": wanted, "levels": levels}
                bench.emit(count, payload, files={"pixels": file})
                waited += perf_counter() - since
                count += 1
            bench.progress(pixels, header.width * header.height)
        if not seen:
            raise BadInput("No pixel of the picture holds data.")
        return {
            "width": header.width,
            "height": header.height,
            "bands": header.bands,
            "transform": header.transform[:6],
            "crs": header.crs.to_wkt(),
            "crs_name": _crs_name(header.crs),
            "bounds": ground.bounds,
            "pixel": round(ground.pixel_side, 4),
            "tile": side,
            "tiles": count,
            "valid": seen,
            "base": bench.keep("base.png", base.png(), listed=False),
            "seconds": round(perf_counter() - began - waited, 3),
        }


def inference(bench: Workbench, given: Mapping[str, Any]) -> dict[str, Any]:
    """The planes of one tile's core: where each class is, and how surely."""
    began = perf_counter()
    looks = looks_of(bench.params, bench.models)
    view = _view(bench, given)
    tile = view.tile
    planes = [view.valid[tile.core].view(np.uint8)]
    scene = indices.Scene(view.bands, view.valid, view.levels, bench.params)
    for name in looks.indices:
        planes.append(indices.INDICES[name].plane(scene)[tile.core])
        bench.checkpoint()
    for contract in looks.segmenting:
        found = segment(bench.model(contract.name), contract, view, bench.batch, bench.checkpoint)
        planes += [found[name] for name in contract.told]
    boxes: list[Box] = []
    for contract in looks.detecting:
        least = contract.threshold if bench.params["min_score"] is None else bench.params["min_score"]
        boxes += detect(bench.model(contract.name), contract, view, bench.batch, least, bench.checkpoint)
    file = bench.scratch / "planes.bin"
    lengths = pack(planes, file)
    return {
        "x": tile.x,
        "y": tile.y,
        "width": tile.width,
        "height": tile.height,
        "lengths": lengths,
        "planes": bench.keep("planes.bin", file, listed=False),
        "boxes": boxes,
        "device": bench.device.name,
        "seconds": round(perf_counter() - began, 3),
    }


def postprocess(bench: Workbench, parts: list[dict[str, Any]]) -> dict[str, Any]:
    """Merge across seams, measure, and keep features, class map and preview."""
    began = perf_counter()
    plan = bench.output("preprocess")
    looks = looks_of(bench.params, bench.models)
    names, width, height = looks.names, plan["width"], plan["height"]
    ground = Ground(width, height, Affine(*plan["transform"]), pyproj.CRS.from_wkt(plan["crs"]))
    planes = Planes(bench.scratch, 1 + len(looks.masks), width, height)
    planes.fill(parts, bench.open, bench.checkpoint)
    areas = {
        number: Areas(planes, number, looks.sizes(name, bench.params["min_area"], ground.pixel_area), bench.checkpoint)
        for number, name in enumerate(looks.masks, 1)
        if planes.used[number]
    }
    features = Features(bench.scratch, ground)
    preview = Preview(bench.open(plan["base"]).read_bytes(), width, names)
    class_map = ClassMap(bench.scratch, looks.masks, width, height, ground)
    pixels = dict.fromkeys(looks.masks, 0)

    def keep(number: int, polygons: np.ndarray, scores: np.ndarray) -> None:
        features.add(names[number - 1], polygons, scores)
        preview.add(number - 1, polygons)

    for strip in merged(planes, areas, names, bench.params["simplify"], keep, bench.progress):
        class_map.write(strip.y, strip.classes)
        for number, layer in strip.layers.items():
            pixels[names[number - 1]] += int(layer.pixels.sum())
    for contract in looks.detecting:
        for name in contract.told:
            mine = [tuple(box) for part in parts for box in part["boxes"] if box[0] == name]
            keep(names.index(name) + 1, *objects(mine, contract.overlap, width, height))
            bench.checkpoint()
    planes.discard()
    features.close()
    class_map.close()
    bench.keep("features.geojson", features.geojson)
    bench.keep("features.gpkg", features.geopackage)
    bench.keep("classes.tif", class_map.path)
    bench.keep("preview.png", preview.png(features.counts))
    return {
        **summary(features, names),
        "shares": {name: round(count / plan["valid"], 6) for name, count in pixels.items()},
        "size": [width, height],
        "pixel": plan["pixel"],
        "valid": round(plan["valid"] / (width * height), 6),
        "bounds": plan["bounds"],
        "crs": plan["crs_name"],
        "tiles": plan["tiles"],
        "device": ", ".join(sorted({part["device"] for part in parts})),
        "seconds": {
            "preprocess": plan["seconds"],
            "inference": round(sum(part["seconds"] for part in parts), 3),
            "postprocess": round(perf_counter() - began, 3),
        },
    }


def _view(bench: Workbench, given: Mapping[str, Any]) -> View:
    """The tile that a part is for."""
    tile = Tile(**given["tile"])
    shape = (tile.bottom - tile.top, tile.right - tile.left)
    with np.load(bench.open(given["files"]["pixels"])) as file:
        valid = np.unpackbits(file["valid"], count=shape[0] * shape[1]).reshape(shape).astype(bool)
        bands = {name: band.astype(np.float32) for name, band in zip(given["bands"], file["pixels"], strict=True)}
    return View(tile, bands, valid, given["levels"])


def _crs_name(crs: pyproj.CRS) -> str:
    code = crs.to_epsg()
    return f"EPSG:{code}" if code else str(crs.name)
