"""`make gpu` writes a service for each device that the machine has, and nothing where it has none."""

import json
import re
from pathlib import Path

import pytest
import yaml

from celery_worker import gpus
from celery_worker.devices import LIST

ROOT = Path(__file__).resolve().parent.parent.parent
L4 = "GPU-8f4c2d1e-0000-4000-8000-000000000000"
SLICES = ["MIG-11112222-0000-4000-8000-000000000000", "MIG-33334444-0000-4000-8000-000000000000"]


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A factory: `machine({"number": 0, ...})` makes these its GPUs."""

    def have(*found):
        (tmp_path / "gpus.json").write_text(json.dumps(found))
        monkeypatch.setenv(LIST, str(tmp_path / "gpus.json"))

    return have


def gpu(number, uuid, gib, is_slice=False):
    return {"number": number, "uuid": uuid, "name": "NVIDIA", "memory_bytes": gib << 30, "is_slice": is_slice}


def test_each_gpu_and_each_slice_has_a_service_of_its_own(machine, tmp_path, capsys):
    # Given a machine with a whole GPU and a divided one
    machine(gpu(0, L4, 24), *(gpu(1, uuid, 10, True) for uuid in SLICES))
    # When the file is written
    assert gpus.main(["--out", str(tmp_path / "out.yml")]) == 0
    found = yaml.safe_load((tmp_path / "out.yml").read_text())["services"]
    # Then each has its device by UUID, its queue, its memory and its models; the one on the CPU is off
    assert found.pop("worker-inference") == {"deploy": {"replicas": 0}}
    assert list(found) == ["worker-inference-gpu0", "worker-inference-gpu1-slice1", "worker-inference-gpu1-slice2"]
    for service, uuid, gib in zip(found.values(), [L4, *SLICES], [24, 10, 10], strict=True):
        [device] = service["deploy"]["resources"]["reservations"]["devices"]
        assert device == {"driver": "nvidia", "device_ids": [uuid], "capabilities": ["gpu"]}
        told = service["environment"]
        assert (told["DEVICE"], told["QUEUES"]) == (uuid, "inference")
        assert int(told["GPU_MEMORY_MB"]) == int(gib * 1024 * 0.95)
        assert told["WARM_MODELS"] == "efficientdet-lite0,pose-landmark-full"
        assert service["build"]["args"] == {"ACCELERATOR": "gpu"}
    assert capsys.readouterr().out.count("worker-inference-gpu") == 3


def test_a_model_that_does_not_fit_is_left_out(machine, tmp_path, capsys):
    assert gpus.fitting({"large": 60, "huge": 100, "small": 30}, 95) == ["large", "small"]
    machine({**gpu(0, L4, 1), "memory_bytes": 70 << 20})
    assert gpus.main(["--out", str(tmp_path / "out.yml")]) == 0
    found = yaml.safe_load((tmp_path / "out.yml").read_text())["services"]["worker-inference-gpu0"]
    assert found["environment"]["WARM_MODELS"] == "efficientdet-lite0"
    assert "pose-landmark-full does not fit" in capsys.readouterr().err


def test_a_queue_of_ones_own_is_served(machine, tmp_path):
    machine(gpu(0, L4, 24))
    assert gpus.main(["--queue", "inference.mine", "--out", str(tmp_path / "out.yml")]) == 0
    told = yaml.safe_load((tmp_path / "out.yml").read_text())["services"]["worker-inference-gpu0"]["environment"]
    assert (told["QUEUES"], told["WARM_MODELS"]) == ("inference.mine", "")


def test_without_a_gpu_nothing_is_written(machine, tmp_path, capsys):
    machine()
    assert gpus.main(["--out", str(tmp_path / "out.yml")]) == 1
    assert "no GPU here" in capsys.readouterr().err
    assert not (tmp_path / "out.yml").exists()
    # and an older file, which would be taken in, is named and left alone
    (tmp_path / "out.yml").write_text("services: {}")
    assert gpus.main(["--out", str(tmp_path / "out.yml")]) == 1
    assert "out.yml is from another time" in capsys.readouterr().err
    assert (tmp_path / "out.yml").read_text() == "services: {}"


def test_one_gpu_by_hand_is_reserved_and_no_other_device_will_do():
    # Given the file for one GPU
    found = yaml.safe_load((ROOT / "docker-compose.gpu.yml").read_text())["services"]
    # Then it reserves one, and its worker does not fall back to the CPU
    assert list(found) == ["worker-inference"]
    service = found["worker-inference"]
    [device] = service["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}
    assert (service["environment"]["DEVICE"], service["build"]["args"]) == ("0", {"ACCELERATOR": "gpu"})


def test_the_gpu_image_has_the_runtime_that_was_tested():
    # Given the two locks
    def pin(file, name):
        return re.search(rf"^{name}==(\S+)", (ROOT / "requirements" / file).read_text(), re.M)[1]

    # Then the runtime is the same version, with CUDA's libraries beside it
    assert pin("gpu.txt", "onnxruntime-gpu") == pin("dev.txt", "onnxruntime")
    libraries = set(
        re.findall(r"^nvidia-([a-z-]+?)(?:-cu\d+)?==", (ROOT / "requirements" / "gpu.txt").read_text(), re.M)
    )
    assert {"cublas", "cuda-runtime", "cuda-nvrtc", "cudnn", "cufft", "curand"} <= libraries
