"""The gauges of a worker's GPUs and models, with a fake NVML: no GPU is at hand in the tests."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from prometheus_client import generate_latest

from celery_worker import devices, nvml
from celery_worker.line import Loaded
from celery_worker.metrics import WorkerCounts
from celery_worker.models import Models
from celery_worker.workbench import Device

MODELS = Path(__file__).parents[2] / "models"
H100 = Device("cuda:1 NVIDIA H100", "cuda", 0, 80 << 30)


class FakeNvml:
    """Two devices, as pynvml tells of them: a GPU, and a MIG slice that knows no use. `gone` has fallen off the bus."""

    class NVMLError(Exception):
        pass

    def __init__(self):
        self.sessions = 0

    def nvmlInit(self):
        self.sessions += 1

    def nvmlShutdown(self):
        self.sessions -= 1

    def nvmlDeviceGetHandleByUUID(self, uuid):
        if uuid == "GPU-gone":
            raise self.NVMLError
        return uuid

    def nvmlDeviceGetMemoryInfo(self, handle):
        return SimpleNamespace(used=3 << 30, total=80 << 30)

    def nvmlDeviceGetUtilizationRates(self, handle):
        if handle.startswith("MIG-"):
            raise self.NVMLError
        return SimpleNamespace(gpu=87, memory=12)


@pytest.fixture
def fake_nvml(monkeypatch):
    fake = FakeNvml()
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    return fake


def lines(counts: WorkerCounts) -> list[str]:
    text = generate_latest(counts.registry).decode()
    return [line for line in text.splitlines() if line.startswith(("gristmill_gpu", "gristmill_model_load_seconds_"))]


def test_the_use_of_each_gpu_is_told_by_device(fake_nvml):
    # Given a worker on a GPU, beside a slice that cannot tell its use, and one that has vanished
    asked = [(H100.name, "GPU-1"), ("mig", "MIG-7"), ("gone", "GPU-gone")]
    counts = WorkerCounts(["inference"], H100, lambda: nvml.uses(asked))
    # When somebody scrapes, then what is known is told, and the session is closed
    assert lines(counts) == [
        'gristmill_gpu_memory_used_bytes{device="cuda:1 NVIDIA H100"} 3.221225472e+09',
        'gristmill_gpu_memory_used_bytes{device="mig"} 3.221225472e+09',
        'gristmill_gpu_memory_size_bytes{device="cuda:1 NVIDIA H100"} 8.589934592e+10',
        'gristmill_gpu_memory_size_bytes{device="mig"} 8.589934592e+10',
        'gristmill_gpu_busy_ratio{device="cuda:1 NVIDIA H100"} 0.87',
    ]
    assert fake_nvml.sessions == 0


def test_a_worker_on_the_cpu_asks_no_gpu():
    def look():
        raise AssertionError("asked")

    assert lines(WorkerCounts(["io"], devices.cpu(), look)) == []


def test_where_there_is_no_driver_nothing_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert lines(WorkerCounts(["inference"], H100, lambda: nvml.uses([(H100.name, "GPU-1")]))) == []


def test_a_models_load_is_told_once():
    # Given models that tell what they load
    counts = WorkerCounts(["inference"], devices.cpu(), list)
    models = Models(MODELS, devices.cpu(), lambda name, seconds: counts.loaded(Loaded(name, seconds)))
    # When one is asked for twice
    for _ in range(2):
        models.load("efficientdet-lite0")
    # Then it was loaded once
    found = [line for line in lines(counts) if "_count" in line]
    assert found == ['gristmill_model_load_seconds_count{model="efficientdet-lite0"} 1.0']
