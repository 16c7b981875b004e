"""Areas that reach over strips are one area with one outline, as if the picture had been looked at whole."""

import numpy as np
import pyproj
import pytest
import shapely
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio import features
from rasterio.features import sieve

from celery_worker.pipelines.features import export, outlines, planes
from celery_worker.pipelines.features.boxes import objects
from celery_worker.pipelines.features.components import Areas, Sizes
from celery_worker.pipelines.features.export import Features
from celery_worker.pipelines.features.ground import Ground
from celery_worker.pipelines.features.outlines import Tracer, canonical
from celery_worker.pipelines.features.planes import Planes, pack, unpack
from celery_worker.pipelines.features.rasters import HERE
from jobs.errors import BadInput

WIDTH, HEIGHT = 23, 31


def in_strips(mask, folder, sizes, rows):
    """Outlines and scores, traced strip by strip."""
    strip, planes.STRIP = planes.STRIP, rows
    try:
        whole = Planes(folder, 1, mask.shape[1], mask.shape[0])
        (folder / "plane-0").write_bytes(mask.tobytes())
        areas, tracer, found = Areas(whole, 0, sizes, lambda: None), Tracer("water"), []
        for number, (y, height) in enumerate(whole.strips):
            traced = tracer.trace(areas.piece(number), whole.read(0, y, height))
            found += list(zip(traced.polygons, traced.scores, strict=True))
        return found
    finally:
        planes.STRIP = strip


def at_once(mask, least, most):
    """The same by rasterio alone, from the whole picture."""
    shapes = [shapely.geometry.shape(one) for one, _ in features.shapes((mask > 0).view(np.uint8), mask > 0)]
    return canonical(np.array([one for one in shapes if least <= one.area <= most], object))


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), share=st.floats(0.2, 0.8), rows=st.integers(1, 40), least=st.integers(1, 12))
def test_strips_change_nothing(tmp_path_factory, seed, share, rows, least):
    # Given noise, in which much hangs together and encloses holes
    rng = np.random.default_rng(seed)
    mask = np.where(rng.random((HEIGHT, WIDTH)) < share, rng.integers(1, 256, (HEIGHT, WIDTH)), 0).astype(np.uint8)
    most = 10_000 if seed % 3 else 40
    # When it is looked at in strips of some height
    found = in_strips(mask, tmp_path_factory.mktemp("planes"), Sizes(least, most), rows)
    # Then the same outlines come out, with the mean of their own pixels, and all of them are valid
    expected = at_once(mask, least, most)
    assert sorted(one.wkt for one, _ in found) == sorted(one.wkt for one in expected)
    assert all(one.is_valid for one, _ in found)
    for one, score in found:
        inside = ~features.geometry_mask([one], mask.shape, Affine.identity())
        assert score == pytest.approx(mask[inside].mean() / 255)


def test_slivers_go_and_what_hangs_together_stays(tmp_path):
    # Given a snake of one pixel's width through all strips, and a speck
    mask = np.zeros((60, 60), np.uint8)
    mask[::4] = 200
    for n, y in enumerate(range(0, 56, 4)):
        mask[y : y + 5, 0 if n % 2 else 59] = 200
    mask[2, 30] = 200
    # Then one outline is left
    ((one, score),) = in_strips(mask, tmp_path, Sizes(2), 3)
    assert one.area == (mask > 0).sum() - 1 == (sieve(mask, 2) > 0).sum()
    assert score == pytest.approx(200 / 255)


def test_an_outline_that_is_noise_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(outlines, "MAX_CORNERS", 100)
    mask = np.indices((40, 40)).sum(axis=0).astype(np.uint8) % 2 | (np.arange(40) % 2)[None].astype(np.uint8)
    with pytest.raises(BadInput, match="An outline of water has more than 100 corners"):
        in_strips(mask, tmp_path, Sizes(1), 4)


def test_features_without_end_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(export, "MAX_FEATURES", 3)
    kept = Features(tmp_path, Ground(100, 100, HERE, pyproj.CRS.from_epsg(32631)))
    squares = shapely.box(np.arange(2), 0, np.arange(2) + 1, 1)
    kept.add("water", squares, np.ones(2))
    with pytest.raises(BadInput, match="more than 3 features: raise min_area"):
        kept.add("water", squares, np.ones(2))


def test_the_planes_of_a_tile_survive_their_file(tmp_path):
    rng = np.random.default_rng(1)
    given_planes = [rng.integers(0, 256, (5, 7), np.uint8), np.zeros((5, 7), np.uint8), np.ones((5, 7), np.uint8)]
    lengths = pack(given_planes, tmp_path / "a")
    first, second, third = unpack(tmp_path / "a", lengths, (5, 7))
    assert (first == given_planes[0]).all()
    assert second is None
    assert (third == 1).all()


def test_one_object_seen_twice_counts_once_and_the_surest_box_stays():
    boxes = [
        ("tree", 0.6, 0.0, 0.0, 10.0, 10.0),
        ("tree", 0.9, 1.0, 1.0, 11.0, 11.0),
        ("tree", 0.5, 8.0, 8.0, 40.0, 30.0),
    ]
    shapes, scores = objects(boxes, 0.4, 30, 30)
    assert [one.bounds for one in shapes] == [(1, 1, 11, 11), (8, 8, 30, 30)]
    assert scores.tolist() == [0.9, 0.5]
    assert objects([], 0.4, 30, 30)[0].size == 0
