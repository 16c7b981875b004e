"""A device is found as it is: a GPU only where one can be used, no more cores than are granted."""

import os

import pytest

from celery_worker import devices
from celery_worker.devices import Gpu
from jobs.errors import SettingsInvalid

GPUS = [Gpu(0, "GPU-aaaa", "NVIDIA H200", 150), Gpu(1, "GPU-bbbb", "NVIDIA L4", 24)]


@pytest.fixture
def two_gpus(monkeypatch):
    """A machine with two GPUs and a runtime that can use them."""
    monkeypatch.setattr(devices, "list_gpus", lambda: GPUS)
    monkeypatch.setattr(devices, "_runtime_has_cuda", lambda: True)
    monkeypatch.delenv(devices.LIST, raising=False)
    for name in ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER"):
        monkeypatch.setenv(name, "")  # so that both are put back afterwards
        monkeypatch.delenv(name)


def test_the_cpu_is_always_there():
    device = devices.find("cpu")
    assert (device.name, device.kind, device.threads) == ("cpu", "cpu", 1)
    assert device.memory_bytes > 0
    assert 1 <= devices.cores() <= os.cpu_count()


def test_auto_takes_the_first_gpu_and_a_number_takes_that_one(two_gpus):
    assert [(d.name, d.kind, d.index) for d in (devices.find("auto"), devices.find("1"))] == [
        ("cuda:0 NVIDIA H200 GPU-aaaa", "cuda", 0),
        ("cuda:1 NVIDIA L4 GPU-bbbb", "cuda", 1),
    ]


def test_auto_takes_the_cpu_where_the_runtime_has_no_cuda(two_gpus, monkeypatch):
    monkeypatch.setattr(devices, "_runtime_has_cuda", lambda: False)
    assert devices.find("auto").name == "cpu"


def test_a_uuid_takes_that_gpu(two_gpus):
    assert devices.find("GPU-bbbb").name == "cuda:1 NVIDIA L4 GPU-bbbb"


def test_a_device_is_there_for_as_long_as_it_is_listed(two_gpus, monkeypatch):
    device = devices.find("1")
    assert (devices.is_there(device), devices.is_there(devices.cpu())) == (True, True)
    monkeypatch.setattr(devices, "list_gpus", lambda: GPUS[:1])
    assert (devices.is_there(device), devices.is_there(devices.cpu())) == (False, True)


@pytest.mark.parametrize("setting", ["gpu", "-1", "cuda:0", "", "2"])
def test_a_device_that_is_not_there_is_refused(two_gpus, setting):
    with pytest.raises(SettingsInvalid):
        devices.find(setting)


def test_a_hidden_gpu_is_not_taken(two_gpus, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert (devices.find("auto").name, devices.find("auto").index) == ("cuda:1 NVIDIA L4 GPU-bbbb", 0)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    assert devices.find("auto").name == "cpu"


def test_a_pinned_process_and_its_children_see_that_gpu_only(two_gpus):
    pinned = devices.pin(devices.find("1"))
    assert (pinned.name, pinned.index) == ("cuda:1 NVIDIA L4 GPU-bbbb", 0)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "GPU-bbbb"
    assert devices.find("auto") == pinned
    assert devices.find("1") == pinned


@pytest.mark.parametrize(
    ("file", "text", "cores"),
    [
        ("cpu.max", "50000 100000", 1),
        ("cpu.max", "150000 100000", 2),
        ("cpu.max", "max 100000", 8),
        ("cpu.max", "9900000 100000", 8),
    ],
)
def test_cores_are_those_that_the_control_group_grants(tmp_path, monkeypatch, file, text, cores):
    monkeypatch.setattr(devices, "CGROUP", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    (tmp_path / file).write_text(text + "\n")
    assert devices.cores() == cores


def test_version_1_control_groups_are_read_too(tmp_path, monkeypatch):
    monkeypatch.setattr(devices, "CGROUP", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu/cpu.cfs_quota_us").write_text("300000\n")
    (tmp_path / "cpu/cpu.cfs_period_us").write_text("100000\n")
    assert devices.cores() == 3
