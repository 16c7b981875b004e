"""A pipeline is read as data: its promise is checked at boot, its params at the door."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import yaml

from jobs.errors import ParamsInvalid, PipelineBroken, PipelineNotFound
from jobs.model import Plan, StagePlan
from jobs.pipeline import Batch, Pipelines, read

ROOT = Path(__file__).resolve().parents[2]
OURS = Pipelines([ROOT / "celery_worker" / "pipelines"])

SPLIT = {"name": "split", "queue": "preprocess"}
WORK = {"name": "work", "queue": "inference", "each": True}
JOIN = {"name": "join", "queue": "postprocess"}
PARAMS = {
    "type": "object",
    "additionalProperties": False,
    "required": ["x"],
    "properties": {
        "x": {"type": "number", "maximum": 10},
        "n": {"type": "integer", "default": 3},
        "on": {"type": "boolean", "default": False},
        "tags": {"type": "array", "items": {"type": "string"}, "default": []},
        "of/~": {"type": "string"},
        "box": {
            "type": "object",
            "additionalProperties": False,
            "properties": {"top": {"type": "number", "default": 1}},
            "default": {},
        },
    },
}


@pytest.fixture
def pipeline(tmp_path):
    """Makes a pipeline's folder and reads it; keywords change `pipeline.yaml`, None takes a key out."""

    def make(name: str = "grind", **changes):
        data = {"title": "Grind", "stages": [SPLIT, WORK, JOIN], "params": PARAMS} | changes
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        text = yaml.safe_dump({key: value for key, value in data.items() if value is not None})
        (folder / "pipeline.yaml").write_text(text)
        return read(folder)

    return make


# -- what stands in the folder --------------------------------------------------------------------------------


def test_a_pipeline_says_what_its_folder_says(pipeline):
    batched = WORK | {"time_limit": 60, "min_success": 0.5, "batch": {"max": 8, "wait_ms": 20}}
    found = pipeline(stages=[SPLIT, batched, JOIN], input={"file": ["video/*"], "text": None, "required": True})
    assert found.name == "grind"
    assert found.stages == (
        StagePlan("split", "preprocess"),
        StagePlan("work", "inference", each=True, time_limit=60.0, min_success=0.5),
        StagePlan("join", "postprocess"),
    )
    assert found.batches == {"work": Batch(8, 20)}
    assert (found.input, found.input_required) == ({"file": ("video/*",), "text": ()}, True)
    assert found.plan(window=2, max_failures=3, max_losses=5) == Plan(found.stages, 2, 3, 5)


def test_a_pipeline_without_params_takes_none(pipeline):
    found = pipeline(params=None)
    assert found.check({}) == {}
    with pytest.raises(ParamsInvalid):
        found.check({"x": 1})


@pytest.mark.parametrize(
    ("takes", "media_type", "expected"),
    [
        ({"file": ["video/*"]}, "video/mp4", True),
        ({"file": ["video/*"]}, "image/png", False),
        ({"files": ["image/png", "image/tiff"]}, "image/tiff", True),
        ({"text": None}, "video/mp4", False),
        (None, "video/mp4", False),
    ],
)
def test_a_media_type_is_taken_when_the_pipeline_names_it(pipeline, takes, media_type, expected):
    assert pipeline(input=takes).takes(media_type) is expected


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"title": None}, "title"),
        ({"stages": None}, "stages"),
        ({"stages": []}, "at least one"),
        ({"stages": "split"}, "broken"),
        ({"stages": [{"name": "split"}]}, "queue"),
        ({"stages": [SPLIT, SPLIT]}, "names of their own"),
        ({"stages": [{"name": "Split-1", "queue": "io"}]}, "not a name"),
        ({"stages": [WORK]}, "nothing emits to it"),
        ({"stages": [SPLIT, WORK, WORK | {"name": "again"}]}, "`each` after `each`"),
        ({"stages": [SPLIT | {"min_success": 0}]}, "min_success"),
        ({"stages": [SPLIT | {"min_success": 1.1}]}, "min_success"),
        ({"stages": [SPLIT | {"min_success": math.nan}]}, "min_success"),
        ({"stages": [SPLIT | {"time_limit": 0}]}, "time_limit"),
        ({"stages": [SPLIT | {"time_limit": 86_401}]}, "time_limit"),
        ({"stages": [SPLIT | {"time_limit": "soon"}]}, "soon"),
        ({"stages": [SPLIT | {"retries": 3}]}, "unknown keys: retries"),
        ({"stages": [SPLIT | {"batch": {"max": 8, "size": 1}}]}, "size"),
        ({"input": {"video": None}}, "unknown keys: video"),
        ({"steps": []}, "unknown keys: steps"),
        ({"params": {"type": "objekt"}}, "objekt"),
    ],
)
def test_a_folder_that_breaks_a_rule_is_refused_and_named(pipeline, changes, reason):
    with pytest.raises(PipelineBroken) as broken:
        pipeline(**changes)
    assert str(broken.value.fields["file"]).endswith("grind/pipeline.yaml")
    assert reason in str(broken.value) or reason == "broken"


@pytest.mark.parametrize(
    "text", ["", "- a\n- b", "title: [", "title: x\n\tstages: y", "!!python/object:os.system {}", "1"]
)
def test_a_file_that_is_no_pipeline_is_refused(tmp_path, text):
    (tmp_path / "pipeline.yaml").write_text(text)
    with pytest.raises(PipelineBroken):
        read(tmp_path)


def test_a_file_that_is_no_text_or_not_there_is_refused(tmp_path):
    with pytest.raises(PipelineBroken):
        read(tmp_path)
    (tmp_path / "pipeline.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(PipelineBroken):
        read(tmp_path)


def test_pipelines_are_found_in_every_folder_by_name(pipeline, tmp_path):
    pipeline("one")
    pipeline("two", stages=[SPLIT])
    (tmp_path / "not_a_pipeline").mkdir()
    found = Pipelines([tmp_path, tmp_path / "missing"])
    assert list(found) == ["one", "two"]
    assert found.queues == ("inference", "postprocess", "preprocess")
    assert ("one" in found, "three" in found, len(found)) == (True, False, 2)
    with pytest.raises(PipelineNotFound) as missing:
        found["three"]
    assert missing.value.fields == {"pipeline": "three"}


def test_two_pipelines_of_one_name_are_refused(pipeline, tmp_path):
    pipeline("one")
    with pytest.raises(PipelineBroken, match="one name"):
        Pipelines([tmp_path, tmp_path])


# -- params -------------------------------------------------------------------------------------------------------


def test_defaults_are_filled_in_and_what_was_given_stays_untouched(pipeline):
    found, given = pipeline(), {"x": 1}
    first, second = found.check(given), found.check({"x": 2, "n": 4, "box": {"top": 9}})
    assert first == {"x": 1, "n": 3, "on": False, "tags": [], "box": {"top": 1}}
    assert second == {"x": 2, "n": 4, "on": False, "tags": [], "box": {"top": 9}}
    assert given == {"x": 1}
    # A default is a copy: what one job does with it reaches no other
    first["tags"].append("mine")
    assert found.check({"x": 1})["tags"] == []


def test_every_violation_is_said_at_once_and_points_at_itself(pipeline):
    with pytest.raises(ParamsInvalid) as invalid:
        pipeline().check({"n": "many", "tags": ["a", 1], "box": {"left": 1}, "of/~": 1, "extra": 1, "and/more~": 1})
    assert str(invalid.value) == "7 of the params do not fit."
    assert sorted(error["pointer"].removeprefix("/params") for error in invalid.value.fields["errors"]) == [
        "/and~1more~0",
        "/box/left",
        "/extra",
        "/n",
        "/of~1~0",
        "/tags/1",
        "/x",
    ]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, json.loads("1e999"), True, "1", None, [], 11])
def test_a_number_is_a_finite_number_and_nothing_else(pipeline, value):
    with pytest.raises(ParamsInvalid) as invalid:
        pipeline().check({"x": value})
    assert len(invalid.value.fields["errors"]) == 1


@pytest.mark.parametrize("value", [True, 1.5, math.nan, math.inf, "3"])
def test_an_integer_is_an_integer(pipeline, value):
    with pytest.raises(ParamsInvalid):
        pipeline().check({"x": 1, "n": value})


def test_a_violation_does_not_repeat_a_long_value(pipeline):
    with pytest.raises(ParamsInvalid) as invalid:
        pipeline().check({"x": "y" * 100_000})
    assert len(invalid.value.fields["errors"][0]["detail"]) <= 300


# -- the pipelines of this repository ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(OURS))
def test_each_pipeline_is_one_folder_with_all_that_belongs_to_it(name):
    files = {"pipeline.yaml", "stages.py", "example.json", "answer.json", "test_stages.py", "README.md"}
    assert files | {"requirements.in", "requirements.txt"} <= {file.name for file in OURS[name].folder.iterdir()}
    assert name == "addition" or (ROOT / "docs" / "pipelines" / f"{name}.md").exists()


@pytest.mark.parametrize("name", list(OURS))
def test_the_example_of_each_pipeline_passes_its_schema(name):
    example = OURS[name].example
    assert example["pipeline"] == name
    OURS[name].check(example.get("params", {}))
    assert bool(example.get("input")) or not OURS[name].input_required


@pytest.mark.parametrize("name", list(OURS))
def test_each_pipeline_says_what_it_is_and_describes_its_params(name):
    assert OURS[name].title
    assert OURS[name].description
    assert OURS[name].params_schema["additionalProperties"] is False
    for param, schema in OURS[name].params_schema["properties"].items():
        assert schema.get("description"), param
