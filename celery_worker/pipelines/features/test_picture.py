"""A picture is refused by its header, in one sentence, and nothing that it names is ever opened."""

import http.server
import re
import resource
import threading
import time

import numpy as np
import pyproj
import pytest
import rasterio
import shapely
from affine import Affine

from celery_worker.pipelines.features import picture, rasters
from celery_worker.pipelines.features.test_stages import FOLDER, HARBOUR, collection, of_class, strictly_valid
from celery_worker.testing import run
from celery_worker.workbench import Limits
from jobs.errors import BadInput
from tests.web import Web, body_of

GROUND = rasters.meadow(8, 8)
POND = [(20, 10, 60, 50)]  # 40 x 40 pixels of half a metre
POND_M2 = 38 * 38 / 4  # a pixel at the bank is half ground


def refused(path, tmp_path, **params):
    """The sentence with which a job for this file fails; nothing of it is kept."""
    with pytest.raises(BadInput) as error:
        run(FOLDER, {"classes": ["water"], **params}, [path], folder=tmp_path / "run")
    assert [file for file in (tmp_path / "run").rglob("*") if file.is_file()] == []
    return str(error.value)


def test_a_picture_that_points_elsewhere_is_not_followed(tmp_path):
    # Given a virtual raster that names a file of this machine and an address, under the name of a TIFF
    asked = []

    class Listener(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_error(404)

        do_HEAD = do_GET

    server = http.server.HTTPServer(("127.0.0.1", 0), Listener)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    for source in (HARBOUR, f"/vsicurl/http://127.0.0.1:{server.server_port}/secret.tif"):
        path = tmp_path / "a.tif"
        path.write_text(
            '<VRTDataset rasterXSize="300" rasterYSize="300"><SRS>EPSG:32631</SRS>'
            "<GeoTransform>595455, 1, 0, 5751487, 0, -1</GeoTransform>"
            + "".join(
                f'<VRTRasterBand dataType="Float64" band="{n}"><SimpleSource><SourceFilename>{source}</SourceFilename>'
                f"<SourceBand>{n}</SourceBand></SimpleSource></VRTRasterBand>"
                for n in (1, 2, 3, 4)
            )
            + "</VRTDataset>"
        )
        # When it is sent, then it is refused, and nothing was asked of anyone
        with rasterio.open(HARBOUR) if source == HARBOUR else pytest.raises(rasterio.errors.RasterioIOError):
            rasterio.open(path).read(1)  # GDAL itself would go there
        before = len(asked)
        assert refused(path, tmp_path) == "The file is not a GeoTIFF, PNG or JPEG picture."
        assert len(asked) == before
    assert asked  # so the listener would have heard
    server.shutdown()


def test_what_lies_beside_a_picture_is_not_read(tmp_path):
    # Given a picture, and beside it a mask and a world file that are not part of it
    path = rasters.write(tmp_path / "a.tif", rasters.meadow(80, 80, POND))
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=False), rasterio.open(path, "r+") as file:
        file.write_mask(np.zeros((80, 80), bool))
    assert (tmp_path / "a.tif.msk").exists()
    (tmp_path / "a.tfw").write_text("1\n0\n0\n-1\n0\n0\n")
    (tmp_path / "a.tif.aux.xml").write_text("<PAMDataset><SRS>EPSG:3857</SRS></PAMDataset>")
    # Then only the picture counts, and nothing is written there
    done = run(FOLDER, {"classes": ["water"]}, [path], folder=tmp_path / "run")
    assert done.result["counts"] == {"water": 1}
    assert (done.result["crs"], done.result["pixel"]) == ("EPSG:32631", pytest.approx(0.5, rel=0.01))
    assert len(list(tmp_path.iterdir())) == 5


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda path: path.write_text("no picture at all"), "The file is not a GeoTIFF, PNG or JPEG picture"),
        (lambda path: path.write_bytes(b"II*\0" + b"\xff" * 64), "header of the GTiff picture is damaged"),
        (lambda path: path.write_bytes(b""), "The file is not a GeoTIFF, PNG or JPEG picture"),
        (lambda path: rasters.bomb(path), "stored in blocks of 400 MB, which are decoded whole"),
        (lambda path: rasters.png_bomb(path), "19,000 x 19,000 pixels; as PNG at most 67,108,864"),
        (
            lambda path: rasters.tiff(
                path,
                {
                    256: (4, (60_000,)),
                    257: (4, (60_000,)),
                    258: (3, (8,)),
                    259: (3, (1,)),
                    262: (3, (1,)),
                    273: (4, (8,)),
                    277: (3, (1,)),
                    278: (4, (60_000,)),
                    279: (4, (16,)),
                },
                bytes(16),
            ),
            "60,000 x 60,000 pixels; at most 20,000",
        ),
        (lambda path: rasters.write(path, np.ones((14, 8, 8), np.uint8), names=None), "14 bands; at most 12"),
        (lambda path: rasters.write(path, np.ones((1, 8, 8), np.complex64), names=None), "Pixels of type complex64"),
        (lambda path: rasters.write(path, GROUND, crs=None), "does not name its coordinate system"),
        (lambda path: rasters.write(path, GROUND, transform=None), "does not say where it lies"),
        (
            lambda path: rasters.write(path, GROUND, names=None, photometric="minisblack"),
            "does not name its bands: say bands",
        ),
        (
            lambda path: rasters.write(path, GROUND[:3], names=rasters.COLOURS[:3]),
            "the band nir of the picture, and it has red, green, blue: leave it out, or say bands",
        ),
        (lambda path: rasters.write(path, GROUND * 0), "No pixel of the picture holds data"),
        (
            lambda path: rasters.write(path, np.full((4, 8, 8), np.nan, np.float32)),
            "No pixel of the picture holds data",
        ),
        (
            lambda path: rasters.write(path, GROUND, mask=np.zeros((8, 8), bool)),
            "No pixel of the picture holds data",
        ),
        (
            lambda path: rasters.write(path, GROUND, transform=Affine(1, 1, 0, 1, 1, 0)),
            "its pixels have no area",
        ),
        (
            lambda path: rasters.write(path, GROUND, transform=Affine(1e9, 0, 0, 0, -1e9, 0)),
            "(cannot be told in degrees|not on the Earth)",
        ),
        (
            lambda path: rasters.write(path, GROUND, crs="EPSG:4326", transform=Affine(1, 0, 0, 0, 1, 89)),
            "not on the Earth",
        ),
        (
            lambda path: rasters.write(path, GROUND, crs="EPSG:3031", transform=Affine(9, 0, -36, 0, -9, 36)),
            "The picture holds a pole",
        ),
        (lambda path: rasters.write(path, GROUND, crs="EPSG:4978"), "neither projected nor geographic"),
    ],
)
def test_what_cannot_be_used_is_refused_with_a_sentence(tmp_path, make, told):
    # Given something under the name of a TIFF
    path = tmp_path / "a.tif"
    make(path)
    # When it is sent, then its header alone is enough: soon, and without the memory that it asks for
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    sentence = refused(path, tmp_path)
    assert re.search(told, sentence)
    assert time.process_time() - began < 5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000


def test_a_file_that_would_expand_without_end_is_refused(tmp_path, monkeypatch):
    # Given a large picture of one colour, well packed, in small blocks
    monkeypatch.setattr(picture, "LARGE_BYTES", 1_000_000)
    path = rasters.write(
        tmp_path / "a.tif", np.ones((4, 2048, 2048), np.uint8), compress="deflate", tiled=True, zlevel=9
    )
    assert "The file would expand" in refused(path, tmp_path)


def test_a_picture_that_is_cut_off_says_where(tmp_path):
    path = rasters.write(tmp_path / "a.tif", rasters.meadow(600, 600, POND), compress="deflate", tiled=True)
    path.write_bytes(path.read_bytes()[:-2_000])
    assert refused(path, tmp_path).startswith(("The picture cannot be read at column", "The header of the GTiff"))


def test_lying_lengths_are_no_reason_to_break(tmp_path):
    # Given a picture whose header says that its blocks are longer than the file
    noise = np.random.default_rng(1).integers(1, 255, (4, 64, 64), np.uint8)
    path = rasters.write(tmp_path / "a.tif", noise)
    for at in range(4, 400, 31):
        data = bytearray(path.read_bytes())
        data[at : at + 4] = b"\xff\xff\xff\x7f"
        (tmp_path / "b.tif").write_bytes(data)
        # Then it is refused, or it still makes sense; nothing else
        try:
            run(FOLDER, {"classes": ["water"]}, [tmp_path / "b.tif"], folder=tmp_path / f"run{at}")
        except BadInput:
            continue


def test_want_of_memory_is_no_fault_of_the_file(tmp_path):
    # Given a block that may be decoded, 200 MB of it, and a stage that has not got so much
    path = rasters.bomb(tmp_path / "a.tif", 14_000, 14_000, bands=4)
    few = Limits(max_pixels=1, max_memory_mb=1)
    # Then the job is told so: MemoryError is what a worker calls out-of-memory
    with pytest.raises(MemoryError):
        run(FOLDER, {"classes": ["water"], "bands": list(rasters.COLOURS)}, [path], folder=tmp_path / "run", limits=few)


def test_limits_of_the_worker_hold_for_pictures_that_are_decoded_whole(tmp_path):
    path = rasters.write(tmp_path / "a.png", rasters.meadow(100, 100)[:3], driver="PNG", names=None)
    limits = Limits(max_pixels=9_999, max_memory_mb=1_000)
    with pytest.raises(BadInput, match="100 x 100 pixels; as PNG at most 9,999"):
        run(FOLDER, {"classes": ["pool"]}, [path], folder=tmp_path / "run", limits=limits)


@pytest.mark.parametrize(
    ("dtype", "scale"),
    [("uint8", 1), ("uint16", 200), ("int16", 100), ("int32", 1000), ("float32", 0.004), ("float64", 9)],
)
def test_every_type_of_pixel_gives_the_same_water(tmp_path, dtype, scale):
    path = rasters.write(tmp_path / "a.tif", (rasters.meadow(80, 100, POND) * float(scale)).astype(dtype))
    done = run(FOLDER, {"classes": ["water"], "simplify": 0}, [path], folder=tmp_path / "run")
    assert done.result["counts"] == {"water": 1}
    assert done.result["areas"]["water"] == pytest.approx(POND_M2, rel=0.01)


@pytest.mark.parametrize("turn", [0, 30, 90, 200])
def test_a_turned_picture_lies_where_it_says(tmp_path, turn):
    # Given a picture that is not north up
    transform = Affine.translation(593_000, 5_747_000) @ Affine.rotation(turn) @ Affine.scale(0.5, -0.5)
    path = rasters.write(tmp_path / "a.tif", rasters.meadow(80, 100, POND), transform=transform)
    # When the pond is found
    done = run(FOLDER, {"classes": ["water"], "simplify": 0}, [path], folder=tmp_path / "run")
    # Then it has its size and its place
    (shape,) = of_class(done, "water")
    x, y = transform @ (40, 30)
    assert (shape.centroid.x, shape.centroid.y) == pytest.approx((x, y), abs=0.01)
    assert done.result["areas"]["water"] == pytest.approx(POND_M2, rel=0.01)


@pytest.mark.parametrize(
    ("crs", "x", "y", "pixel"),
    [
        ("EPSG:4326", 4.4, 51.9, 0.5 / 111_000),
        ("EPSG:3857", 490_000, 6_790_000, 0.8),  # its metres are not metres of the ground
        ("EPSG:2263", 980_000, 200_000, 1.64),  # feet
        ("EPSG:3413", 1_000_000, -1_000_000, 0.5),
        ("EPSG:32760", 500_000, 4_000_000, 0.5),
    ],
)
def test_areas_are_square_metres_of_the_ground_in_every_system(tmp_path, crs, x, y, pixel):
    path = rasters.write(
        tmp_path / "a.tif", rasters.meadow(80, 100, POND), crs=crs, transform=Affine(pixel, 0, x, 0, -pixel, y)
    )
    done = run(FOLDER, {"classes": ["water"], "min_area": 0}, [path], folder=tmp_path / "run")
    (one,) = collection(done)["features"]
    measured = pyproj.Geod(ellps="WGS84").geometry_area_perimeter(shapely.geometry.shape(one["geometry"]))[0]
    assert one["properties"]["area"] == pytest.approx(measured, rel=0.005)


def test_a_picture_over_the_antimeridian_is_cut_there(tmp_path):
    # Given a lake that lies on 180 degrees
    transform = Affine(0.001, 0, 179.96, 0, -0.001, 10)
    path = rasters.write(
        tmp_path / "a.tif", rasters.meadow(80, 80, [(20, 20, 60, 60)]), crs="EPSG:4326", transform=transform
    )
    done = run(FOLDER, {"classes": ["water"]}, [path], folder=tmp_path / "run")
    # Then its outline has a part on each side, and the bounds say that they cross it
    document = collection(done)
    strictly_valid(document)
    shape = document["features"][0]["geometry"]
    assert shape["type"] == "MultiPolygon"
    sides = sorted(ring[0][0] > 0 for (ring,) in shape["coordinates"])
    assert sides == [False, True]
    west, _, east, _ = document["bbox"]
    assert west > 179 > -179 > east


def test_a_picture_with_a_world_file_lies_where_that_says(tmp_path):
    # Given a PNG and six numbers
    bands = rasters.meadow(80, 100)[:3]
    bands[:, 10:50, 20:60] = np.array([40, 180, 200], np.uint8)[:, None, None]
    path = rasters.write(tmp_path / "a.png", bands, driver="PNG", names=None, crs=None, transform=None)
    world = tmp_path / "a.pgw"
    world.write_text("0.5\n0\n0\n-0.5\n593000.25\n5746999.75\n")
    # When both are sent, with the coordinate system
    params = {"classes": ["pool"], "crs": "EPSG:32631", "simplify": 0}
    for files in ([path, world], [world, path]):
        done = run(FOLDER, params, files, folder=tmp_path / f"run{files.index(path)}")
        # Then the blue basin lies there
        (shape,) = of_class(done, "pool")
        assert shape.bounds == (593_010, 5_746_975, 593_030, 5_746_995)
    with pytest.raises(BadInput, match="One picture is taken, or one picture and its world file"):
        run(FOLDER, params, [path, path], folder=tmp_path / "two")
    assert "send a GeoTIFF or a world file" in refused(path, tmp_path, classes=["pool"], crs="EPSG:32631")


def test_an_internal_mask_an_alpha_band_and_a_nodata_value_are_all_respected(tmp_path):
    pond, bands = (slice(10, 50), slice(20, 60)), rasters.meadow(80, 100, POND)
    holds = np.ones((80, 100), bool)
    holds[pond] = False
    marked = bands.copy()
    marked[:, ~holds] = 7
    alpha = np.concatenate([bands, (holds * 255).astype(np.uint8)[None]])
    made = {
        "mask": rasters.write(tmp_path / "mask.tif", bands, mask=holds),
        "nodata": rasters.write(tmp_path / "nodata.tif", marked, nodata=7),
        "alpha": rasters.write(tmp_path / "alpha.tif", alpha, names=[*rasters.COLOURS, "alpha"]),
    }
    for name, path in made.items():
        done = run(FOLDER, {"classes": ["water"]}, [path], folder=tmp_path / name)
        assert (done.result["counts"], done.result["valid"]) == ({"water": 0}, 0.8), name
    told = run(
        FOLDER, {"classes": ["water"], "nodata": 7}, [rasters.write(tmp_path / "n.tif", marked)], folder=tmp_path / "n"
    )
    assert told.result["valid"] == 0.8


def test_a_picture_behind_an_address_is_fetched_and_what_is_none_is_refused(tmp_path):
    # Given a host with a picture and a page under the name of one
    page = b"<!DOCTYPE html><html><body>404</body></html>"
    answers = {"/a.tif": body_of(HARBOUR.read_bytes()), "/b.tif": body_of(page, Content_Type="image/tiff")}
    params = {"bands": ["blue", "green", "red", "nir"]}
    with Web(answers) as web:
        behind = {"url": web.url + "/a.tif"}
        done = run(FOLDER, params, input=behind, folder=tmp_path / "url", allowed_hosts=[web.host])
        # Then the map is that of the file, and the file was asked for once
        same = run(FOLDER, params, [HARBOUR], folder=tmp_path / "file")
        for name in ("features.geojson", "classes.tif"):
            assert done.artifacts[name].read_bytes() == same.artifacts[name].read_bytes()
        assert [path for path, _ in web.asked] == ["/a.tif"]
        # Then the page is refused by what it is, and so is a host that nobody allowed
        with pytest.raises(BadInput, match="text/html, which this pipeline does not take"):
            run(FOLDER, params, input={"url": web.url + "/b.tif"}, folder=tmp_path / "b", allowed_hosts=[web.host])
        with pytest.raises(BadInput, match="not public"):
            run(FOLDER, params, input=behind, folder=tmp_path / "c")
