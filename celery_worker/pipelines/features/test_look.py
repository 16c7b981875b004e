"""A model of one's own plugs in by what models.yaml says of it, and its answer shows no seam either."""

import json

import numpy as np
import onnx
import pyogrio
import pytest
import shapely
from onnx import TensorProto, helper, numpy_helper

from celery_worker.pipelines.features import rasters
from celery_worker.pipelines.features.test_stages import FOLDER, of_class
from celery_worker.testing import run
from jobs.errors import BadInput

SIDE, MARGIN = 64, 8
SEGMENTATION = {
    "kind": "segmentation",
    "classes": [None, "building", "road"],
    "bands": ["red", "green", "blue"],
    "size": SIDE,
    "margin": MARGIN,
    "normalise": {"divide": 255, "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]},
    "activation": "softmax",
    "threshold": 0.5,
}
DETECTION = {
    "kind": "detection",
    "classes": ["car", None],
    "bands": ["red"],
    "size": SIDE,
    "margin": MARGIN,
    "layout": "nhwc",
    "threshold": 0.6,
    "overlap": 0.3,
    "outputs": {"boxes": "where", "class_ids": "what"},
}
BUILDINGS = [(20, 30, 60, 70), (90, 50, 140, 110), (150, 150, 199, 190)]
ROADS = [(0, 118, 200, 126)]
AT = (19, 31)  # where in its window a model sees what only stands there
CARS = [(40, 24), (48, 96), (128, 128), (184, 8)]  # their top left corners; each has 8 x 8 pixels


def save(path, nodes, inputs, outputs, constants):
    """An ONNX file."""
    graph = helper.make_graph(
        nodes, "mine", inputs, outputs, [numpy_helper.from_array(value, name) for name, value in constants.items()]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString())
    return path


@pytest.fixture
def segmenting(tmp_path):
    """A model that looks at 3 x 3 pixels: red is a building, blue a road, all else nothing."""
    weights = np.zeros((3, 3, 3, 3), np.float32)
    weights[1, 0], weights[2, 2] = 4 / 9, 4 / 9
    constants = {"w": weights, "b": np.array([0, 0, 0], np.float32)}
    node = helper.make_node("Conv", ["images", "w", "b"], ["logits"], pads=[1, 1, 1, 1])
    images = helper.make_tensor_value_info("images", TensorProto.FLOAT, ["N", 3, SIDE, SIDE])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 3, SIDE, SIDE])
    return save(tmp_path / "buildings.onnx", [node], [images], [logits], constants)


@pytest.fixture
def detecting(tmp_path):
    """A model that says for each cell of 8 x 8 bytes how bright it is, and calls that how sure it is of a car."""
    cells = SIDE // 8
    y, x = np.mgrid[:cells, :cells].reshape(2, -1) * 8.0
    constants = {
        "boxes": np.stack([x, y, x + 8, y + 8], 1)[None].astype(np.float32),
        "ids": np.zeros((1, cells * cells), np.int64),
        "flat": np.array([1, -1], np.int64),
        "white": np.array(255, np.float32),
    }
    nodes = [
        helper.make_node("Cast", ["images"], ["values"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["values"], ["first"], perm=[0, 3, 1, 2]),
        helper.make_node("AveragePool", ["first"], ["mean"], kernel_shape=[8, 8], strides=[8, 8]),
        helper.make_node("Div", ["mean", "white"], ["share"]),
        helper.make_node("Reshape", ["share", "flat"], ["scores"]),
        helper.make_node("Identity", ["boxes"], ["where"]),
        helper.make_node("Identity", ["ids"], ["what"]),
    ]
    images = helper.make_tensor_value_info("images", TensorProto.UINT8, [1, SIDE, SIDE, 1])
    outputs = [
        helper.make_tensor_value_info("where", TensorProto.FLOAT, [1, cells * cells, 4]),
        helper.make_tensor_value_info("scores", TensorProto.FLOAT, [1, cells * cells]),
        helper.make_tensor_value_info("what", TensorProto.INT64, [1, cells * cells]),
    ]
    return save(tmp_path / "cars.onnx", nodes, [images], outputs, constants)


@pytest.fixture
def marking(tmp_path):
    """A model that marks one place of its window, whatever it is shown: a square of 6 x 6 pixels."""
    mark = np.zeros((1, 2, SIDE, SIDE), np.float32)
    mark[0, 1, AT[1] : AT[1] + 6, AT[0] : AT[0] + 6] = 9
    mark[0, 0] = 4
    constants = {"w": np.zeros((2, 1, 1, 1), np.float32), "mark": mark}
    nodes = [
        helper.make_node("Conv", ["images", "w"], ["nothing"]),
        helper.make_node("Add", ["nothing", "mark"], ["logits"]),
    ]
    images = helper.make_tensor_value_info("images", TensorProto.FLOAT, ["N", 1, SIDE, SIDE])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 2, SIDE, SIDE])
    return save(tmp_path / "marks.onnx", nodes, [images], [logits], constants)


@pytest.fixture
def boxing(tmp_path):
    """The same as a detector: one box, always there."""
    x, y = AT
    constants = {
        "zero": np.zeros((), np.float32),
        "box": np.array([[[x, y, x + 6, y + 6]]], np.float32),
        "sure": np.array([[0.9]], np.float32),
    }
    nodes = [
        helper.make_node("ReduceMean", ["images"], ["mean"], axes=[1, 2, 3], keepdims=0),
        helper.make_node("Mul", ["mean", "zero"], ["nothing"]),
        helper.make_node("Add", ["box", "nothing"], ["boxes"]),
        helper.make_node("Add", ["sure", "nothing"], ["scores"]),
    ]
    images = helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, 1, SIDE, SIDE])
    outputs = [
        helper.make_tensor_value_info("boxes", TensorProto.FLOAT, [1, 1, 4]),
        helper.make_tensor_value_info("scores", TensorProto.FLOAT, [1, 1]),
    ]
    return save(tmp_path / "boxes.onnx", nodes, [images], outputs, constants)


@pytest.fixture
def town(tmp_path):
    """200 x 200 pixels: red buildings, a blue road, and nodata in a corner."""
    bands = np.full((3, 200, 200), 40, np.uint8)
    for x1, y1, x2, y2 in ROADS:
        bands[2, y1:y2, x1:x2] = 250
    for x1, y1, x2, y2 in BUILDINGS:
        bands[:, y1:y2, x1:x2] = np.array([250, 20, 20], np.uint8)[:, None, None]
    bands[:, 160:, :40] = 0
    return rasters.write(tmp_path / "town.tif", bands)


def test_a_segmentation_model_of_ones_own_needs_no_code(segmenting, town, tmp_path):
    # Given a model in a folder of models, with its contract
    models = rasters.declare(tmp_path, "my-town", segmenting, SEGMENTATION)
    found = {}
    for side in (None, 64, 96):
        # When a job names it
        params = {"classes": [], "models": ["my-town"], "tile": side, "min_area": 1, "simplify": 0}
        done = run(FOLDER, params, [town], folder=tmp_path / str(side), models_dir=models)
        # Then its classes become features, counted and measured
        assert done.result["counts"] == {"building": 3, "road": 1}
        expected = sum((x2 - x1) * (y2 - y1) for x1, y1, x2, y2 in BUILDINGS) / 4
        assert done.result["areas"]["building"] == pytest.approx(expected, rel=0.01)
        found[side] = done.artifacts["features.geojson"].read_bytes()
        scores = [one["properties"]["score"] for one in json.loads(found[side])["features"]]
        assert all(0.5 < score <= 1 for score in scores)
    # And the same bytes come out, whatever the tiles
    assert found[None] == found[64] == found[96]


def test_a_detection_model_of_ones_own_needs_no_code(detecting, tmp_path):
    # Given white cars, one of them on a seam of every grid of tiles, and a white one without data around it
    bands = np.full((1, 200, 200), 30, np.uint8)
    for x, y in CARS:
        bands[0, y : y + 8, x : x + 8] = 240
    valid = np.ones((200, 200), bool)
    valid[:64, 176:] = False
    picture = rasters.write(tmp_path / "street.tif", bands, names=["red"], mask=valid)
    models = rasters.declare(tmp_path, "cars", detecting, DETECTION)
    # When they are looked for
    for side in (None, 64, 128):
        params = {"classes": [], "models": ["cars"], "tile": side}
        done = run(FOLDER, params, [picture], folder=tmp_path / str(side), models_dir=models)
        # Then each is found once, where it is, whatever the tiles
        x, y, a = rasters.HERE.c, rasters.HERE.f, 0.5
        expected = {(x + a * cx, y - a * (cy + 8), x + a * (cx + 8), y - a * cy) for cx, cy in CARS[:3]}
        boxes = {tuple(shape.bounds) for shape in of_class(done, "car")}
        assert boxes == expected
        assert done.result["counts"] == {"car": 3}
        assert done.result["areas"]["car"] == pytest.approx(3 * 16, rel=0.01)


@pytest.mark.parametrize("kind", ["segmentation", "detection"])
def test_the_windows_stand_on_one_grid_whatever_the_tiles(marking, boxing, tmp_path, kind):
    # Given a model that finds something at one place of each window
    contract = {"kind": kind, "classes": [None, "mark"], "bands": ["red"], "size": SIDE, "margin": MARGIN}
    if kind == "segmentation":
        models = rasters.declare(tmp_path, "marks", marking, {**contract, "activation": "softmax"})
    else:
        models = rasters.declare(tmp_path, "marks", boxing, {**contract, "classes": ["mark"]})
    picture = rasters.write(tmp_path / "plain.tif", np.full((1, 210, 250), 90, np.uint8), names=["red"])
    # When a picture is cut into tiles of some sizes, none of which is a window's
    core, a, x, y = SIDE - 2 * MARGIN, 0.5, rasters.HERE.c, rasters.HERE.f
    expected = {
        (x + a * left, y - a * (top + 6), x + a * (left + 6), y - a * top)
        for left in range(AT[0] - MARGIN, 250, core)
        for top in range(AT[1] - MARGIN, 210, core)
    }
    for side in (None, 64, 100, 128):
        params = {"classes": [], "models": ["marks"], "tile": side, "min_area": 1, "simplify": 0}
        done = run(FOLDER, params, [picture], folder=tmp_path / f"{kind}-{side}", models_dir=models)
        # Then it stands once for each window of the picture's grid
        assert {tuple(shape.bounds) for shape in of_class(done, "mark")} == expected
        assert done.result["counts"] == {"mark": len(expected)}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"kind": "guess"}, "'guess' is none of segmentation, detection"),
        ({"size": 0}, "size is at most"),
        ({"colour": "red"}, "unknown keys colour"),
        ({"classes": [None]}, "classes need names"),
        ({"bands": ["red", "green", "nir"]}, "The model my-town needs the band nir"),
        ({"bands": ["red", "green"], "normalise": {}}, "does not fit its contract"),
        ({"classes": ["a", "b"]}, r"answers \(3, 64, 64\) for a window; its contract says \(2, 64, 64\)"),
        ({"pixel": [0.05, 0.2]}, "looks at pixels of 0.05 to 0.2 m; this picture's have 0.5"),
        ({"outputs": {"mask": "nothing"}}, "does not fit its contract"),
    ],
)
def test_a_contract_that_does_not_fit_says_what_to_mend(segmenting, town, tmp_path, change, told):
    models = rasters.declare(tmp_path, "my-town", segmenting, {**SEGMENTATION, **change})
    with pytest.raises(BadInput, match=told):
        run(FOLDER, {"classes": [], "models": ["my-town"]}, [town], folder=tmp_path / "run", models_dir=models)


def test_a_model_that_is_not_there_is_named(segmenting, town, tmp_path):
    models = rasters.declare(tmp_path, "my-town", segmenting, SEGMENTATION)
    with pytest.raises(BadInput, match=r"models\.yaml has no model 'roads' with a contract; it has my-town"):
        run(FOLDER, {"models": ["roads"]}, [town], folder=tmp_path / "run", models_dir=models)
    with pytest.raises(BadInput, match="Nothing is looked for"):
        run(FOLDER, {"classes": []}, [town], folder=tmp_path / "run2", models_dir=models)


def test_models_and_indices_may_be_asked_for_together(segmenting, town, tmp_path):
    models = rasters.declare(tmp_path, "my-town", segmenting, SEGMENTATION)
    params = {"classes": ["vegetation"], "models": ["my-town"]}
    done = run(FOLDER, params, [town], folder=tmp_path / "run", models_dir=models)
    assert set(done.result["counts"]) == {"vegetation", "building", "road"}
    assert pyogrio.read_info(done.artifacts["features.gpkg"])["features"] == sum(done.result["counts"].values())
    assert all(shapely.is_valid(of_class(done, "building")))
