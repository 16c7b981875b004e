"""Areas that reach over strips are one area with one outline, as if the picture had been looked at whole."""

import cv2
import numpy as np
import pyproj
import pytest
import shapely
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio import features
from rasterio.features import sieve

from celery_worker.pipelines.features import export, faces, outlines, planes
from celery_worker.pipelines.features.boxes import objects
from celery_worker.pipelines.features.components import Areas, Sizes
from celery_worker.pipelines.features.export import Features
from celery_worker.pipelines.features.ground import Ground
from celery_worker.pipelines.features.merge import merged
from celery_worker.pipelines.features.planes import Planes, pack, unpack
from celery_worker.pipelines.features.rasters import HERE
from jobs.errors import BadInput

WIDTH, HEIGHT = 23, 31


def in_strips(masks, folder, sizes, rows, tolerance=0.0):
    """Outlines and scores of each mask, traced strip by strip."""
    strip, planes.STRIP = planes.STRIP, rows
    height, width = masks[0].shape
    names = [f"class {n}" for n in range(1, len(masks) + 1)]
    try:
        whole = Planes(folder, 1 + len(masks), width, height)
        for n, plane in enumerate([np.ones_like(masks[0]), *masks]):
            (folder / f"plane-{n}").write_bytes(plane.tobytes())
        areas = {n: Areas(whole, n, sizes, lambda: None) for n in range(1, 1 + len(masks))}
        found = {name: [] for name in names}

        def keep(number, polygons, scores):
            found[names[number - 1]] += list(zip(polygons, scores, strict=True))

        for _ in merged(whole, areas, names, tolerance, keep, lambda *_: None):
            pass
        return list(found.values())
    finally:
        planes.STRIP = strip


def turning(polygons):
    """The same outlines with corners only where they turn, in one order of their corners."""
    return shapely.normalize(shapely.simplify(shapely.normalize(polygons), 0))


def at_once(mask, least, most):
    """The same by rasterio alone, from the whole picture."""
    shapes = [shapely.geometry.shape(one) for one, _ in features.shapes((mask > 0).view(np.uint8), mask > 0)]
    return turning(np.array([one for one in shapes if least <= one.area <= most], object))


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), share=st.floats(0.2, 0.8), rows=st.integers(1, 40), least=st.integers(1, 12))
def test_strips_change_nothing(tmp_path_factory, seed, share, rows, least):
    # Given noise, in which much hangs together and encloses holes
    rng = np.random.default_rng(seed)
    mask = np.where(rng.random((HEIGHT, WIDTH)) < share, rng.integers(1, 256, (HEIGHT, WIDTH)), 0).astype(np.uint8)
    most = 10_000 if seed % 3 else 40
    # When it is looked at in strips of some height
    (found,) = in_strips([mask], tmp_path_factory.mktemp("planes"), Sizes(least, most), rows)
    # Then the same outlines come out, with the mean of their own pixels, and all of them are valid
    expected = at_once(mask, least, most)
    assert sorted(turning(one).wkt for one, _ in found) == sorted(one.wkt for one in expected)
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
    (((one, score),),) = in_strips([mask], tmp_path, Sizes(2), 3)
    assert one.area == (mask > 0).sum() - 1 == (sieve(mask, 2) > 0).sum()
    assert score == pytest.approx(200 / 255)


@pytest.mark.parametrize(
    ("module", "told"), [(outlines, "An outline of class 1 has more than 100 corners"), (faces, "they are noise")]
)
def test_an_outline_that_is_noise_is_refused(tmp_path, monkeypatch, module, told):
    monkeypatch.setattr(module, "MAX_CORNERS", 100)
    mask = np.indices((40, 40)).sum(axis=0).astype(np.uint8) % 2 | (np.arange(40) % 2)[None].astype(np.uint8)
    with pytest.raises(BadInput, match=told):
        in_strips([mask], tmp_path, Sizes(1), 4)


def town(seed, height, width):
    """Three classes that cover a picture side by side in lumps, and a fourth over parts of them; some of it bare."""
    rng = np.random.default_rng(seed)
    coarse = rng.random((4, height // 4 + 2, width // 4 + 2)).astype(np.float32)
    smooth = np.stack([cv2.resize(each, (width, height), interpolation=cv2.INTER_CUBIC) for each in coarse])
    smooth += rng.normal(0, 0.05, smooth.shape)
    which = smooth[:3].argmax(axis=0)
    side_by_side = [(which == n).astype(np.uint8) * 200 for n in range(3)]
    over = ((smooth[3] > 0.5) & (which < 2)).astype(np.uint8) * 100
    return side_by_side, over


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), rows=st.integers(5, 70), tolerance=st.sampled_from([0.0, 0.7, 1.5, 4.0]))
def test_neighbours_share_their_borders_whatever_is_left_out(tmp_path_factory, seed, rows, tolerance):
    # Given classes that lie side by side without a gap, and one over them
    side_by_side, over = town(seed, 61, 47)
    # When they become polygons with fewer corners
    *found, above = in_strips([*side_by_side, over], tmp_path_factory.mktemp("planes"), Sizes(1), rows, tolerance)
    polygons = np.array([polygon for one in found for polygon, _ in one], object)
    # Then no two of them gap or overlap: each border has the same corners on both of its sides
    assert shapely.is_valid(polygons).all()
    assert shapely.coverage_is_valid(polygons)
    together = shapely.union_all(polygons)
    assert (together.geom_type, len(together.interiors)) == ("Polygon", 0)
    assert together.area == pytest.approx(61 * 47, abs=8 * tolerance**2)  # the picture's own corners may go
    # Then what lies over some of them ends where they end, and nowhere else
    lies = np.array([polygon for polygon, _ in above], object)
    free = np.array([polygon for polygon, _ in found[2]], object)  # the third class is not covered
    assert shapely.intersection(shapely.union_all(lies), shapely.union_all(free)).area < 1e-9


def test_a_seam_leaves_no_trace_in_what_it_cuts(tmp_path):
    # Given two classes with a slanting border between them, in strips of ten rows
    left = (np.add.outer(np.arange(60) // 2, np.arange(80)) < 50).astype(np.uint8)
    whole, strips = (in_strips([left, 1 - left], tmp_path, Sizes(1), rows, tolerance=1.5) for rows in (60, 10))
    # Then each is one polygon, with at most three corners more for each of the five seams
    for ((one, _),), ((other, _),) in zip(whole, strips, strict=True):
        assert shapely.intersection(one, other).area / shapely.union(one, other).area > 0.99
        assert shapely.get_num_coordinates(other) <= shapely.get_num_coordinates(one) + 3 * 5


def test_areas_without_number_are_told_apart():
    # Given more combinations of areas than a number of 32 bits has room for
    rng = np.random.default_rng(3)
    laid = [rng.integers(0, 60_000, (20, 30)) * (rng.random((20, 30)) < 0.8) for _ in range(4)]
    overlay = faces.Overlay(20, 30)
    for labels in laid:
        overlay.lay(labels.astype(np.int32))
    # Then each pixel still knows them all
    assert (overlay.labels(overlay.numbers.ravel().astype(np.int64)) == [one.ravel() for one in laid]).all()
    assert (overlay.covered == np.any(laid, axis=0)).all()


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
