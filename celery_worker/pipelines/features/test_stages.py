"""Features finds what is in a picture, says where on the Earth it is and how large, and shows no seam."""

import json
import sqlite3
from contextlib import closing
from pathlib import Path

import cv2
import numpy as np
import pyogrio
import pyproj
import pytest
import rasterio
import shapely
from rasterio.features import geometry_mask

from celery_worker.pipelines.features import rasters
from celery_worker.testing import run
from jobs.errors import ParamsInvalid
from jobs.pipeline import read

FOLDER = Path(__file__).parent
SAMPLES = FOLDER.parents[2] / "samples"
HARBOUR, PARK = SAMPLES / "rotterdam-harbour.tif", SAMPLES / "rotterdam-park.tif"
BANDS = ["blue", "green", "red", "nir"]
EVERY = ["vegetation", "bright-impervious", "water", "pool", "canopy"]
ARTIFACTS = {"features.geojson", "features.gpkg", "preview.png", "classes.tif"}


def collection(done):
    return json.loads(done.artifacts["features.geojson"].read_text())


def of_class(done, name):
    """The shapes of a class, in pixels of the picture."""
    shapes, _, _, fields = opened(done)
    return shapes[fields["class"] == name]


def opened(done):
    """features.gpkg as a GIS reads it: shapes, CRS, bounds, columns."""
    path = done.artifacts["features.gpkg"]
    meta, _, shapes, columns = pyogrio.raw.read(path)
    fields = dict(zip(meta["fields"], columns, strict=True))
    return shapely.from_wkb(shapes), meta["crs"], pyogrio.read_info(path)["total_bounds"], fields


@pytest.fixture(scope="module")
def harbour(tmp_path_factory):
    return run(FOLDER, {"bands": BANDS, "classes": EVERY}, [HARBOUR], folder=tmp_path_factory.mktemp("harbour"))


@pytest.fixture(scope="module")
def park(tmp_path_factory):
    return run(FOLDER, {"bands": BANDS, "classes": EVERY}, [PARK], folder=tmp_path_factory.mktemp("park"))


def test_the_example_fits_the_schema():
    pipeline = read(FOLDER)
    assert pipeline.check(pipeline.example["params"])["ndvi"] == 0.28


def test_water_is_most_of_the_harbour_and_none_of_the_park(harbour, park):
    assert 0.6 <= harbour.result["shares"]["water"] <= 0.7
    assert park.result["shares"]["water"] < 0.01
    assert park.result["shares"]["vegetation"] > 0.4
    assert park.result["shares"]["canopy"] < park.result["shares"]["vegetation"]


def test_the_result_counts_what_the_artifacts_show(park):
    result = park.result
    features = collection(park)["features"]
    _, crs, _, fields = opened(park)
    assert set(park.artifacts) == ARTIFACTS
    assert (result["size"], result["crs"], crs) == ([300, 300], "EPSG:32631", "EPSG:32631")
    assert sum(result["counts"].values()) == len(features) == len(fields["class"]) > 50
    for name in EVERY:
        mine = [one["properties"] for one in features if one["properties"]["class"] == name]
        assert result["counts"][name] == len(mine) == (fields["class"] == name).sum()
        assert result["areas"][name] == pytest.approx(sum(one["area"] for one in mine), abs=0.01)
    assert result["counts"]["vegetation"] > 10
    assert set(result["seconds"]) == {"preprocess", "inference", "postprocess"}


def test_areas_are_those_of_the_ellipsoid(harbour):
    # Given the features in degrees, as a client gets them
    features = collection(harbour)["features"]
    geod = pyproj.Geod(ellps="WGS84")
    for one in features:
        # When someone else measures them on the ellipsoid
        shape = shapely.geometry.shape(one["geometry"])
        area, perimeter = geod.geometry_area_perimeter(shape)[0], geod.geometry_length(shape.boundary)
        # Then both agree, and the area is positive: counter-clockwise
        assert one["properties"]["area"] == pytest.approx(area, rel=0.002, abs=0.1)
        assert one["properties"]["perimeter"] == pytest.approx(perimeter, rel=0.002, abs=0.1)


def strictly_valid(document):
    """What RFC 7946 asks of a collection of polygons."""
    assert set(document) == {"type", "bbox", "features"}
    west, south, east, north = document["bbox"]
    for one in document["features"]:
        assert set(one) == {"type", "id", "properties", "geometry"}
        assert one["type"] == "Feature"
        shape = one["geometry"]
        assert shape["type"] in ("Polygon", "MultiPolygon")
        polygons = shape["coordinates"] if shape["type"] == "MultiPolygon" else [shape["coordinates"]]
        for rings in polygons:
            for n, ring in enumerate(rings):
                assert len(ring) >= 4
                assert ring[0] == ring[-1]
                assert shapely.LinearRing(ring).is_ccw == (n == 0)
                for lon, lat in ring:
                    assert -180 <= lon <= 180
                    assert (west - 1e-6 <= lon <= east + 1e-6) or west > east
                    assert south - 1e-6 <= lat <= north + 1e-6
        assert shapely.geometry.shape(shape).is_valid


def test_the_geojson_is_strict_and_every_shape_is_valid(harbour, park):
    for done in (harbour, park):
        document = collection(done)
        strictly_valid(document)
        assert [one["id"] for one in document["features"]] == list(range(1, len(document["features"]) + 1))
        assert shapely.is_valid(opened(done)[0]).all()
        # and OGR, which is what ogrinfo asks, reads it as so many features in WGS84
        seen = pyogrio.read_info(done.artifacts["features.geojson"])
        assert (seen["features"], seen["crs"]) == (len(document["features"]), "EPSG:4326")
        # and its GeoPackage is of a version that older ones take without a word
        with closing(sqlite3.connect(done.artifacts["features.gpkg"])) as file:
            assert file.execute("pragma user_version").fetchone() == (10_200,)


def pixels_of(shapes, transform):
    """Which pixels some shapes cover, by their middles."""
    if not len(shapes):
        return np.zeros((300, 300), bool)
    return ~geometry_mask(shapes, (300, 300), transform)


@pytest.mark.parametrize("source", [HARBOUR, PARK])
def test_no_seam_is_seen_whatever_the_tiles(source, harbour, park, tmp_path):
    # Given the whole picture in one tile
    whole = harbour if source == HARBOUR else park
    assert whole.result["tiles"] == 1
    for side, count in ((96, 16), (128, 9), (256, 4)):
        # When it is cut into tiles
        params = {"bands": BANDS, "classes": EVERY, "tile": side}
        cut = run(FOLDER, params, [source], folder=tmp_path / str(side))
        # Then the same polygons come out
        assert count - 2 <= cut.result["tiles"] <= count
        assert cut.result["counts"] == whole.result["counts"]
        for name in EVERY:
            one, other = (shapely.union_all(of_class(done, name)) for done in (whole, cut))
            both = shapely.union(one, other).area
            assert both == 0 or shapely.intersection(one, other).area / both >= 0.98, (side, name)


@pytest.mark.parametrize("name", EVERY)
def test_each_class_looks_as_far_around_a_tile_as_it_must(name, tmp_path):
    # Given one class alone, whose tiles overlap only as far as that class looks
    for source in (PARK, HARBOUR):
        found = []
        for side in (300, 64):
            params = {"bands": BANDS, "classes": [name], "tile": side, "min_area": 0, "simplify": 0}
            done = run(FOLDER, params, [source], folder=tmp_path / f"{source.stem}-{side}")
            found.append(done.artifacts["features.geojson"].read_bytes())
        # Then the smallest tiles give the map of the whole picture, to the last digit
        assert found[0] == found[1], source


def test_nodata_never_becomes_a_feature(harbour, tmp_path):
    # Given the harbour, of which a third is empty
    with rasterio.open(HARBOUR) as file:
        empty, transform = (file.read() == 0).all(axis=0), file.transform
    # When every step of the outlines is kept
    exact = run(FOLDER, {"bands": BANDS, "classes": EVERY, "simplify": 0}, [HARBOUR], folder=tmp_path / "exact")
    # Then no empty pixel is in any, nor in the class map
    assert not (pixels_of(opened(exact)[0], transform) & empty).any()
    with rasterio.open(exact.artifacts["classes.tif"]) as file:
        assert ((file.read(1) == 255) == empty).all()
    assert harbour.result["valid"] == pytest.approx(1 - empty.mean(), abs=1e-5)


def test_the_class_map_is_a_cloud_optimized_copy_of_the_features(harbour, tmp_path):
    exact = run(FOLDER, {"bands": BANDS, "simplify": 0}, [HARBOUR], folder=tmp_path)
    with rasterio.open(exact.artifacts["classes.tif"]) as file:
        assert file.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        assert (file.crs.to_epsg(), file.nodata, file.dtypes) == (32631, 255, ("uint8",))
        names = [file.tags(1)[f"class_{n}"] for n in (1, 2)]
        assert names == ["vegetation", "water"]
        for number, name in enumerate(names, 1):
            assert ((file.read(1) == number) == pixels_of(of_class(exact, name), file.transform)).all()


def test_a_large_class_map_has_smaller_copies_of_itself(tmp_path):
    # Given a picture that no single block of the map holds
    path = rasters.write(tmp_path / "a.tif", rasters.meadow(600, 1_300, [(100, 100, 900, 400)]))
    done = run(FOLDER, {"classes": ["water"]}, [path], folder=tmp_path / "run")
    # Then readers over a network find the whole of it in a few blocks, with the classes as they are
    with rasterio.open(done.artifacts["classes.tif"]) as file:
        assert (file.tags(ns="IMAGE_STRUCTURE")["LAYOUT"], file.block_shapes) == ("COG", [(512, 512)])
        assert file.overviews(1) == [2, 4]
        small = file.read(1, out_shape=(150, 325))
        assert (set(np.unique(small)), small[60, 100], small[10, 10]) == ({0, 1}, 1, 0)


def test_the_preview_shows_the_picture_with_outlines(park):
    drawn = cv2.imread(str(park.artifacts["preview.png"]))
    assert drawn.shape == (900, 900, 3)


def test_a_picture_that_is_cut_again_gives_the_same_bytes(tmp_path):
    one, other = (run(FOLDER, {"bands": BANDS}, [PARK], folder=tmp_path / name) for name in ("one", "other"))
    for name in ARTIFACTS:
        assert one.artifacts[name].read_bytes() == other.artifacts[name].read_bytes(), name


@pytest.mark.parametrize("where", [("preprocess", 3), ("inference", 1), ("postprocess", 2)])
def test_a_dismissed_job_stops_where_it_is(tmp_path, where):
    done = run(FOLDER, {"bands": BANDS}, [PARK], folder=tmp_path, dismiss_at=where)
    assert done.dismissed
    assert where[0] not in done.outputs
    assert done.artifacts == {}
    assert list((tmp_path / "scratch").iterdir()) == []


@pytest.mark.parametrize(
    "params",
    [
        {"classes": ["buildings"]},
        {"classes": ["water", "water"]},
        {"bands": []},
        {"bands": ["purple"]},
        {"tile": 63},
        {"tile": 2049},
        {"min_area": -1},
        {"simplify": 11},
        {"ndvi": 2},
        {"nodata": "0"},
        {"colour": "rgb"},
    ],
)
def test_params_that_make_no_sense_are_refused_at_the_door(params):
    with pytest.raises(ParamsInvalid):
        read(FOLDER).check(params)
