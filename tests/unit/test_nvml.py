"""What NVML answers, on machines of all kinds: the list of GPUs and slices that it makes."""

import pytest

from celery_worker import cuda, devices, gpus, nvml
from celery_worker.devices import Gpu


class NVMLError(Exception):
    """As pynvml's."""


class Card:
    """A GPU, or a MIG slice: what NVML says of it. An answer that is an error is raised."""

    def __init__(self, uuid, name="NVIDIA H100 80GB HBM3", gib=80, slices=None):
        self.uuid, self.name, self.total = uuid, name, gib << 30
        self.slices = slices  # None: it cannot be divided


class Library:
    """Answers as NVML does, for a machine with these cards."""

    NVMLError = NVMLError

    def __init__(self, *cards):
        self.cards = cards

    def nvmlDeviceGetCount(self):
        return len(self.cards)

    def nvmlDeviceGetHandleByIndex(self, number):
        return _answer(self.cards[number])

    def nvmlDeviceGetMigMode(self, card):
        if card.slices is None:
            raise NVMLError("Not Supported")
        return int(bool(card.slices)), 0

    def nvmlDeviceGetMaxMigDeviceCount(self, card):
        return 7

    def nvmlDeviceGetMigDeviceHandleByIndex(self, card, n):
        places = card.slices + [NVMLError("Not Found")] * 7
        return _answer(places[n])

    def nvmlDeviceGetUUID(self, card):
        return _answer(card.uuid)

    def nvmlDeviceGetName(self, card):
        return card.name

    def nvmlDeviceGetMemoryInfo(self, card):
        return card


def _answer(value):
    if isinstance(value, Exception):
        raise value
    return value


@pytest.fixture
def listed(monkeypatch):
    """A factory: the GPUs of a machine with these cards."""
    monkeypatch.delenv(devices.LIST, raising=False)
    return lambda *cards: devices._listed(Library(*cards))


def test_whole_gpus_divided_ones_and_those_that_cannot_be_divided_stand_side_by_side(listed):
    # Given a GPU with MIG off, one divided with a gap in its places, and one that knows no MIG; some bindings say bytes
    whole = Card("GPU-aaaaaaaa-1", slices=[])
    small = [Card("MIG-11111111-1", "NVIDIA H100 MIG 1g.10gb", 10), NVMLError("Not Found")]
    divided = Card("GPU-bbbbbbbb-1", slices=[*small, Card("MIG-22222222-1", "NVIDIA H100 MIG 2g.20gb", 20)])
    old = Card(b"GPU-cccccccc-1", b"Tesla T4", 16)
    # Then each is what a worker can be given
    assert listed(whole, divided, old) == [
        Gpu(0, "GPU-aaaaaaaa-1", "NVIDIA H100 80GB HBM3", 80 << 30),
        Gpu(1, "MIG-11111111-1", "NVIDIA H100 MIG 1g.10gb", 10 << 30, is_slice=True),
        Gpu(1, "MIG-22222222-1", "NVIDIA H100 MIG 2g.20gb", 20 << 30, is_slice=True),
        Gpu(2, "GPU-cccccccc-1", "Tesla T4", 16 << 30),
    ]


def test_a_gpu_that_is_divided_into_nothing_yet_is_no_device(listed):
    # CUDA computes on slices only once MIG is on; a worker on the whole one could not start
    empty = Card("GPU-aaaaaaaa-1", slices=[NVMLError("Not Found")])
    assert listed(empty, Card("GPU-bbbbbbbb-1")) == [Gpu(1, "GPU-bbbbbbbb-1", "NVIDIA H100 80GB HBM3", 80 << 30)]


def test_a_gpu_or_slice_that_does_not_answer_leaves_the_others(listed):
    lost, mine = NVMLError("GPU is lost"), Card("MIG-22222222-1", gib=10)
    others = Card("GPU-bbbbbbbb-1", slices=[Card(NVMLError("Insufficient Permissions")), mine])
    found = listed(lost, others, Card(NVMLError("Unknown Error")), Card("GPU-dddddddd-1"))
    assert [gpu.uuid for gpu in found] == ["MIG-22222222-1", "GPU-dddddddd-1"]
    assert [gpu.number for gpu in found] == [1, 3]


def test_a_machine_without_cards_or_without_an_answer_has_no_gpu(listed, monkeypatch):
    assert listed() == []
    monkeypatch.setattr(Library, "nvmlDeviceGetCount", lambda self: _answer(NVMLError("Unknown Error")))
    assert listed(Card("GPU-aaaaaaaa-1")) == []


def test_gpus_of_one_name_have_services_of_their_own(listed):
    found = listed(Card("GPU-aaaaaaaa-1"), Card("GPU-bbbbbbbb-1"))
    assert [gpus.name_of(gpu, n) for n, gpu in enumerate(found)] == ["worker-inference-gpu0", "worker-inference-gpu1"]


def test_without_a_driver_the_reason_is_told(monkeypatch):
    # Given this machine, whose driver, if it has one, cannot be loaded
    monkeypatch.setattr("pynvml.nvmlInit", lambda: _answer(OSError("libnvidia-ml.so.1: cannot open")))
    assert nvml.trouble() == "NVML: libnvidia-ml.so.1: cannot open"
    assert nvml.driver() == ("", (0, 0))
    assert devices.list_gpus() == []


def test_a_runtime_without_cuda_says_so():
    # the tests' environment has the plain one
    assert "is the one without CUDA" in cuda.trouble()


def test_a_driver_that_is_too_old_for_this_cuda_is_named(monkeypatch):
    # Given a runtime for CUDA 13, and a driver that answers, but knows CUDA 12 at most
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: [cuda.PROVIDER, "CPUExecutionProvider"])
    monkeypatch.setattr("onnxruntime.capi.build_and_package_info.cuda_version", "13.0", raising=False)
    monkeypatch.setattr(nvml, "trouble", lambda: "")
    monkeypatch.setattr(nvml, "driver", lambda: ("550.54.15", (12, 4)))
    # Then both are told: CUDA itself would say "CUDA failure 35", or nothing
    assert cuda.trouble() == "driver 550.54.15 is for CUDA 12.4 at most, and this onnxruntime needs CUDA 13.0"
    # and with a newer driver, what the libraries lack: the plain runtime has none of CUDA's
    monkeypatch.setattr(nvml, "driver", lambda: ("580.95.05", (13, 0)))
    assert "libonnxruntime_providers_" in cuda.trouble()
